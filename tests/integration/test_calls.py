"""Who holds and who owns a call, how it ends once, and what is left of it."""

import asyncio
import contextlib

import pytest

from bridge_shared.errors import CallUnknown, Fenced, RedisRefused, RedisUnavailable
from bridge_shared.redis import calls as calls_module
from bridge_shared.redis.calls import FINISH_SECONDS, LIVE_SECONDS, CallKeys, Calls
from bridge_shared.redis.commands import Commands
from bridge_shared.redis.connection import connect

NEW = {"bridge": "main", "caller": "+15550100", "bot": "bot", "media_format": "raw/mulaw", "start": {"a": 1}}
DAY = 24 * 3600
KEYS = CallKeys.of("c1")


@pytest.fixture
async def server(redis_url):
    server = await connect(redis_url, name="pod-1")
    yield server
    await server.close()


@pytest.fixture
def calls(server):
    return Calls(server, "fleet", transcript_ttl=30 * DAY)


async def active(calls, cid="c1", *, edge="e1", worker="w1"):
    """A call that is being talked on; the owner's claim."""
    await calls.attach(cid, edge=edge, new=NEW)
    claimed = await calls.claim(cid, worker=worker, seen_owner="", seen_we=0)
    assert await calls.activate(cid, we=claimed.we, session_id="s1")
    return claimed


async def write_line(server, we, seq=1):
    await server.execute("XADD", KEYS.transcript, "NOMKSTREAM", f"{we}-{seq}", "role", "user", "content", f"line {seq}")


async def ttls(server):
    """Key → seconds left; -1 = for ever."""
    return {key.decode(): await server.execute("TTL", key) for key in await server.execute("KEYS", "*")}


# Attaching


async def test_a_new_call_is_offered_with_an_epoch_and_without_an_owner(calls):
    attached = await calls.attach("c1", edge="e1", new=NEW)
    assert attached.status == "created"
    assert attached.ee > 1_600_000_000_000
    assert (attached.owner, attached.we) == ("", 0)
    record = await calls.read("c1")
    assert (record.state, record.edge, record.ee) == ("offered", "e1", attached.ee)
    assert (record.bridge, record.caller, record.media_format) == ("main", "+15550100", "raw/mulaw")
    assert record.start == {"a": 1}
    assert record.created_at.endswith("Z") and record.active_at == ""
    assert await calls.live() == ["c1"]


async def test_a_second_initiate_for_a_live_call_changes_nothing(calls):
    first = await calls.attach("c1", edge="e1", new=NEW)
    again = await calls.attach("c1", edge="e2", new=NEW | {"caller": "other"})
    assert (again.status, again.ee, again.record.edge, again.record.caller) == ("live", first.ee, "e1", "+15550100")


async def test_a_resume_takes_the_attachment_and_says_whom_it_replaced(calls):
    claimed = await active(calls)
    resumed = await calls.attach("c1", edge="e2", new=None)
    assert resumed.status == "attached"
    assert resumed.ee > claimed.ee
    assert (resumed.owner, resumed.we) == ("w1", claimed.we)
    assert (resumed.former_edge, resumed.former_ee) == ("e1", claimed.ee)
    assert (await calls.read("c1")).edge == "e2"


async def test_a_resume_of_an_unknown_call_creates_nothing(calls, server):
    assert (await calls.attach("c1", edge="e1", new=None)).status == "unknown"
    assert await server.execute("KEYS", "*") == []


async def test_an_ended_call_can_neither_be_resumed_nor_begun_again(calls):
    await active(calls)
    await calls.end("c1", reason="ended", detail="")
    assert (await calls.attach("c1", edge="e2", new=None)).status == "ended"
    assert (await calls.attach("c1", edge="e2", new=NEW)).status == "ended"


