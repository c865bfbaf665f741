"""How fast one worker may knock at a door that turns it away."""

from __future__ import annotations

from bridge_worker.pace import TRIES_PER_SECOND, Pace


def tries(pace: Pace, begin: float, end: float) -> list[float]:
    """The moments at which tries go if somebody is always waiting."""
    went, now = [], begin
    while now < end:
        went.append(now)
        pace.went(now)
        now = max(now, pace.due(now))
    return went


def test_while_nothing_is_refused_every_try_goes_at_once() -> None:
    pace = Pace()
    for _ in range(1000):
        assert pace.due(5.0) == 5.0
        pace.went(5.0)
    pace.succeeded(5.0)
    assert pace.due(5.0) == 5.0


def test_while_deepgram_refuses_a_worker_tries_at_most_five_times_a_second() -> None:
    pace = Pace()
    now, went = 0.0, 0
    pace.refused(now)
    while (now := max(now, pace.due(now))) < 10.0:
        pace.went(now)
        pace.refused(now)
        went += 1
    assert went <= 10 * TRIES_PER_SECOND


def test_a_refusal_of_tries_that_were_under_way_together_does_not_put_the_next_one_off_for_long() -> None:
    pace = Pace()
    for _ in range(100):
        pace.refused(1.0)
    assert pace.due(1.0) == 1.0 + 1 / TRIES_PER_SECOND


def test_each_success_after_refusals_lets_twice_as_many_through_until_nobody_waits() -> None:
    pace = Pace()
    pace.refused(0.0)
    now, waits = 0.0, []
    for _ in range(9):
        waits.append(pace.due(now) - now)
        now = pace.due(now)
        pace.went(now)
        pace.succeeded(now)
    assert waits[0] == 1 / TRIES_PER_SECOND
    assert waits == sorted(waits, reverse=True)
    assert sum(waits) < 0.6
    assert pace.due(now) == now


def test_a_refusal_among_successes_makes_the_worker_slow_again() -> None:
    pace = Pace()
    pace.refused(0.0)
    for _ in range(3):
        pace.succeeded(1.0)
    pace.refused(1.0)
    assert len(tries(pace, 2.0, 3.0)) <= TRIES_PER_SECOND + 1
