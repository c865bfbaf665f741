"""Frames between pods: in order, not lost while Redis holds, and what happens while it does not."""

import asyncio
import contextlib

import pytest
import uvloop

from bridge_shared.frames import Frame, Kind, pack
from bridge_shared.redis import outbox as outbox_module
from bridge_shared.redis.connection import connect
from bridge_shared.redis.inboxes import Inbox
from bridge_shared.redis.outbox import Outbox


def frame(seq, kind=Kind.TURNEND, body=None):
    return Frame(1, "call-1", 1, 1, seq, 0, 0, int(kind), body if body is not None else [[1, 1]])


def audio(seq, nbytes=160):
    return frame(seq, Kind.UP, [bytes(nbytes)])


class Pair:
    """Pod `b` with an inbox, pod `a` with an outbox."""

    def __init__(self, server, linger=0.0):
        self.server = server
        self.got = []
        self.senders = set()
        self.lost = 0
        self.undelivered = []
        self.faults = 0
        self.inbox = Inbox(server, "b", self.deliver, lost=self.on_lost)
        self.outbox = Outbox(server, "a", lambda pod, frames: self.undelivered.append((pod, frames)), linger=linger)
        self.tasks = []

    def deliver(self, sender, frames):
        self.senders.add(sender)
        self.got += frames
        if self.faults:
            self.faults -= 1
            raise ValueError("a fault in a call")

    def on_lost(self):
        self.lost += 1

    @property
    def seqs(self):
        return [f.seq for f in self.got]

    def once(self):
        """Sequence numbers as the link takes them: a repeated one counts only the first time."""
        return list(dict.fromkeys(self.seqs))

    def start(self, *, inbox=True, outbox=True):
        for wanted, runner in ((inbox, self.inbox), (outbox, self.outbox)):
            if wanted:
                self.tasks.append(asyncio.create_task(runner.run()))

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def pair_on(url, *, linger=0.0, **which):
    server = await connect(url, name="pod")
    pair = Pair(server, linger)
    try:
        await pair.inbox.open()
        pair.start(**which)
        yield pair
    finally:
        await pair.stop()
        await server.close()


@pytest.fixture
async def pair(redis_url):
    async with pair_on(redis_url) as pair:
        yield pair


@pytest.fixture
async def own(redis_server):
    async with pair_on(redis_server.url) as pair:
        yield pair


async def entries_added(server, key="inbox:b"):
    info = await server.execute("XINFO", "STREAM", key)
    return info[info.index(b"entries-added") + 1]


async def test_frames_arrive_in_the_order_they_were_posted(pair, eventually):
    for seq in range(1000):
        pair.outbox.post("b", frame(seq))
        if seq % 7 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: len(pair.got) >= 1000)
    assert pair.seqs == list(range(1000))
    assert pair.senders == {"a"}
    assert pair.got[5] == frame(5)


async def test_all_frames_of_one_tick_travel_in_one_entry(pair, eventually):
    await eventually(lambda: pair.outbox.up)
    before = await entries_added(pair.server)
    for seq in range(200):
        pair.outbox.post("b", audio(seq))
    await eventually(lambda: len(pair.got) == 200)
    assert await entries_added(pair.server) - before == 1


async def test_audio_does_not_linger_while_there_is_little_of_it(redis_url, eventually):
    async with pair_on(redis_url, linger=60.0) as pair:
        pair.outbox.post("b", frame(1))
        assert await pair.outbox.flush(5)  # there is a connection
        pair.outbox.post("b", audio(2))
        assert await pair.outbox.flush(5)


async def test_under_load_audio_lingers_for_more_of_it_and_goes_with_whatever_cannot_wait(redis_url, eventually):
    async with pair_on(redis_url, linger=60.0) as pair:
        sent = 0
        while True:  # one in each tick, until they wait for each other
            sent += 1
            pair.outbox.post("b", audio(sent))
            if not await pair.outbox.flush(0.05):
                break
            assert sent < 200, "it never lingers"
        before = await entries_added(pair.server)
        for seq in (sent + 1, sent + 2):
            pair.outbox.post("b", audio(seq))
            assert not await pair.outbox.flush(0.01)
        pair.outbox.post("b", frame(sent + 3))
        await eventually(lambda: pair.seqs == list(range(1, sent + 4)))
        assert await entries_added(pair.server) == before + 1