async def test_an_epoch_is_above_the_stored_one_the_clock_and_the_witness(calls, server):
    first = await calls.attach("c1", edge="e1", new=NEW)
    await server.execute("HSET", KEYS.call, "ee", first.ee + 10**9)
    assert (await calls.attach("c1", edge="e1", new=None)).ee == first.ee + 10**9 + 1
    by_the_clock = await calls.attach("c2", edge="e1", new=NEW)
    claimed = await calls.claim("c2", worker="w1", seen_owner="", seen_we=0)
    assert 0 <= claimed.we - by_the_clock.ee < 60_000
    witness = first.ee + 10**10
    assert (await calls.attach("c1", edge="e1", witness=witness, new=None)).ee == witness + 1
    claimed = await calls.claim("c1", worker="w1", seen_owner="", seen_we=0, witness=witness)
    assert claimed.we == witness + 1


@pytest.mark.parametrize("cid", ["", "a}b", "a b", "x" * 129, "ä", "a/b", "c1\n"])
async def test_an_id_that_no_call_can_have_is_unknown(calls, cid):
    with pytest.raises(CallUnknown):
        await calls.read(cid)
    with pytest.raises(CallUnknown):
        await calls.attach(cid, edge="e1", new=NEW)


# Claiming


async def test_of_40_concurrent_claimers_one_wins_each_call(calls):
    for n in range(20):
        await calls.attach(f"c{n}", edge="e1", new=NEW)
    for n in range(20):
        results = await asyncio.gather(
            *(calls.claim(f"c{n}", worker=f"w{w}", seen_owner="", seen_we=0) for w in range(40))
        )
        winners = [r for r in results if r is not None]
        assert len(winners) == 1
        record = await calls.read(f"c{n}")
        assert (record.owner, record.we) == (winners[0].record.owner, winners[0].we)


async def test_a_claim_on_what_is_no_longer_so_is_lost(calls):
    first = await active(calls)
    assert await calls.claim("c1", worker="w2", seen_owner="", seen_we=0) is None
    assert await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we - 1) is None
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we)
    assert second.we > first.we
    assert (second.edge, second.ee) == ("e1", first.ee)
    assert second.record.state == "active"


async def test_an_unknown_or_ended_call_cannot_be_claimed(calls):
    assert await calls.claim("c1", worker="w1", seen_owner="", seen_we=0) is None
    await calls.attach("c1", edge="e1", new=NEW)
    await calls.end("c1", reason="error", detail="timeout")
    assert await calls.claim("c1", worker="w1", seen_owner="", seen_we=0) is None


async def test_a_claim_fences_both_streams_and_leaves_nothing_visible(calls, server):
    first = await active(calls)
    await write_line(server, first.we)
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we)
    for key in (KEYS.transcript, KEYS.functions):
        with pytest.raises(RedisRefused, match="equal or smaller"):
            await server.execute("XADD", key, "NOMKSTREAM", f"{first.we}-99", "content", "from a zombie")
    assert [line.content for line in await calls.transcript("c1")] == ["line 1"]
    assert await server.execute("XLEN", KEYS.functions) == 0
    await write_line(server, second.we)


async def test_a_claim_is_above_what_a_failover_kept_of_the_streams(calls, server):
    """The claim was lost and the entries were not: its epoch would be refused by the very stream it fences."""
    first = await active(calls)
    later = first.we + 10**9
    await server.execute("XADD", KEYS.transcript, f"{later}-5", "content", "kept")
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we)
    assert second.we == later + 1


async def test_after_flushall_the_epochs_still_rise(calls, server):
    first = await active(calls)
    await server.execute("FLUSHALL")
    attached = await calls.attach("c1", edge="e1", witness=first.ee, new=NEW)
    claimed = await calls.claim("c1", worker="w2", seen_owner="", seen_we=0, witness=first.we)
    assert attached.ee > first.ee
    assert claimed.we > first.we
    with pytest.raises(RedisRefused, match="equal or smaller"):
        await write_line(server, first.we)


async def test_only_the_owner_activates_and_amends(calls):
    first = await active(calls)
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we)
    assert not await calls.activate("c1", we=first.we, session_id="zombie")
    assert not await calls.amend("c1", we=first.we, fields={"settings": {"zombie": True}})
    assert await calls.amend("c1", we=second.we, fields={"settings": {"a": [1]}, "note": "x", "n": 5})
    record = await calls.read("c1")
    assert (record.session_id, record.settings, record.raw["note"], record.raw["n"]) == ("s1", {"a": [1]}, "x", "5")
    assert await calls.amend("c1", we=second.we, fields={"note": None, "m": True})
    record = await calls.read("c1")
    assert "note" not in record.raw and record.raw["m"] == "true"
    await calls.end("c1", reason="ended", detail="")
    assert not await calls.amend("c1", we=second.we, fields={"late": "x"})
    assert not await calls.activate("c1", we=second.we, session_id="late")


