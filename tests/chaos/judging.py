"""What must be true of calls in which something went wrong, by what the simulators saw and what is in Redis.

The simulated agent numbers its answers, so each is one of a kind: it can be told which call has it, and whether it is
there twice, out of order, or not at all.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from figures import note
from talking import Talk

from bridge_shared.redis.calls import Calls, Line
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.agent_connection import AgentConnection
from pods import Pods

FINISH_SECONDS = 10.0

Said = tuple[float, str]


class Witness:
    """What one agent connection said: the texts and when, without what the bridge had it say again."""

    def __init__(self, connection: AgentConnection) -> None:
        self.connection = connection
        again = Counter(connection.injections)
        self.user: list[Said] = []
        self.assistant: list[Said] = []
        for (role, text), at in zip(connection.texts, connection.said_at, strict=True):
            if again[role, text] > 0:
                again[role, text] -= 1
            elif role == "user":
                self.user.append((at, text))
            elif _is_answer(text):
                self.assistant.append((at, text))


def _is_answer(text: str) -> bool:
    """An agent asked to say that it has not understood gives no answer of its own."""
    return text.startswith("#")


class Call:
    """One call as Redis has it, and the agent connections that served it."""

    def __init__(self, cid: str, lines: Sequence[Line], witnesses: Iterable[Witness]) -> None:
        self.cid = cid
        self.lines = lines
        self.answers = [line.content for line in lines if line.role == "assistant" and _is_answer(line.content)]
        answers = set(self.answers)
        self.witnesses = [w for w in witnesses if any(text in answers for _, text in w.assistant)]

    def story(self) -> str:
        """All that is known of it, for a person."""
        stored = [(line.id, line.role, line.content, line.turn, line.heard_ms, line.interrupted) for line in self.lines]
        agents = [(w.connection.texts, w.connection.injections) for w in self.witnesses]
        return "\n".join([self.cid, *map(str, stored), *map(str, agents)])

    @property
    def user(self) -> Counter[str]:
        return Counter(line.content for line in self.lines if line.role == "user")


async def judge(
    redis_url: str, talking: Talk, agent: SimulatedAgent, pods: Pods, experiment: str, promise: str
) -> None:
    """Nobody was dropped; every line is in its call, once and in order, but what the agent emitted while something
    was broken; later agents knew what was said; no command was carried out twice; every call was finished once.

    Args:
        experiment, promise: for the table.
    """
    assert [(r.problem, r.violations) for r in talking.reports] == [(None, [])] * len(talking.calls)
    witnesses = [Witness(connection) for connection in agent.connections]
    calls = await _calls(redis_url, talking, witnesses)
    broken = bool(talking.faults)
    missing = [
        *_missing_answers(calls, witnesses),
        *(said for call in calls for said in _missing_user(call, broken=broken)),
    ]
    for at, text in missing:
        assert any(began <= at <= ended for began, ended in talking.faults), f"lost: {text}"
    for call in calls:
        _in_order(call)
        _remembered(call)
    await _finished_once(talking, pods)
    commands = _commands(talking, calls)
    assert commands[2] == 0, "a command was carried out twice"
    assert commands[0] == 0 or talking.faults, "a command was lost, and nothing was broken"
    answers = [ms for report in talking.reports for ms in report.answer_ms]
    note(
        experiment,
        promise,
        answer_p50=statistics.median(answers),
        silence_p50=statistics.median(talking.waits) * 1000,
        silence_max=max(talking.waits) * 1000,
        calls=len(calls),
        dropped=0,
        repeated=talking.repeated,
        lines=sum(len(call.lines) for call in calls),
        lost=len(missing),
        doubled=0,
        not_commanded=commands[0],
        commanded=commands[1],
        commanded_twice=commands[2],
        finished_once=len(calls),
    )


async def _calls(redis_url: str, talking: Talk, witnesses: list[Witness]) -> list[Call]:
    server = await connect(redis_url, name="test")
    try:
        calls = Calls(server, "fleet", transcript_ttl=3600)
        cids = [report.conversation_id for report in talking.reports]
        return [Call(cid, await calls.transcript(cid), witnesses) for cid in cids]
    finally:
        await server.close()


def _missing_answers(calls: list[Call], witnesses: list[Witness]) -> Iterator[Said]:
    stored = Counter(text for call in calls for text in call.answers)
    said = {text for witness in witnesses for _, text in witness.assistant}
    twice = {text for text, times in stored.items() if times > 1}
    assert not twice, [call.story() for call in calls if twice & set(call.answers)]
    assert stored.keys() <= said, "an answer is stored that no agent gave"
    owners = [id(witness) for call in calls for witness in call.witnesses]
    assert len(owners) == len(set(owners)), "two calls have lines of the same agent connection"
    return (said for witness in witnesses for said in witness.assistant if said[1] not in stored)


def _missing_user(call: Call, *, broken: bool) -> Iterator[Said]:
    """What the caller said, as some agent understood it, and that is not stored."""
    left = call.user
    for witness in call.witnesses:
        for at, text in witness.user:
            if left[text] > 0:
                left[text] -= 1
            else:
                yield at, text
    # an agent that was lost before it answered has left no line by which it could be known
    assert left.total() <= broken, f"stored twice: {left}"


def _in_order(call: Call) -> None:
    numbers = [int(text.split()[0].removeprefix("#")) for text in call.answers]
    assert numbers == sorted(numbers)
    ids = [tuple(map(int, line.id.split("-"))) for line in call.lines]
    assert ids == sorted(ids)


def _remembered(call: Call) -> None:
    """Each agent but the first was told what had been said and heard before."""
    for witness in call.witnesses[1:]:
        first = witness.assistant[0][1]
        before = call.lines[: next(n for n, line in enumerate(call.lines) if line.content == first)]
        known = {item.get("content") for item in witness.connection.context}
        forgotten = [line.content for line in before if _is_answer(line.content) and line.content not in known]
        cut_off = {line.content for line in before if line.interrupted}
        own = {text for _, text in witness.assistant}
        assert set(forgotten) <= cut_off | own


async def _finished_once(talking: Talk, pods: Pods) -> None:
    """The handlers of `session_end` have run once for each call, wherever; also for those of other callers."""
    cids = {report.conversation_id for report in talking.reports}

    def ends() -> Counter[str]:
        lines = [line for pod in pods.all for line in pod.stdout.splitlines() if line.startswith("session_end ")]
        return Counter(line.rsplit(" ", 1)[1] for line in lines)

    await pods.all[0].until(lambda: ends().keys() >= cids, FINISH_SECONDS, "the session_end handlers")
    assert [cid for cid, times in ends().items() if times > 1] == []


def _commands(talking: Talk, calls: list[Call]) -> tuple[int, int, int]:
    """How many of the commands were carried out not at all, once, and more than once."""
    done = Counter(
        (report.conversation_id, activity["value"]["line"])
        for report in talking.reports
        for activity in report.activities
        if activity["name"] == "sendMetaData"
    )
    given = [done[call.cid, text] for call in calls for text in call.answers]
    return given.count(0), given.count(1), sum(times > 1 for times in given)
