"""Whether the fleet has room for one more call."""

from __future__ import annotations

from typing import Any

import pytest

from bridge_shared.room import AGENT_LIMIT, WORKERS_FULL, Load, agents_left, elsewhere, load, refusal


def worker(pod: str, calls: int, capacity: int = 10, limit: int | None = None, *, takes: str = "desk") -> Load:
    return Load(pod, calls, capacity, calls, limit, frozenset({takes} if takes else ()))


def test_a_worker_alone_may_use_the_whole_limit() -> None:
    assert agents_left(5, {"a": 4}) == 1
    assert agents_left(5, {"a": 5}) == 0


def test_new_calls_leave_room_for_those_of_the_largest_worker() -> None:
    assert agents_left(10, {"a": 3, "b": 3}) == 1
    assert agents_left(10, {"a": 4, "b": 3}) == -1


def test_a_takeover_may_use_what_is_kept_for_it_but_no_more() -> None:
    assert agents_left(10, {"a": 4, "b": 5}, takeover=True) == 1
    assert agents_left(10, {"a": 5, "b": 5}, takeover=True) == 0


def test_a_fleet_that_has_no_agents_yet_takes_its_first_call() -> None:
    assert agents_left(1, {"a": 0, "b": 0}) == 1


def test_a_call_is_taken_while_one_worker_has_room() -> None:
    assert refusal([worker("a", 10), worker("b", 9)], "desk", waiting=0) is None


def test_a_call_is_refused_when_all_workers_are_full_and_beyond_half_capacity_more_for_takeovers() -> None:
    assert refusal([worker("a", 10), worker("b", 14)], "desk", waiting=0) == WORKERS_FULL


def test_calls_that_wait_for_an_owner_come_first() -> None:
    assert refusal([worker("a", 8)], "desk", waiting=1) is None
    assert refusal([worker("a", 8)], "desk", waiting=2) == WORKERS_FULL


def test_a_call_is_refused_at_the_agent_limit_less_its_reserve() -> None:
    assert refusal([worker("a", 3, limit=10), worker("b", 3, limit=10)], "desk", waiting=0) is None
    assert refusal([worker("a", 4, limit=10), worker("b", 3, limit=10)], "desk", waiting=0) == AGENT_LIMIT


def test_a_worker_that_knows_of_no_limit_takes_the_call() -> None:
    assert refusal([worker("a", 4, limit=8), worker("b", 4)], "desk", waiting=0) is None


def test_workers_of_other_bridges_count_for_the_limit_but_have_no_room() -> None:
    other = worker("b", 4, limit=9, takes="other")
    assert refusal([worker("a", 10), other], "desk", waiting=0) == WORKERS_FULL
    assert refusal([worker("a", 3, limit=9), other], "desk", waiting=0) == AGENT_LIMIT


def test_nobody_is_refused_when_no_worker_is_known() -> None:
    assert refusal([], "desk", waiting=5) is None
    assert refusal([worker("a", 10, takes="")], "desk", waiting=5) is None  # it drains; others may just be starting


@pytest.mark.parametrize("info", [{}, {"load": "3", "capacity": 5, "agents": 1}, {"load": 3, "agents": None}])
def test_an_announcement_that_cannot_be_understood_says_nothing(info: dict[str, Any]) -> None:
    assert load("a", info) is None


def test_a_draining_worker_takes_nothing_but_its_agents_count() -> None:
    info = {"load": 3, "capacity": 5, "agents": 3, "draining": True, "bridges": ["desk"], "agent_limit": 9}
    assert load("a", info) == Load("a", 3, 5, 3, 9, frozenset())


def test_another_edge_has_room_if_it_says_so_and_does_not_drain() -> None:
    full, room = {"load": 5, "capacity": 5}, {"load": 4, "capacity": 5}
    assert elsewhere([full, room])
    assert not elsewhere([])
    assert not elsewhere([full, {**room, "draining": True}, {"load": "4", "capacity": 5}, {}])