async def test_a_field_that_cannot_be_stored_is_our_fault(calls):
    with pytest.raises(TypeError, match="field 'x'"):
        await calls.amend("c1", we=1, fields={"x": object()})


async def test_a_record_full_of_garbage_can_still_be_read(calls, server):
    await server.execute(
        "HSET", KEYS.call, "state", "active", "ee", "no number", "we", "9" * 40, "start", "{", "settings", "[1]",
        "created_ms", "9" * 30, "active_ms", "-5", "caller", b"\xff",
    )  # fmt: skip
    record = await calls.read("c1")
    assert (record.ee, record.start, record.settings, record.created_at, record.active_at) == (0, {}, None, "", "")


async def test_a_key_of_the_wrong_type_is_refused_and_concerns_that_call_only(calls, server):
    await server.execute("SET", KEYS.call, "garbage")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await calls.read("c1")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await calls.attach("c1", edge="e1", new=NEW)
    assert (await calls.attach("c2", edge="e1", new=NEW)).status == "created"


# Outages


async def test_a_claim_whose_answer_was_lost_is_asked_for_again_and_still_won(redis_server, eventually):
    """The token in the call tells our own claim from somebody else's."""
    server = await connect(redis_server.url, name="pod-1")
    calls = Calls(server, "fleet", transcript_ttl=DAY)
    try:
        await calls.attach("c1", edge="e1", new=NEW)
        redis_server.pause()
        claiming = asyncio.create_task(calls.claim("c1", worker="w1", seen_owner="", seen_we=0))
        await eventually(lambda: not server._commands.up)  # it was written, and its connection given up
        redis_server.resume()
        claimed = await claiming
        assert claimed is not None
        assert (await calls.read("c1")).we == claimed.we
    finally:
        await server.close()


async def test_creating_attaching_and_ending_under_dying_connections_happen_once(redis_server):
    server = await connect(redis_server.url, name="pod-1")
    calls = Calls(server, "fleet", transcript_ttl=DAY)
    done = asyncio.Event()

    async def kill():
        while not done.is_set():
            await asyncio.to_thread(redis_server.kill_clients)
            await asyncio.sleep(0.01)

    killer = asyncio.create_task(kill())
    try:
        for n in range(40):
            cid = f"c{n}"
            attached = await calls.attach(cid, edge="e1", new=NEW)
            assert attached.status == "created"
            claimed = await calls.claim(cid, worker="w1", seen_owner="", seen_we=0)
            assert claimed is not None
            assert await calls.activate(cid, we=claimed.we, session_id="s")
            resumed = await calls.attach(cid, edge="e2", new=None)
            assert (resumed.former_edge, resumed.former_ee) == ("e1", attached.ee)
            assert (await calls.end(cid, reason="ended", detail="x", we=claimed.we)).first
    finally:
        done.set()
        await killer
    assert sorted(await calls.due(1000)) == sorted(f"c{n}" for n in range(40))
    assert await calls.live() == []
    await server.close()


async def test_at_maxmemory_live_calls_go_on_and_new_ones_are_not_taken(redis_server, monkeypatch):
    monkeypatch.setattr("bridge_shared.redis.connection.AGAIN_SECONDS", 0.0)
    server = await connect(redis_server.url, name="pod-1")
    calls = Calls(server, "fleet", transcript_ttl=DAY)
    claimed = await active(calls)
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisUnavailable, match="maxmemory"):
        await calls.attach("c2", edge="e1", new=NEW)
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=claimed.we)
    assert second is not None
    assert (await calls.attach("c1", edge="e2", new=None)).status == "attached"
    assert await calls.touch("c1")
    await calls.heard("c1", "1-1", 5, False)
    assert (await calls.end("c1", reason="ended", detail="")).first
    assert await calls.due() == ["c1"]
    await calls.finished("c1", ["crm"])
    await server.close()