async def test_audio_alone_does_not_linger_for_longer_than_it_may(redis_url, eventually):
    async with pair_on(redis_url, linger=0.05) as pair:
        for seq in range(1, 100):
            pair.outbox.post("b", audio(seq))
            await asyncio.sleep(0)
        await eventually(lambda: pair.seqs == list(range(1, 100)))


async def test_each_destination_has_its_own_order(pair, eventually):
    others = {}
    boxes = []
    for pod in ("c", "d"):
        others[pod] = []
        box = Inbox(pair.server, pod, lambda _, frames, pod=pod: others[pod].extend(f.seq for f in frames))
        await box.open()
        boxes.append(asyncio.create_task(box.run()))
    for seq in range(300):
        for pod in ("b", "c", "d"):
            pair.outbox.post(pod, frame(seq))
        if seq % 11 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: len(pair.got) == len(others["c"]) == len(others["d"]) == 300)
    assert pair.seqs == others["c"] == others["d"] == list(range(300))
    for box in boxes:
        box.cancel()
    await asyncio.gather(*boxes, return_exceptions=True)


async def test_what_was_posted_before_the_reader_came_is_read_by_it(redis_url, eventually):
    async with pair_on(redis_url, inbox=False) as pair:
        for seq in range(5):
            pair.outbox.post("b", frame(seq))
        assert await pair.outbox.flush(5)
        pair.start(outbox=False)
        await eventually(lambda: len(pair.got) == 5)


async def test_frames_for_a_pod_without_an_inbox_come_back(pair, eventually):
    pair.outbox.post("gone", frame(1))
    pair.outbox.post("gone", frame(2))
    await eventually(lambda: pair.undelivered)
    assert pair.undelivered == [("gone", [frame(1), frame(2)])]
    assert await pair.server.execute("EXISTS", "inbox:gone") == 0, "a writer must not create an inbox"


async def test_a_fault_in_one_call_does_not_stop_the_frames_of_others(pair, eventually, caplog):
    pair.faults = 3
    for seq in range(6):
        pair.outbox.post("b", frame(seq))
        assert await pair.outbox.flush(5)
    await eventually(lambda: len(pair.got) == 6)
    assert pair.inbox.failed == 3
    assert caplog.text.count("frames could not be handled") == 1, "said once per sender and kind of error"


