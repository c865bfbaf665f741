"""The transcript: no line lost, doubled or out of order, whatever Redis does; none from a former owner."""

import asyncio

import pytest

from bridge_shared import metrics
from bridge_shared.redis.calls import CallKeys, Calls
from bridge_shared.redis.connection import connect
from bridge_shared.redis.transcripts import FencedStream

KEYS = CallKeys.of("c1")
DAY = 24 * 3600


class Writer:
    """An owner with its stream, running."""

    def __init__(self, server, epoch, *, key=KEYS.transcript, **kwargs):
        self.fences = 0
        self.stream = FencedStream(server, key, epoch, on_fenced=self.on_fenced, **kwargs)
        self.task = asyncio.create_task(self.stream.run())
        self.n = 0

    def on_fenced(self):
        self.fences += 1

    def say(self, count=1):
        for _ in range(count):
            self.stream.append({"role": "user", "content": f"line {self.n}", "at": "2026-01-01T00:00:00.000Z"})
            self.n += 1

    async def stop(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class World:
    """A call, its owners, and the server they write to."""

    def __init__(self, server):
        self.server = server
        self.calls = Calls(server, "fleet", transcript_ttl=30 * DAY)
        self.writers = []
        self.owner, self.we = "", 0

    async def begin(self):
        await self.calls.attach("c1", edge="e1", new={"bridge": "main"})

    async def claim(self, worker="w1", **kwargs):
        claimed = await self.calls.claim("c1", worker=worker, seen_owner=self.owner, seen_we=self.we)
        self.owner, self.we = worker, claimed.we
        return self.writer(claimed.we, **kwargs)

    def writer(self, epoch, **kwargs):
        writer = Writer(self.server, epoch, **kwargs)
        self.writers.append(writer)
        return writer

    async def contents(self):
        return [line.content for line in await self.calls.transcript("c1")]

    async def ids(self):
        return [line.id for line in await self.calls.transcript("c1")]

    async def close(self):
        for writer in self.writers:
            await writer.stop()
        await self.server.close()


@pytest.fixture
async def world(redis_url):
    world = World(await connect(redis_url, name="w1"))
    await world.begin()
    yield world
    await world.close()


@pytest.fixture
async def own(redis_server):
    """A world on a server that the test may harm."""
    world = World(await connect(redis_server.url, name="w1"))
    await world.begin()
    yield world
    await world.close()


def lines(n, start=0):
    return [f"line {i}" for i in range(start, n)]


async def test_lines_are_stored_in_order_under_the_owners_epoch(world):
    writer = await world.claim()
    before = metrics.transcript_lines._value.get()
    writer.say(50)
    assert writer.stream.pending > 0
    assert await writer.stream.flush(5)
    assert writer.stream.pending == 0
    assert await world.contents() == lines(50)
    assert await world.ids() == [f"{world.we}-{n}" for n in range(1, 51)]
    assert writer.stream.last == f"{world.we}-50"
    assert metrics.transcript_lines._value.get() == before + 50
    (first, *_) = await world.calls.transcript("c1")
    assert (first.role, first.at, first.turn, first.heard_ms) == ("user", "2026-01-01T00:00:00.000Z", "", None)


async def test_numbering_begins_where_it_is_told(world):
    writer = await world.claim(first_seq=7)
    assert writer.stream.append({"content": "x"}) == f"{world.we}-7"
    assert await writer.stream.flush(5)


async def test_a_stream_with_nothing_to_say_is_flushed(world):
    writer = await world.claim()
    assert await writer.stream.flush(5)


async def test_a_former_owner_is_fenced_at_its_first_write_and_stores_nothing_more(world, eventually):
    first = await world.claim("w1")
    first.say(3)
    assert await first.stream.flush(5)
    second = await world.claim("w2")
    first.say(2)
    await eventually(lambda: first.fences == 1)
    assert first.stream.fenced
    assert not await first.stream.flush(5)
    second.stream.append({"content": "from w2"})
    assert await second.stream.flush(5)
    first.say(2)
    assert not await first.stream.flush(0.05)
    assert await world.contents() == [*lines(3), "from w2"]
    assert first.fences == 1


async def test_a_fault_in_the_listener_of_a_fence_is_said_and_nothing_else(world, caplog):
    await world.claim("w1")
    stream = FencedStream(world.server, KEYS.transcript, world.we - 1, on_fenced=lambda: 1 // 0)
    task = asyncio.create_task(stream.run())
    stream.append({"content": "x"})
    assert not await stream.flush(5)
    assert "a fenced stream's listener failed" in caplog.text
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_equal_or_smaller_alone_does_not_count_as_stored(world):
    """Somebody deleted our line, or it never was: the id is used up and the line is not there."""
    writer = await world.claim()
    await world.server.execute("XADD", KEYS.transcript, f"{world.we}-1", "content", "not ours")
    await world.server.execute("XDEL", KEYS.transcript, f"{world.we}-1")
    writer.say(3)
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(3)


async def test_a_line_that_was_stored_by_a_write_without_an_answer_is_not_doubled(world):
    writer = await world.claim()
    assert await writer.stream.flush(5)
    await world.server.execute("XADD", KEYS.transcript, f"{world.we}-1", "role", "user", "content", "line 0")
    writer.say(3)
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(3)
    assert writer.fences == 0


async def test_dying_connections_lose_double_and_swap_no_line(own, redis_server):
    done = asyncio.Event()

    async def kill():
        while not done.is_set():
            await asyncio.to_thread(redis_server.kill_clients)
            await asyncio.sleep(0.01)

    killer = asyncio.create_task(kill())
    writer = await own.claim()
    for _ in range(300):
        writer.say()
        await asyncio.sleep(0.002)
    done.set()
    await killer
    assert await writer.stream.flush(10)
    assert await own.contents() == lines(300)
    assert writer.fences == 0


async def test_a_pause_of_the_server_loses_no_line(own, redis_server, eventually):
    writer = await own.claim()
    writer.say(5)
    assert await writer.stream.flush(5)
    redis_server.pause()
    writer.say(5)
    await eventually(lambda: not own.server._commands.up)
    assert not await writer.stream.flush(0.05)
    writer.say(5)
    redis_server.resume()
    assert await writer.stream.flush(10)
    assert await own.contents() == lines(15)


async def test_a_full_server_makes_lines_wait(own, redis_server):
    writer = await own.claim()
    assert await writer.stream.flush(5)
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    writer.say(5)
    assert not await writer.stream.flush(0.2)
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    assert await writer.stream.flush(5)
    assert await own.contents() == lines(5)


async def test_an_emptied_redis_has_the_whole_transcript_again_once_the_call_is_restored(world, eventually, caplog):
    writer = await world.claim("w1")
    writer.say(5)
    assert await writer.stream.flush(5)
    before = await world.ids()
    await world.server.execute("FLUSHALL")
    writer.say(2)
    assert not await writer.stream.flush(0.1), "without the call nobody knows whose transcript it is"
    await world.calls.restore("c1", {"state": "active"}, owner="w1", we=world.we)
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(7)
    assert (await world.ids())[:5] == before
    assert await world.server.execute("TTL", KEYS.transcript) > 0
    assert caplog.text.count("lines wait for Redis") == 1


async def test_a_server_that_comes_back_empty_gets_acknowledged_lines_again(own, redis_server, eventually):
    """Also when nothing new is said: the new connection alone makes the stream look."""
    writer = await own.claim("w1")
    writer.say(5)
    assert await writer.stream.flush(5)
    redis_server.kill()
    redis_server.restart()
    await eventually(lambda: own.server._commands.up)
    await own.calls.restore("c1", {"state": "active"}, owner="w1", we=own.we)
    assert await writer.stream.flush(5)

    async def whole():
        return await own.contents() == lines(5)

    await eventually(whole)


async def test_a_lost_tail_of_acknowledged_lines_is_written_again(world):
    """What an asynchronous failover does: the new primary never got the last lines."""
    writer = await world.claim()
    writer.say(5)
    assert await writer.stream.flush(5)
    ids = await world.ids()
    entries = await world.calls.entries(KEYS.transcript)
    await world.server.execute("DEL", KEYS.transcript)
    for entry, fields in entries[:3]:
        await world.server.execute("XADD", KEYS.transcript, entry, *[x for pair in fields.items() for x in pair])
    writer.stream.verify()
    assert await writer.stream.flush(5)
    assert (await world.contents(), await world.ids()) == (lines(5), ids)


async def test_a_hole_in_the_middle_is_filled(world):
    writer = await world.claim()
    writer.say(5)
    assert await writer.stream.flush(5)
    await world.server.execute("XDEL", KEYS.transcript, f"{world.we}-2")
    writer.stream.verify()
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(5)


async def test_a_successor_writes_its_predecessors_lines_again_as_well(world):
    first = await world.claim("w1")
    first.say(4)
    assert await first.stream.flush(5)
    await first.stop()
    second_epoch = await world.calls.claim("c1", worker="w2", seen_owner="w1", seen_we=world.we)
    history = await world.calls.entries(KEYS.transcript)
    second = world.writer(second_epoch.we, history=history)
    second.n = 4
    second.say(2)
    assert await second.stream.flush(5)
    before = await world.ids()
    await world.server.execute("FLUSHALL")
    await world.calls.restore("c1", {"state": "active"}, owner="w2", we=second_epoch.we)
    second.say(1)
    assert await second.stream.flush(5)
    assert await world.contents() == lines(7)
    assert (await world.ids())[:6] == before


async def test_lines_of_others_that_we_do_not_know_are_left_alone(world):
    first = await world.claim("w1")
    first.say(2)
    assert await first.stream.flush(5)
    second = await world.claim("w2")  # without a history
    second.stream.append({"content": "from w2"})
    second.stream.verify()
    assert await second.stream.flush(5)
    assert await world.contents() == [*lines(2), "from w2"]


async def test_a_zombie_cannot_write_the_stream_anew_after_flushall(world, eventually):
    first = await world.claim("w1")
    first.say(2)
    assert await first.stream.flush(5)
    second = await world.claim("w2")
    assert await second.stream.flush(5)
    await world.server.execute("FLUSHALL")
    await world.calls.restore("c1", {"state": "active"}, owner="w2", we=world.we)
    first.say(1)
    await eventually(lambda: first.fences == 1)
    assert await world.contents() == []


async def test_the_owner_goes_on_under_an_epoch_it_claimed_anew(world, eventually):
    """Its own claim fences its own stream; lines that were waiting keep their ids."""
    writer = await world.claim("w1")
    writer.say(2)
    assert await writer.stream.flush(5)
    again = await world.calls.claim("c1", worker="w1", seen_owner="w1", seen_we=world.we)
    writer.say(1)
    await eventually(lambda: writer.fences == 1)
    writer.stream.renew(again.we)
    writer.say(1)
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(4)
    assert await world.ids() == [f"{world.we}-1", f"{world.we}-2", f"{world.we}-3", f"{again.we}-1"]


async def test_something_else_under_the_streams_name_is_replaced_by_the_owner(world):
    writer = await world.claim()
    writer.say(2)
    assert await writer.stream.flush(5)
    await world.server.execute("SET", KEYS.transcript, "garbage")
    writer.say(1)
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(3)
    await world.server.execute("SET", KEYS.transcript, "garbage")
    writer.stream.verify()
    assert await writer.stream.flush(5)
    assert await world.contents() == lines(3)


async def test_a_long_transcript_with_any_text_survives_being_written_anew(world):
    writer = await world.claim()
    texts = ["", "\r\n*3\r\n", "ü😀\x00", "x" * 100_000, *(f"utterance {n}" for n in range(2000))]
    for text in texts:
        writer.stream.append({"role": "assistant", "content": text, "at": "t", "turn": "1-1"})
    assert await writer.stream.flush(20)
    await world.server.execute("DEL", KEYS.transcript)
    writer.stream.verify()
    assert await writer.stream.flush(20)
    assert await world.contents() == texts


async def test_function_calls_are_fenced_in_a_stream_of_their_own(world, eventually):
    first = await world.claim("w1", key=KEYS.functions)
    before = metrics.transcript_lines._value.get()
    first.say(2)
    assert await first.stream.flush(5)
    assert len(await world.calls.entries(KEYS.functions)) == 2
    assert await world.contents() == []
    assert metrics.transcript_lines._value.get() == before
    await world.claim("w2")
    first.say(1)
    await eventually(lambda: first.fences == 1)


async def test_lines_said_before_it_runs_are_stored_when_it_does(world):
    claimed = await world.calls.claim("c1", worker="w1", seen_owner="", seen_we=0)
    stream = FencedStream(world.server, KEYS.transcript, claimed.we)
    for text in lines(3):
        stream.append({"content": text})
    task = asyncio.create_task(stream.run())
    assert await stream.flush(5)
    assert await world.contents() == lines(3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not world.server.on_connect