# Ending


async def test_of_many_concurrent_ends_one_is_first_and_its_reason_stands(calls):
    await active(calls)
    results = await asyncio.gather(
        *(calls.end("c1", reason="error" if n % 2 else "hangup", detail=str(n)) for n in range(40))
    )
    (first,) = [r for r in results if r.first]
    assert {(r.reason, r.detail, r.finish) for r in results} == {(first.reason, first.detail, "owed")}
    record = await calls.read("c1")
    assert (record.state, record.reason, record.detail, record.finish) == ("ended", first.reason, first.detail, "owed")
    assert record.ended_at >= record.active_at
    assert record.duration_ms >= 0
    assert await calls.live() == []
    assert await calls.due() == ["c1"]


async def test_an_owner_that_was_replaced_cannot_end_the_call(calls):
    first = await active(calls)
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we)
    with pytest.raises(Fenced):
        await calls.end("c1", reason="error", detail="zombie", we=first.we)
    assert (await calls.read("c1")).state == "active"
    assert (await calls.end("c1", reason="ended", detail="", we=second.we, last="5-1", finisher="w2")).first
    record = await calls.read("c1")
    assert (record.raw["last"], record.finisher) == ("5-1", "w2")


async def test_who_takes_a_call_for_deserted_cannot_end_it_when_somebody_has_come_back(calls):
    claimed = await active(calls)
    seen = await calls.read("c1")
    await calls.attach("c1", edge="e2", new=None)
    with pytest.raises(Fenced):
        await calls.end("c1", reason="error", detail="lost", we=claimed.we, ee=seen.ee)
    assert (await calls.read("c1")).state == "active"


async def test_an_unknown_call_cannot_be_ended(calls):
    with pytest.raises(CallUnknown):
        await calls.end("c1", reason="ended", detail="")


async def test_a_call_that_was_never_active_owes_nothing_and_shrinks_at_once(calls, server):
    await calls.attach("c1", edge="e1", new=NEW)
    await calls.claim("c1", worker="w1", seen_owner="", seen_we=0)
    ended = await calls.end("c1", reason="error", detail="abandoned")
    assert (ended.first, ended.finish) == (True, "none")
    assert await calls.due() == [] and await calls.live() == []
    left = await ttls(server)
    assert set(left) == {KEYS.call}
    assert 0 < left[KEYS.call] <= 30 * DAY
    record = await calls.read("c1")
    assert (record.state, record.detail, record.caller, record.start) == ("ended", "abandoned", "+15550100", {})


async def test_the_end_of_a_call_that_was_never_active_is_reported_where_asked(calls):
    await calls.attach("c1", edge="e1", new=NEW)
    assert (await calls.end("c1", reason="hangup", detail="", report=True)).finish == "owed"
    assert await calls.due() == ["c1"]
    assert (await calls.read("c1")).start == {"a": 1}, "handlers are told of it"


# Finishing


async def test_a_finish_is_claimed_by_one_and_its_successes_are_kept(calls):
    await active(calls)
    await calls.end("c1", reason="ended", detail="", finisher="w1")
    results = await asyncio.gather(
        *(calls.claim_finish("c1", worker=f"w{n}", seen_finisher="w1") for n in range(2, 20))
    )
    (record,) = [r for r in results if r is not None]
    assert await calls.handled("c1", "on_end", finisher=record.finisher)
    assert not await calls.handled("c1", "on_end", finisher="w1"), "w1 has been replaced"
    third = await calls.claim_finish("c1", worker="w99", seen_finisher=record.finisher)
    assert third.handled == {"on_end"}


async def test_a_finish_that_is_released_may_be_claimed_by_anybody(calls):
    await active(calls)
    await calls.end("c1", reason="ended", detail="", finisher="w1")
    await calls.release_finish("c1", finisher="w2")
    assert (await calls.read("c1")).finisher == "w1", "it was not w2's"
    await calls.release_finish("c1", finisher="w1")
    assert await calls.claim_finish("c1", worker="w2", seen_finisher="") is not None