async def test_a_fault_in_the_undeliverable_listener_does_not_stop_the_outbox(redis_url, eventually):
    server = await connect(redis_url, name="pod")
    outbox = Outbox(server, "a", lambda pod, frames: 1 // 0)
    task = asyncio.create_task(outbox.run())
    outbox.post("gone", frame(1))
    assert await outbox.flush(5)
    outbox.post("gone", frame(2))
    assert await outbox.flush(5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.close()


@pytest.mark.parametrize(
    "fields",
    [("f", "x", "b", b"\xc1garbage"), ("f", "x"), ("x", "y"), ("f", b"\xff\xfe", "b", pack([frame(1)])), ("b", "")],
)
async def test_an_entry_that_cannot_be_read_is_counted_and_skipped(pair, eventually, fields):
    await pair.server.execute("XADD", "inbox:b", "*", *fields)
    pair.outbox.post("b", frame(7))
    await eventually(lambda: pair.seqs == [7])
    assert pair.inbox.unreadable == 1


async def test_frames_of_another_shape_are_left_out_and_the_rest_delivered(pair, eventually):
    import msgpack

    blob = msgpack.packb([[9, "of another version"], list(frame(3)), "no frame"])
    await pair.server.execute("XADD", "inbox:b", "*", "f", "x", "b", blob)
    await eventually(lambda: pair.seqs == [3])


async def test_a_frame_that_cannot_travel_does_not_take_others_along(pair, eventually):
    pair.outbox.post("b", frame(1))
    pair.outbox.post("b", frame(2, Kind.CLOSE, [object()]))
    pair.outbox.post("b", frame(3, Kind.ACTIVITY, [[1, 1], {"n": 1 << 70}]))
    pair.outbox.post("b", frame(4))
    await eventually(lambda: len(pair.got) == 2)
    assert pair.seqs == [1, 4]
    assert pair.outbox.dropped == 2
    assert await pair.outbox.flush(5)
    assert pair.outbox.held_bytes == 0


async def test_killed_connections_cost_no_frame_and_no_order(own, redis_server, eventually):
    """Duplicates are allowed; the link drops them by their number."""
    done = asyncio.Event()

    async def kill():
        while not done.is_set():
            await asyncio.to_thread(redis_server.kill_clients)
            await asyncio.sleep(0.02)

    killer = asyncio.create_task(kill())
    for seq in range(3000):
        own.outbox.post("b", frame(seq))
        if seq % 10 == 0:
            await asyncio.sleep(0.001)
    done.set()
    await killer
    await eventually(lambda: len(own.once()) == 3000)
    assert own.once() == list(range(3000))
    assert own.lost == 0


async def test_a_paused_server_costs_no_frame(own, redis_server, eventually):
    for seq in range(50):
        own.outbox.post("b", frame(seq))
    await eventually(lambda: len(own.got) == 50)
    redis_server.pause()
    for seq in range(50, 100):
        own.outbox.post("b", frame(seq))
        await asyncio.sleep(0)
    await eventually(lambda: not own.outbox.up)
    for seq in range(100, 150):
        own.outbox.post("b", frame(seq))
    redis_server.resume()
    await eventually(lambda: len(own.once()) == 150)
    assert own.once() == list(range(150))
    assert await own.outbox.flush(5)
    assert own.outbox.held_bytes == 0


async def test_what_a_full_socket_held_up_is_written_once_there_is_room(own, redis_server, eventually):
    await eventually(lambda: own.outbox.up)
    redis_server.pause()
    own.outbox.post("b", audio(0, 8 * 1024 * 1024))
    await eventually(lambda: not own.outbox._lane._wire.writable)
    own.outbox.post("b", frame(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # its turn to be written has passed
    redis_server.resume()
    assert await own.outbox.flush(5)
    await eventually(lambda: len(own.got) >= 2)
    assert own.once() == [0, 1]


async def test_an_emptied_server_is_noticed_and_frames_flow_again(own, redis_server, eventually):
    own.outbox.post("b", frame(1))
    await eventually(lambda: own.seqs == [1])
    redis_server.command("FLUSHALL")
    await eventually(lambda: own.lost == 1)
    own.outbox.post("b", frame(2))
    await eventually(lambda: own.seqs == [1, 2])


async def test_something_else_under_the_inboxs_name_is_cleared_away(pair, eventually):
    pair.outbox.post("b", frame(1))
    await eventually(lambda: pair.seqs == [1])
    await pair.server.execute("SET", "inbox:b", "garbage")
    await eventually(lambda: pair.lost == 1)
    for seq in range(2, 6):
        pair.outbox.post("b", frame(seq))
        assert await pair.outbox.flush(5)
    await eventually(lambda: pair.seqs == [1, 2, 3, 4, 5])


async def test_a_server_that_comes_back_empty_is_noticed_and_frames_flow_again(own, redis_server, eventually):
    own.outbox.post("b", frame(1))
    await eventually(lambda: own.seqs == [1])
    redis_server.kill()
    await eventually(lambda: not own.outbox.up)
    own.outbox.post("b", frame(2))
    redis_server.restart()
    await eventually(lambda: own.lost == 1)
    # The frame either came after the inbox was opened again, or was reported as undeliverable.
    await eventually(lambda: 2 in own.seqs or own.undelivered)
    own.outbox.post("b", frame(3))
    await eventually(lambda: 3 in own.seqs)


async def test_an_inbox_that_went_back_in_time_is_read_from_its_beginning(pair, eventually):
    """An older replica was promoted, or the clock of a new server is behind: ids below the cursor are news."""
    pair.outbox.post("b", frame(1))
    await eventually(lambda: pair.seqs == [1])
    await pair.server.execute("DEL", "inbox:b")
    await pair.server.execute("XADD", "inbox:b", "5-1", "f", "a", "b", pack([frame(2)]))
    await eventually(lambda: pair.lost == 1)
    await pair.server.execute("XADD", "inbox:b", "5-2", "f", "a", "b", pack([frame(3)]))
    await eventually(lambda: {2, 3} <= set(pair.seqs))


async def test_a_server_that_lost_its_scripts_is_no_matter(own, redis_server, eventually):
    for seq in range(3):
        redis_server.command("SCRIPT", "FLUSH")
        own.outbox.post("b", frame(seq))
        await eventually(lambda seq=seq: seq in own.seqs)
    redis_server.command("FLUSHALL")
    redis_server.command("SCRIPT", "FLUSH")
    await eventually(lambda: own.lost == 1)


async def test_delivered_entries_are_deleted_and_the_inbox_has_a_ttl(pair, eventually):
    for seq in range(20):
        pair.outbox.post("b", frame(seq))
        assert await pair.outbox.flush(5)
    await eventually(lambda: len(pair.got) == 20)

    async def trimmed():
        return await pair.server.execute("XLEN", "inbox:b") <= 1

    await eventually(trimmed)
    assert 0 < await pair.server.execute("PTTL", "inbox:b") <= 60_000


async def test_an_inbox_that_was_closed_is_gone(redis_url):
    async with pair_on(redis_url) as pair:
        await pair.stop()
        await pair.inbox.close()
        assert await pair.server.execute("KEYS", "*") == []


async def test_a_full_outbox_lets_the_oldest_audio_go_and_keeps_control(redis_url, eventually, monkeypatch):
    monkeypatch.setattr(outbox_module, "OUTBOX_BYTES", 100_000)
    async with pair_on(redis_url, outbox=False) as pair:
        for seq in range(2000):
            pair.outbox.post("b", audio(seq) if seq % 10 else frame(seq))
        assert pair.outbox.held_bytes <= 100_000
        assert pair.outbox.dropped > 1000
        pair.start(inbox=False)
        await eventually(lambda: 1999 in pair.seqs)
        assert [seq for seq in pair.seqs if seq % 10 == 0] == list(range(0, 2000, 10)), "control was lost"
        heard = [seq for seq in pair.seqs if seq % 10]
        assert heard == [seq for seq in range(heard[0], 2000) if seq % 10], "not the oldest audio went"


async def test_an_outbox_full_of_large_activities_stays_within_its_bound(redis_url, monkeypatch):
    monkeypatch.setattr(outbox_module, "OUTBOX_BYTES", 100_000)
    server = await connect(redis_url, name="pod")
    outbox = Outbox(server, "a", lambda *_: None)
    for seq in range(100):
        outbox.post("b", frame(seq, Kind.ACTIVITY, [[1, seq], {"text": "x" * 10_000}]))
    assert outbox.held_bytes <= 100_000
    await server.close()


async def test_audio_that_waited_through_an_outage_is_dropped_and_control_is_not(
    own, redis_server, eventually, monkeypatch
):
    monkeypatch.setattr(outbox_module, "AUDIO_SECONDS", 0.2)
    await eventually(lambda: own.outbox.up)
    redis_server.kill()
    await eventually(lambda: not own.outbox.up)
    own.outbox.post("b", audio(1))
    own.outbox.post("b", frame(2))
    old = asyncio.get_running_loop().time() + 0.3
    await eventually(lambda: asyncio.get_running_loop().time() > old)
    redis_server.restart()
    await own.inbox.open()
    await eventually(lambda: own.outbox.up)
    own.outbox.post("b", audio(3))
    await eventually(lambda: 3 in own.seqs)
    assert own.outbox.dropped == 1
    assert 1 not in own.seqs
    assert 2 in own.seqs or own.undelivered


async def test_flush_says_whether_everything_was_answered(own, redis_server):
    own.outbox.post("b", frame(1))
    assert await own.outbox.flush(5)
    redis_server.pause()
    own.outbox.post("b", frame(2))
    assert not await own.outbox.flush(0.05)
    redis_server.resume()
    assert await own.outbox.flush(5)


async def test_an_inbox_under_a_server_without_memory_goes_on_reading(own, redis_server, eventually):
    own.outbox.post("b", frame(1))
    await eventually(lambda: own.seqs == [1])
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    own.outbox.post("b", audio(2))
    await eventually(lambda: own.outbox.dropped == 1)
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    own.outbox.post("b", frame(3))
    await eventually(lambda: own.seqs == [1, 3])
    assert own.lost == 0


def test_it_works_on_uvloop_as_well(redis_url, eventually):
    async def main():
        async with pair_on(redis_url) as pair:
            for seq in range(500):
                pair.outbox.post("b", audio(seq))
                if seq % 5 == 0:
                    await asyncio.sleep(0)
            await eventually(lambda: len(pair.got) == 500)
            assert pair.seqs == list(range(500))

            await pair.server.execute("CLIENT", "KILL", "TYPE", "normal")
            pair.outbox.post("b", frame(500))
            await eventually(lambda: 500 in pair.seqs)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
