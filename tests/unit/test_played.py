"""VAIC's `playFinished` and the play streams that it is about (Bot API reference §6.6)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge_edge.played import PlayedByVaic, Prompts

FIRST, SECOND = (1, 1), (1, 2)


def of(*streams: tuple[tuple[int, int] | None, float]) -> Prompts:
    """Streams of so many milliseconds, all over and heard whole by the play clock."""
    prompts = Prompts()
    for turn, ms in streams:
        prompts.opened(turn)
        prompts.sent(ms)
        if turn:
            prompts.over(turn, ms)
    return prompts


def test_what_was_played_as_the_clock_says_is_no_news() -> None:
    assert of((FIRST, 3400.0)).finished(3384, "finished") is None


def test_reports_belong_to_streams_in_their_order() -> None:
    prompts = of((FIRST, 1000.0), (SECOND, 2000.0))
    assert prompts.finished(400, "interrupted") == PlayedByVaic(FIRST, 400)
    assert prompts.finished(500, "interrupted") == PlayedByVaic(SECOND, 500)
    assert prompts.finished(600, "interrupted") is None


def test_a_stream_that_vaic_never_reported_is_passed_over_by_the_length_of_the_next() -> None:
    prompts = of((FIRST, 1000.0), (SECOND, 2000.0))
    assert prompts.finished(1990, "finished") is None
    assert prompts.finished(100, "interrupted") is None


def test_a_stream_that_vaic_broke_off_is_one_that_was_given_so_much() -> None:
    prompts = of((FIRST, 300.0), (SECOND, 2000.0))
    assert prompts.finished(1000, "interrupted") == PlayedByVaic(SECOND, 1000)
    playing = Prompts()
    playing.opened(FIRST)
    playing.sent(300)
    assert playing.finished(1000, "interrupted") is None  # of before a resume


def test_a_prompt_that_vaic_fetches_itself_takes_its_turn() -> None:
    prompts = of((None, 0.0), (FIRST, 1000.0))
    assert prompts.finished(30_000, "finished") is None
    assert prompts.finished(100, "interrupted") == PlayedByVaic(FIRST, 100)


def test_the_second_stream_of_a_turn_counts_from_where_the_first_ended() -> None:
    prompts = Prompts()
    prompts.opened(FIRST)
    prompts.sent(1000)
    prompts.opened(FIRST, 1000)
    prompts.sent(500)
    assert prompts.finished(1000, "finished") is None
    assert prompts.finished(200, "interrupted") == PlayedByVaic(FIRST, 1200)


def test_more_than_the_clock_says_is_news_if_the_turn_was_cut() -> None:
    prompts = Prompts()
    prompts.opened(FIRST)
    prompts.sent(900)
    prompts.over(FIRST, 600)
    assert prompts.finished(900, "finished") == PlayedByVaic(FIRST, 900)


@given(st.lists(st.tuples(st.sampled_from(["open", "other", "sent", "over", "report"]), st.floats(0, 1e6))))
def test_no_report_says_more_than_was_sent(steps: list[tuple[str, float]]) -> None:
    prompts, sent, turn = Prompts(), {}, 0
    for step, ms in steps:
        match step:
            case "open":
                turn += 1
                prompts.opened((1, turn))
                sent[1, turn] = 0.0
            case "other":
                prompts.opened(None)
            case "sent" if turn:
                prompts.sent(ms)
                sent[1, turn] += ms
            case "over" if turn:
                prompts.over((1, turn), sent[1, turn] / 2)
            case "report":
                for status in ("finished", "interrupted"):
                    told = prompts.finished(ms, status)
                    assert told is None or 0 <= told.heard_ms <= sent[told.turn]