async def test_the_first_try_of_a_finish_is_the_first_whoever_makes_it(calls):
    await active(calls, "c1")
    await calls.end("c1", reason="ended", detail="", finisher="w1")
    assert (await calls.read("c1")).tries == 1, "w1 begins at once"
    assert (await calls.claim_finish("c1", worker="w2", seen_finisher="w1")).tries == 2
    await active(calls, "c2")
    await calls.end("c2", reason="error", detail="lost")
    assert (await calls.claim_finish("c2", worker="w2", seen_finisher="")).tries == 1


async def test_data_of_an_ended_call_is_written_by_its_finisher_only_and_only_until_it_is_finished(calls):
    await active(calls)
    await calls.end("c1", reason="ended", detail="", finisher="w1")
    assert not await calls.keep_data("c1", b'{"by":2}', finisher="w2")
    assert await calls.keep_data("c1", b'{"by":1}', finisher="w1")
    assert (await calls.read("c1")).raw["data"] == '{"by":1}'
    await calls.finished("c1")
    assert not await calls.keep_data("c1", b'{"by":1}', finisher="w1")
    assert "data" not in (await calls.read("c1")).raw


async def test_what_failed_in_a_finish_is_noted_by_its_finisher_only_and_gone_when_it_is_done(calls):
    await active(calls)
    await calls.end("c1", reason="ended", detail="", finisher="w1")
    await calls.failed("c1", "crm: KeyError", finisher="w1")
    await calls.failed("c1", "crm: ValueError", finisher="w2")
    assert (await calls.read("c1")).finish_error == "crm: KeyError"
    await calls.finished("c1")
    await calls.failed("c1", "crm: KeyError", finisher="w1")
    assert (await calls.read("c1")).finish_error == ""


async def test_all_calls_that_are_due_are_found_however_many(calls):
    for number in range(7):
        await active(calls, f"c{number}")
        await calls.end(f"c{number}", reason="ended", detail="")
    assert sorted(await calls.due(page=3)) == [f"c{number}" for number in range(7)]


async def test_a_finisher_who_is_not_the_owner_fences_the_owners_late_lines(calls, server):
    claimed = await active(calls)
    await write_line(server, claimed.we, 1)
    await calls.end("c1", reason="ended", detail="", finisher="w1")
    await calls.claim_finish("c1", worker="w1", seen_finisher="w1")
    await write_line(server, claimed.we, 2)  # the owner itself may still write
    record = await calls.claim_finish("c1", worker="w2", seen_finisher="w1")
    assert record.we > claimed.we
    with pytest.raises(RedisRefused, match="equal or smaller"):
        await write_line(server, claimed.we, 3)
    assert len(await calls.transcript("c1")) == 2


async def test_nothing_is_left_of_a_finished_call_but_its_summary_and_transcript(calls, server):
    claimed = await active(calls)
    await write_line(server, claimed.we)
    await server.execute("XADD", KEYS.functions, f"{claimed.we}-1", "name", "f")
    await calls.amend("c1", we=claimed.we, fields={"settings": {"x": 1}, "data": {"secretly": "large"}})
    await calls.heard("c1", f"{claimed.we}-1", 300, True)
    await calls.touch("c1")
    await calls.end("c1", reason="transfer", detail="d", we=claimed.we, finisher="w1", last=f"{claimed.we}-1")
    await calls.claim_finish("c1", worker="w1", seen_finisher="w1")
    await calls.handled("c1", "crm", finisher="w1")
    await calls.finished("c1", ["mail"])

    left = await ttls(server)
    assert set(left) == {KEYS.call, KEYS.transcript, KEYS.heard}
    assert all(30 * DAY - 60 < ttl <= 30 * DAY for ttl in left.values()), left
    record = await calls.read("c1")
    assert set(record.raw) == {
        "state", "reason", "detail", "bridge", "caller", "bot", "media_format", "created_ms", "active_ms", "ended_ms",
        "session_id", "last", "finish", "finished_ms", "finish_attempts", "finisher", "owner", "we", "end_token",
        "handled:crm", "handled:mail",
    }  # fmt: skip
    assert (record.finish, record.handled) == ("done", {"crm", "mail"})
    (line,) = await calls.transcript("c1")
    assert (line.content, line.heard_ms, line.interrupted) == ("line 1", 300, True)
    assert not await calls.unfinished()


