"""bridge_edge.limits: what is counted, without sockets or clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_edge.limits import Crowd, Lines, Rate


def test_a_burst_passes_at_once_and_what_follows_waits_its_turn():
    rate = Rate(10.0, 3.0, now=0.0)
    assert [rate.take(0.0) for _ in range(3)] == [0.0] * 3
    assert rate.take(0.0) == pytest.approx(0.1)
    assert rate.take(0.0) == pytest.approx(0.2)
    assert rate.take(5.0) == 0.0


def test_what_costs_more_waits_longer_and_never_longer_than_a_whole_burst_takes():
    rate = Rate(10.0, 30.0, now=0.0)
    assert rate.take(0.0, 20.0) == 0.0
    assert rate.take(0.0, 15.0) == pytest.approx(0.5)
    assert rate.take(0.5, 1e9) == pytest.approx(3.0)
    assert rate.take(6.5, 30.0) == 0.0


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_whoever_waits_as_told_never_passes_more_than_the_rate_and_one_burst(pauses: list[float]):
    rate, now = Rate(10.0, 5.0, now=0.0), 0.0
    for passed, pause in enumerate(pauses, 1):
        now += pause
        now += rate.take(now)
        assert passed <= 5 + 10.0 * now + 1e-6


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=200))
def test_a_crowd_never_exceeds_its_bounds_and_forgets_who_has_left(steps: list[tuple[bool, str]]):
    crowd, inside = Crowd(5, 2), []
    for enters, address in steps:
        if enters:
            reason = crowd.enter(address)
            assert (reason is None) == (len(inside) < 5 and inside.count(address) < 2)
            if reason is None:
                inside.append(address)
        elif address in inside:
            inside.remove(address)
            crowd.leave(address)
    for address in inside:
        crowd.leave(address)
    assert not crowd._from
    assert crowd._all == 0


def test_a_crowd_says_which_bound_it_was():
    crowd = Crowd(2, 1)
    assert [crowd.enter("a"), crowd.enter("a"), crowd.enter("b"), crowd.enter("c")] == [
        None,
        "address",
        None,
        "connections",
    ]


def test_refusals_of_one_kind_are_said_once_a_second_with_how_many_went_unsaid():
    lines = Lines()
    assert [lines.due("a", 0.0), lines.due("a", 0.1), lines.due("b", 0.2), lines.due("a", 0.9)] == [0, None, 0, None]
    assert lines.due("a", 1.0) == 2
    assert lines.due("a", 2.5) == 0
