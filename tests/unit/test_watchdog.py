"""When an agent that looks connected is given up."""

from __future__ import annotations

import math

import pytest

from bridge_shared.protocol import deepgram as dg
from bridge_worker.watchdog import AGAIN_SECONDS, PING_SECONDS, SILENT_SECONDS, AnswerWatch, LineWatch

USER = dg.ConversationText("user", "Where is my parcel?", {})
ANSWER = dg.ConversationText("assistant", "It is on its way.", {})


# ── the line ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_that_has_never_answered_a_ping_is_not_judged_by_its_silence() -> None:
    line = LineWatch(0.0)
    assert not line.lost(1000.0)
    assert line.deadline() < math.inf  # it is pinged all the same


def test_an_agent_that_answers_pings_is_lost_when_nothing_has_come_for_six_seconds() -> None:
    line = LineWatch(0.0)
    line.ponged()
    line.heard(1.0)
    assert not line.lost(1.0 + SILENT_SECONDS - 0.01)
    assert line.lost(1.0 + SILENT_SECONDS)


def test_anything_that_arrives_keeps_the_line() -> None:
    line = LineWatch(0.0)
    line.ponged()
    for second in range(60):
        line.heard(float(second))
        assert not line.lost(float(second))


def test_pings_are_due_every_two_seconds_whatever_happens() -> None:
    line = LineWatch(0.0)
    assert [now for now in range(0, 9) if line.ping_due(float(now))] == [0, 2, 4, 6, 8]
    assert line.deadline() == 8.0 + PING_SECONDS


def test_a_timer_that_comes_late_gives_the_line_a_little_more_time_for_what_may_wait_unread() -> None:
    line = LineWatch(0.0)
    line.ponged()
    assert not line.lost(20.0)
    assert not line.lost(20.0 + AGAIN_SECONDS - 0.01)
    assert line.lost(20.0 + AGAIN_SECONDS)


def test_a_line_whose_data_was_waiting_when_the_process_woke_is_kept() -> None:
    line = LineWatch(0.0)
    line.ponged()
    assert not line.lost(20.0)
    line.heard(20.1)
    assert not line.lost(20.0 + AGAIN_SECONDS)
    assert line.lost(20.1 + SILENT_SECONDS)


# ── the answer ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_that_shows_no_sign_of_answering_is_stalled() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(USER, 5.0)
    assert answers.deadline() == 15.0
    assert not answers.stalled(14.9)
    assert answers.stalled(15.0)
    assert answers.deadline() == math.inf  # said once


@pytest.mark.parametrize(
    "sign",
    [
        dg.AgentThinking("hm"),
        dg.AgentStartedSpeaking(0.1, 0.1, 0.1),
        dg.Audio(b"\xff"),
        dg.FunctionCallRequest(({"id": "1", "name": "f"},)),
        ANSWER,
        dg.UserStartedSpeaking(),
    ],
    ids=lambda sign: type(sign).__name__,
)
def test_any_sign_of_an_answer_will_do_and_a_caller_who_goes_on_is_waited_for(sign: dg.AgentEvent) -> None:
    answers = AnswerWatch(10.0)
    answers.saw(USER, 0.0)
    answers.saw(sign, 9.0)
    assert answers.deadline() == math.inf


def test_what_says_nothing_about_the_answer_changes_nothing() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(USER, 0.0)
    answers.saw(dg.History({"role": "user", "content": USER.content}), 1.0)
    answers.saw(dg.Updated("prompt", None), 1.0)
    assert answers.stalled(10.0)


def test_a_warning_of_a_slow_model_shows_that_somebody_is_at_work() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(USER, 0.0)
    answers.saw(dg.Warned("SLOW_THINK_REQUEST", "5 s"), 5.0)
    assert answers.deadline() == 15.0


def test_a_warning_alone_does_not_make_the_agent_owe_anything() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(dg.Warned("SLOW_THINK_REQUEST", "5 s"), 5.0)
    assert answers.deadline() == math.inf


def test_nothing_is_owed_while_a_function_is_being_called_though_the_callers_text_comes_after_the_request() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(dg.FunctionCallRequest(({"id": "1", "name": "f"},)), 0.0)
    answers.saw(USER, 0.1)
    assert answers.deadline() == math.inf
    answers.saw(ANSWER, 20.0)
    answers.saw(USER, 30.0)
    assert answers.deadline() == 40.0


def test_a_cancelled_function_call_ends_the_wait_for_it() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(dg.FunctionCallRequest(({"id": "1", "name": "f"},)), 0.0)
    answers.saw(dg.FunctionCallCancelled(({"id": "1", "name": "f"},)), 1.0)
    answers.saw(USER, 2.0)
    assert answers.deadline() == 12.0


def test_each_agent_that_is_given_up_makes_the_patience_longer_so_that_a_slow_model_is_not_replaced_for_ever() -> None:
    answers = AnswerWatch(10.0)
    for began, patience in ((0.0, 10.0), (100.0, 20.0), (200.0, 40.0)):
        answers.connected()
        answers.saw(USER, began)
        assert answers.deadline() == began + patience
        assert answers.stalled(began + patience)


def test_a_new_agent_owes_nothing_until_the_caller_is_heard_by_it() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(USER, 0.0)
    answers.connected()
    assert answers.deadline() == math.inf


def test_a_timer_that_comes_late_gives_the_agent_a_little_more_time() -> None:
    answers = AnswerWatch(10.0)
    answers.saw(USER, 0.0)
    assert not answers.stalled(25.0)
    assert answers.stalled(25.0 + AGAIN_SECONDS)


def test_with_no_limit_nobody_is_given_up() -> None:
    answers = AnswerWatch(0.0)
    answers.saw(USER, 0.0)
    assert answers.deadline() == math.inf
    assert not answers.stalled(1e9)