async def test_every_key_of_a_live_call_and_its_fleet_has_a_ttl(calls, server):
    claimed = await active(calls)
    await write_line(server, claimed.we)
    await calls.heard("c1", f"{claimed.we}-1", 1, False)
    left = await ttls(server)
    assert set(left) == {KEYS.call, KEYS.transcript, KEYS.heard, KEYS.functions, "{fleet}:calls"}
    assert all(0 < ttl <= LIVE_SECONDS for ttl in left.values()), left
    for key in left:
        await server.execute("EXPIRE", key, 100)
    assert await calls.touch("c1")
    assert all(ttl > LIVE_SECONDS - 60 for ttl in (await ttls(server)).values())


async def test_a_short_retention_waits_for_the_finish_and_no_retention_leaves_nothing(server):
    calls = Calls(server, "fleet", transcript_ttl=0)
    claimed = await active(calls)
    await write_line(server, claimed.we)
    await calls.end("c1", reason="ended", detail="")
    left = await ttls(server)
    assert left[KEYS.transcript] > FINISH_SECONDS - 60
    assert left["{fleet}:ended"] > 0
    await calls.finished("c1")
    assert await server.execute("KEYS", "*") == []


async def test_a_finish_is_postponed_given_up_listed_and_opened_again(calls):
    await active(calls)
    await calls.end("c1", reason="ended", detail="")
    await calls.postpone("c1", 3600)
    assert await calls.due() == []
    assert 3500 < (await calls.unfinished())["c1"] < 3700
    assert await calls.count_unfinished() == (1, 0)
    await calls.give_up("c1")
    assert (await calls.read("c1")).finish == "given_up"
    assert await calls.unfinished() == {"c1": float("inf")}
    assert await calls.count_unfinished() == (0, 1)
    assert await calls.claim_finish("c1", worker="w2", seen_finisher="") is None
    assert await calls.reopen("c1")
    assert await calls.due() == ["c1"]
    assert await calls.claim_finish("c1", worker="w2", seen_finisher="") is not None
    await calls.finished("c1")
    assert not await calls.reopen("c1")
    assert not await calls.reopen("unknown")


async def test_a_finish_that_is_done_is_taken_off_the_list_by_whoever_finds_it_there(calls, server):
    await active(calls)
    await calls.end("c1", reason="ended", detail="")
    await calls.finished("c1")
    await server.execute("ZADD", "{fleet}:ended", 1, "c1", 1, "vanished")
    assert await calls.claim_finish("c1", worker="w2", seen_finisher="") is None
    assert await calls.claim_finish("vanished", worker="w2", seen_finisher="") is None
    assert await calls.due() == []


# What a crash between the two slots leaves


async def test_a_crash_right_after_the_end_is_repaired_by_the_sweep(calls, server):
    await active(calls)
    await calls.end("c1", reason="ended", detail="")
    await server.execute("ZREM", "{fleet}:ended", "c1")
    await server.execute("ZADD", "{fleet}:calls", 1, "c1")
    assert await calls.sweep() == 1
    assert (await calls.due(), await calls.live()) == (["c1"], [])
    assert await calls.sweep() == 0


async def test_a_crash_right_after_the_end_is_repaired_by_ending_again(calls, server):
    await active(calls)
    await calls.end("c1", reason="ended", detail="")
    await server.execute("ZREM", "{fleet}:ended", "c1")
    await server.execute("ZADD", "{fleet}:calls", 1, "c1")
    assert not (await calls.end("c1", reason="error", detail="lost")).first
    assert (await calls.due(), await calls.live()) == (["c1"], [])


async def test_a_crash_right_after_the_finish_is_repaired_by_the_sweep(calls, server):
    await active(calls)
    await calls.end("c1", reason="ended", detail="")
    await calls.finished("c1")
    await server.execute("ZADD", "{fleet}:ended", 1, "c1", 1, "vanished")
    assert await calls.sweep() == 2
    assert await calls.unfinished() == {}


async def test_a_sweep_goes_through_all_that_is_owed_in_portions(calls, server, monkeypatch):
    monkeypatch.setattr(calls_module, "SOME", 3)
    for number in range(10):
        if number % 3:
            await server.execute("HSET", f"call:{{c{number}}}", "state", "ended", "finish", "owed")
        await server.execute("ZADD", "{fleet}:ended", number, f"c{number}")
    await server.execute("ZADD", "{fleet}:ended", 11, b"\xff no call")
    assert await calls.sweep() >= 4
    left = await server.execute("ZRANGE", "{fleet}:ended", 0, -1)
    assert [member for member in left if member.startswith(b"c")] == [b"c1", b"c2", b"c4", b"c5", b"c7", b"c8"]


async def test_index_entries_without_a_call_are_swept_but_not_while_young(calls, server):
    await server.execute("ZADD", "{fleet}:calls", 1, "old")
    seconds, _ = await server.execute("TIME")
    await server.execute("ZADD", "{fleet}:calls", int(seconds) * 1000, "young")
    await active(calls)
    assert await calls.sweep() == 1
    assert sorted(await calls.live()) == ["c1", "young"]


async def test_a_live_call_that_fell_out_of_the_index_is_put_back_by_touch(calls, server):
    await active(calls)
    await server.execute("DEL", "{fleet}:calls")
    assert await calls.touch("c1")
    assert await calls.live() == ["c1"]
    await calls.end("c1", reason="ended", detail="")
    assert not await calls.touch("c1")
    assert not await calls.touch("unknown")


# Redis emptied


async def test_edge_and_worker_restore_a_lost_call_in_any_order(calls, server):
    claimed = await active(calls)
    before = await calls.read("c1")
    worker = {"owner": "w1", "we": claimed.we}
    edge = {"edge": "e1", "ee": claimed.ee}
    known_to_edge = {"state": "active", "media_format": "raw/mulaw"}
    known_to_worker = {"state": "active", "session_id": "s1", "bridge": "main", "settings": {"x": 1}}
    steps = [(known_to_edge, edge), (known_to_worker, worker)]
    for order in (steps, steps[::-1]):
        await server.execute("FLUSHALL")
        for fields, side in order:
            assert await calls.restore("c1", fields, **side) == "active"
        record = await calls.read("c1")
        assert (record.owner, record.we, record.edge, record.ee) == ("w1", before.we, "e1", before.ee)
        assert (record.session_id, record.media_format, record.settings) == ("s1", "raw/mulaw", {"x": 1})
        assert await calls.live() == ["c1"]
        assert await server.execute("TTL", KEYS.call) > 0


async def test_a_restore_never_goes_back_to_a_lower_epoch_or_out_of_the_end(calls):
    first = await active(calls)
    second = await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=first.we)
    await calls.restore("c1", {"state": "active"}, owner="w1", we=first.we)
    assert (await calls.read("c1")).owner == "w2"
    await calls.restore("c1", {"state": "active"}, owner="w3", we=second.we + 1)
    assert (await calls.read("c1")).owner == "w3"
    await calls.end("c1", reason="ended", detail="")
    assert await calls.restore("c1", {"state": "active"}, owner="w4", we=second.we + 9) == "ended"
    assert (await calls.read("c1")).state == "ended"
    assert await calls.live() == []


async def test_everything_works_when_the_server_loses_its_scripts_all_the_time(calls, server):
    async def flush():
        await server.execute("SCRIPT", "FLUSH")

    await flush()
    await calls.attach("c1", edge="e1", new=NEW)
    await flush()
    claimed = await calls.claim("c1", worker="w1", seen_owner="", seen_we=0)
    await flush()
    await calls.activate("c1", we=claimed.we, session_id="s")
    await flush()
    await calls.end("c1", reason="ended", detail="")
    await flush()
    await calls.finished("c1")
    assert (await calls.read("c1")).finish == "done"


# Reading, forgetting, commands


async def test_a_forgotten_call_leaves_no_key(calls, server):
    claimed = await active(calls)
    await write_line(server, claimed.we)
    await calls.heard("c1", "1-1", 1, False)
    assert await calls.forget("c1")
    assert await server.execute("KEYS", "*") == []
    assert not await calls.forget("c1")


async def test_what_was_heard_of_an_unknown_call_is_not_kept(calls, server):
    await calls.heard("c1", "1-1", 1, False)
    assert await server.execute("KEYS", "*") == []


async def test_fleets_on_one_redis_do_not_see_each_other(server):
    one, two = (Calls(server, fleet, transcript_ttl=DAY) for fleet in ("fleet", "other"))
    await one.attach("c1", edge="e1", new=NEW)
    assert (await one.live(), await two.live()) == (["c1"], [])
    assert await server.execute("EXISTS", "{fleet}:calls") == 1


async def test_pages_of_the_index_go_on_behind_a_call_though_many_came_in_its_millisecond(server, calls):
    await server.execute(
        "ZADD", "{fleet}:calls", *(part for n in range(7) for part in ("5", f"c{n}")), "4", "a", "6", "b"
    )
    pages, after = [], (0, "")
    while page := await calls.live_page(2, after):
        pages += [cid for _, cid in page]
        await server.execute("ZREM", "{fleet}:calls", page[-1][1])
        after = page[-1]
    assert pages == ["a", *(f"c{n}" for n in range(7)), "b"]


async def test_personal_data_is_not_in_the_representation_of_a_record(calls):
    await calls.attach("c1", edge="e1", new=NEW)
    assert "+1555" not in repr(await calls.read("c1"))


async def test_a_command_is_begun_once_and_answered(server, calls):
    commands = Commands(server)
    await calls.attach("c1", edge="e1", new=NEW)
    we = (await calls.claim("c1", worker="w1", seen_owner="", seen_we=0)).we
    results = await asyncio.gather(*(commands.begin("c1", "id-1", we=we) for _ in range(10)))
    assert sorted(map(str, results)) == sorted([*[str(we)] * 9, "None"])
    waiting = asyncio.create_task(commands.wait_answer("reply:id-1", 5))
    await commands.answer("reply:id-1", b"ok")
    assert await waiting == b"ok"
    assert await commands.wait_answer("reply:id-2", 0.05) is None
    await commands.answer("reply:id-3", b"late")
    left = await ttls(server)
    assert 0 < left["call:{c1}:commands"] <= 600 and 0 < left["reply:id-3"] <= 30


async def test_a_command_is_begun_by_the_owner_only_and_not_when_it_was_given_up(server, calls):
    commands = Commands(server)
    assert await commands.give_up("unknown", "id-1") == 0
    assert await server.execute("KEYS", "*") == []
    await calls.attach("c1", edge="e1", new=NEW)
    we = (await calls.claim("c1", worker="w1", seen_owner="", seen_we=0)).we
    assert await commands.give_up("c1", "given up") == 0
    assert await commands.begin("c1", "given up", we=we) == 0
    assert await commands.begin("c1", "begun", we=we) is None
    assert await commands.give_up("c1", "begun") == we
    later = (await calls.claim("c1", worker="w2", seen_owner="w1", seen_we=we)).we
    with pytest.raises(Fenced):
        await commands.begin("c1", "late", we=we)
    assert await commands.begin("c1", "begun", we=later) == we


async def test_marks_of_commands_are_few_and_only_old_ones_go(server, calls):
    commands = Commands(server)
    await calls.attach("c1", edge="e1", new=NEW)
    we = (await calls.claim("c1", worker="w1", seen_owner="", seen_we=0)).we
    await server.execute("HSET", KEYS.commands, *(part for n in range(200) for part in (f"old-{n}", f"{we} 1 x")))
    assert await commands.begin("c1", "id-1", we=we) is None
    assert await commands.begin("c1", "id-2", we=we) is None
    assert await server.execute("HKEYS", KEYS.commands) == [b"id-1", b"id-2"]


async def test_cancelling_gives_up_the_wait_only(calls):
    await calls.attach("c1", edge="e1", new=NEW)
    task = asyncio.create_task(calls.read("c1"))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (await calls.read("c1")).cid == "c1"
