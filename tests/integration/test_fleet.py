"""Who is alive, what pods say about themselves, and calls on offer."""

import asyncio

import pytest

from bridge_shared.errors import RedisUnavailable
from bridge_shared.redis import fleet as fleet_module
from bridge_shared.redis import liveness
from bridge_shared.redis.connection import connect
from bridge_shared.redis.fleet import Fleet, Offers
from bridge_shared.redis.liveness import Watch

BEAT = 0.02


class Member:
    def __init__(self, server, pod, role="worker", *, tag="fleet", info=None, on_beat=None):
        self.fleet = Fleet(server, tag, pod, role)
        self.info = {"load": 0, "bridges": ["main"]} if info is None else info
        self.task = asyncio.create_task(self.fleet.run(lambda: self.info, BEAT, on_beat))

    async def stop(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def server(redis_url):
    server = await connect(redis_url, name="pod")
    yield server
    await server.close()


@pytest.fixture
async def own(redis_server):
    server = await connect(redis_server.url, name="pod")
    yield server
    await server.close()


@pytest.fixture
async def member():
    """Makes members and stops them after the test."""
    members = []

    def make(*args, **kwargs):
        members.append(Member(*args, **kwargs))
        return members[-1]

    yield make
    for one in members:
        await one.stop()


@pytest.fixture
def quick(monkeypatch):
    """Liveness at a tenth of its times, like the beats here."""
    for name in ("PROMPT_SECONDS", "SILENT_SECONDS", "UNPLUGGED_SECONDS", "QUIET_SECONDS"):
        monkeypatch.setattr(liveness, name, getattr(liveness, name) / 10)


async def test_pods_see_each_other_and_what_each_says(server, member, eventually):
    worker = member(server, "w1")
    edge = member(server, "e1", "edge", info={"load": 3})

    async def both():
        return set(await worker.fleet.pods()) == {"w1", "e1"}

    await eventually(both)
    pods = await edge.fleet.pods()
    assert (pods["w1"].role, pods["w1"].info) == ("worker", {"load": 0, "bridges": ["main"]})
    assert (pods["e1"].role, pods["e1"].info) == ("edge", {"load": 3})
    assert pods["w1"].beat > 0 and not pods["w1"].dead


async def test_what_a_pod_says_is_written_as_soon_as_it_changes(server, member, eventually):
    worker = member(server, "w1")
    other = Fleet(server, "fleet", "cli", "worker")

    async def says(info):
        pods = await other.pods()
        return "w1" in pods and pods["w1"].info == info

    await eventually(lambda: says({"load": 0, "bridges": ["main"]}))
    worker.info = {"load": 1, "odd": {1: {2}}}
    await eventually(lambda: says({"load": 1, "odd": {"1": "{2}"}}))


async def test_a_pod_that_cannot_say_anything_is_alive_nevertheless(server, member, eventually, caplog):
    worker = Fleet(server, "fleet", "w1", "worker")
    task = asyncio.create_task(worker.run(lambda: 1 // 0, BEAT))

    async def beats():
        pods = await worker.pods()
        return "w1" in pods and (pods["w1"].beat or 0) > 3

    await eventually(beats)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "what this pod says about itself cannot be read" in caplog.text


async def test_a_pod_whose_process_died_is_dead_soon_and_one_that_lives_is_not(server, member, eventually, quick):
    watcher = member(server, "w1")
    living = member(server, "w2")
    dying = member(server, "w3")
    await eventually(lambda: {"w2", "w3"} <= watcher.fleet.watch._subscribed)
    await dying.stop()
    await eventually(lambda: watcher.fleet.watch.dead("w3"))
    assert watcher.fleet.watch.silent("w3") < liveness.SILENT_SECONDS, "found by its subscription"
    assert not watcher.fleet.watch.dead("w2")
    assert living.task.done() is False
    assert (await watcher.fleet.pods())["w3"].dead


async def test_a_pod_that_left_is_off_the_lists_and_dead(server, member, eventually, quick):
    watcher = member(server, "w1")
    leaving = member(server, "w2")
    await eventually(lambda: "w2" in watcher.fleet.watch.pods)
    await leaving.stop()
    await leaving.fleet.leave()
    assert "w2" not in await watcher.fleet.pods()
    await eventually(lambda: watcher.fleet.watch.dead("w2"))


async def test_a_pod_that_is_long_dead_is_swept(server, member, eventually, quick, monkeypatch):
    monkeypatch.setattr(fleet_module, "SWEEP_SECONDS", 0.3)
    watcher = member(server, "w1")
    dying = member(server, "e1", "edge")
    await eventually(lambda: "e1" in watcher.fleet.watch.pods)
    await dying.stop()

    async def swept():
        return "e1" not in await watcher.fleet.pods() and "e1" not in watcher.fleet.watch.pods

    await eventually(swept)
    assert await server.execute("HEXISTS", "{fleet}:beat", "e1") == 0


async def test_nobody_is_dead_while_redis_is_paused_or_restarts(own, redis_server, member, eventually, quick):
    watcher, other = member(own, "w1"), member(own, "w2")
    died = []
    member(own, "w3", on_beat=lambda: died.extend(p for p in watcher.fleet.watch.pods if watcher.fleet.watch.dead(p)))

    async def counter():
        return (await watcher.fleet.pods())["w2"].beat

    await eventually(lambda: {"w1", "w2", "w3"} <= set(watcher.fleet.watch.pods))
    redis_server.pause()
    await eventually(lambda: watcher.fleet.watch._at is None)  # the observer has noticed
    redis_server.resume()
    await eventually(lambda: watcher.fleet.watch._at is not None)
    redis_server.kill()
    await eventually(lambda: watcher.fleet.watch._at is None)
    redis_server.restart()
    await eventually(lambda: other.fleet.watch._at is not None)

    async def all_back():
        try:
            return set(await watcher.fleet.pods()) == {"w1", "w2", "w3"}
        except RedisUnavailable:
            return False

    await eventually(all_back)
    before = await counter()

    async def beats_on():
        return await counter() > before + 10

    await eventually(beats_on)
    assert died == []


async def test_beats_and_info_come_back_at_once_after_flushall(own, redis_server, member, eventually):
    watcher = member(own, "w1")

    async def listed():
        pods = await watcher.fleet.pods()
        return "w1" in pods and pods["w1"].info

    await eventually(listed)
    redis_server.command("FLUSHALL")
    redis_server.command("SCRIPT", "FLUSH")
    await eventually(listed, 2.0)  # sooner than the 5 s at which it is said anyhow


async def test_hearts_beat_on_at_maxmemory(own, redis_server, member, eventually):
    watcher = member(own, "w1")
    await eventually(lambda: watcher.fleet.watch.counter("w1"))
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    before = watcher.fleet.watch.counter("w1")
    await eventually(lambda: watcher.fleet.watch.counter("w1") > before + 5)
    await watcher.fleet.offer(cid="c1", bridge="main", why="orphan", ee=1, edge="e1")


async def test_killed_connections_do_not_stop_the_heart(own, redis_server, member, eventually):
    watcher = member(own, "w1")
    for _ in range(5):
        before = watcher.fleet.watch.counter("w1") or 0
        redis_server.kill_clients()
        redis_server.kill_clients("pubsub")
        await eventually(lambda before=before: (watcher.fleet.watch.counter("w1") or 0) > before)

    async def subscribed():
        return (await own.execute("PUBSUB", "NUMSUB", "alive:w1"))[1] == 1

    await eventually(subscribed)


async def test_a_listener_hears_every_look_and_its_faults_stop_nothing(server, member, eventually):
    heard = []

    def listen():
        heard.append(1)
        raise ValueError("a fault")

    member(server, "w1", on_beat=listen)
    await eventually(lambda: len(heard) > 3)


async def test_every_key_of_the_fleet_has_a_ttl(server, member, eventually):
    worker, _edge = member(server, "w1"), member(server, "e1", "edge")
    await worker.fleet.offer(cid="c1", bridge="main", why="new", ee=1, edge="e1")

    async def keys():
        return len(await server.execute("KEYS", "*")) == 4

    await eventually(keys)
    for key in await server.execute("KEYS", "*"):
        assert 0 < await server.execute("TTL", key) <= 3600, key


# Offers


class Reader:
    def __init__(self, server, tag="fleet"):
        self.got = []
        self.fault = False
        self.task = asyncio.create_task(Offers(server, tag, self.on_offer).run())

    def on_offer(self, offer):
        self.got.append(offer)
        if self.fault:
            raise ValueError("a fault")

    @property
    def cids(self):
        return [offer.cid for offer in self.got]

    async def stop(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def reader():
    readers = []

    def make(*args, **kwargs):
        readers.append(Reader(*args, **kwargs))
        return readers[-1]

    yield make
    for one in readers:
        await one.stop()


def offering(server, tag="fleet"):
    fleet = Fleet(server, tag, "e1", "edge")

    async def offer(cid, **kwargs):
        return await fleet.offer(**{"bridge": "main", "why": "new", "ee": 7, "edge": "e1", "cid": cid} | kwargs)

    return offer


async def test_every_worker_reads_every_offer(server, reader, eventually):
    one, two = reader(server), reader(server)
    offer = offering(server)
    entry = await offer("c1")
    await offer("c2", why="orphan", owner="w9", we=5, witness=6)
    await eventually(lambda: one.cids == two.cids == ["c1", "c2"])
    first, second = one.got
    assert (first.id, first.bridge, first.why, first.ee, first.edge) == (entry, "main", "new", 7, "e1")
    assert (first.owner, first.we, first.witness) == ("", 0, 0)
    assert (second.why, second.owner, second.we, second.witness) == ("orphan", "w9", 5, 6)


async def test_a_worker_that_starts_reads_the_offers_of_the_last_30_s_only(server, reader, eventually):
    seconds, _ = await server.execute("TIME")
    now = int(seconds) * 1000
    flat = "bridge", "main", "why", "new", "ee", 1, "edge", "e1", "owner", "", "we", 0, "witness", 0
    await server.execute("XADD", "{fleet}:offers", f"{now - 60_000}-0", "cid", "old", *flat)
    await server.execute("XADD", "{fleet}:offers", f"{now - 20_000}-0", "cid", "recent", *flat)
    one = reader(server)
    await eventually(lambda: one.cids)
    await offering(server)("new")
    await eventually(lambda: one.cids == ["recent", "new"])


async def test_an_offer_that_cannot_be_read_and_a_fault_in_the_listener_stop_nothing(server, reader, eventually):
    one = reader(server)
    one.fault = True
    await server.execute("XADD", "{fleet}:offers", "*", "x", "y")
    await server.execute("XADD", "{fleet}:offers", "*", "cid", "c0", "bridge", "b", "why", "new", "ee", "no number")
    await offering(server)("c1")
    await offering(server)("c2")
    await eventually(lambda: one.cids == ["c1", "c2"])


async def test_offers_are_read_through_killed_connections_and_flushall(own, redis_server, reader, eventually):
    one = reader(own)
    offer = offering(own)
    for n in range(5):
        await offer(f"c{n}")
        redis_server.kill_clients()
        await eventually(lambda n=n: f"c{n}" in one.cids)
    redis_server.command("FLUSHALL")
    await eventually(lambda: own._commands.up)
    await offer("after")
    await eventually(lambda: "after" in one.cids)
    assert one.cids == [*(f"c{n}" for n in range(5)), "after"]


async def test_offers_of_an_emptied_server_whose_clock_is_behind_are_read(server, reader, eventually):
    one = reader(server)
    await offering(server)("c1")
    await eventually(lambda: one.cids == ["c1"])
    await server.execute("DEL", "{fleet}:offers")
    flat = "bridge", "main", "why", "new", "ee", 1, "edge", "e1", "owner", "", "we", 0, "witness", 0
    await server.execute("XADD", "{fleet}:offers", "5-1", "cid", "past", *flat)
    await eventually(lambda: "past" in one.cids)


async def test_fleets_do_not_see_each_others_offers(server, reader, eventually):
    one = reader(server, "one")
    await offering(server, "two")("c2")
    await offering(server, "one")("c1")
    await eventually(lambda: one.cids)
    assert one.cids == ["c1"]


# The observer, by numbers


STEP = liveness.STEP_SECONDS


class Looks:
    """A watch that is polled every step by a clock of numbers."""

    def __init__(self, **kwargs):
        self.watch = Watch(**kwargs)
        self.now = 100.0
        self.beats = {}

    def look(self, times=1, *, still=(), unplugged=(), missing=(), step=STEP, connection=1):
        for _ in range(times):
            self.now += step
            for pod in ("w1", "w2"):
                if pod not in still:
                    self.beats[pod] = self.beats.get(pod, 0) + 1
            counters = {pod: n for pod, n in self.beats.items() if pod not in missing}
            self.watch.poll(self.now, counters, {pod: int(pod not in unplugged) for pod in self.beats}, connection)


@pytest.fixture
def looks():
    looks = Looks()
    looks.look(20)  # beyond the quiet period after the first look
    return looks


def test_a_silent_pod_is_dead_after_2_5_s_and_not_before(looks):
    looks.look(9, still=["w1"])
    assert not looks.watch.dead("w1")
    looks.look(1, still=["w1"])
    assert looks.watch.dead("w1")
    assert not looks.watch.dead("w2")


def test_a_silent_pod_without_its_subscription_is_dead_after_half_a_second(looks):
    looks.look(1, still=["w1"], unplugged=["w1"])
    assert not looks.watch.dead("w1")
    looks.look(1, still=["w1"], unplugged=["w1"])
    assert looks.watch.dead("w1")


def test_a_missing_subscription_alone_is_no_death(looks):
    looks.look(40, unplugged=["w1"])
    assert not looks.watch.dead("w1")


def test_a_missing_subscription_counts_only_if_it_was_seen_on_the_same_connection(looks):
    looks.look(4, still=["w1"], unplugged=["w1"], connection=2)
    assert not looks.watch.dead("w1")


def test_behind_a_proxy_only_silence_counts():
    looks = Looks(subscriptions=False)
    looks.look(20)
    looks.look(9, still=["w1"], unplugged=["w1"])
    assert not looks.watch.dead("w1")
    looks.look(1, still=["w1"], unplugged=["w1"])
    assert looks.watch.dead("w1")


def test_a_dead_pod_that_beats_again_is_alive(looks):
    looks.look(20, still=["w1"])
    looks.look(1)
    assert not looks.watch.dead("w1")


def test_a_counter_that_goes_back_is_alive(looks):
    looks.look(9, still=["w1"])
    looks.beats["w1"] = 1
    looks.look(1, still=["w1"])
    assert not looks.watch.dead("w1")


def test_a_counter_that_is_gone_is_silence(looks):
    looks.look(10, still=["w1"], missing=["w1"])
    assert looks.watch.dead("w1")


def test_a_late_look_proves_nothing_and_keeps_everybody_alive_for_2_s(looks):
    looks.look(20, still=["w1"])
    assert looks.watch.dead("w1")
    looks.look(1, still=["w1", "w2"], step=5.0)
    assert not looks.watch.dead("w1")
    looks.look(7, still=["w1", "w2"], unplugged=["w1"])
    assert not looks.watch.dead("w1"), "within 2 s of the bad look"
    looks.look(1, still=["w1", "w2"], unplugged=["w1"])
    assert looks.watch.dead("w1")
    assert not looks.watch.dead("w2"), "the time before the late look does not count"


def test_a_look_that_failed_proves_nothing_and_keeps_everybody_alive_for_2_s(looks):
    looks.look(20, still=["w1"])
    looks.watch.failed(looks.now + STEP)
    assert not looks.watch.dead("w1")
    looks.look(8, still=["w1"], unplugged=["w1"])
    assert not looks.watch.dead("w1")
    looks.look(1, still=["w1"], unplugged=["w1"])
    assert looks.watch.dead("w1")


def test_a_pod_never_seen_is_dead_when_it_was_waited_for_long_enough(looks):
    assert not looks.watch.dead("w9")
    looks.look(9)
    assert not looks.watch.dead("w9")
    looks.look(1)
    assert looks.watch.dead("w9")


def test_a_forgotten_pod_is_new_when_it_is_asked_about_again(looks):
    looks.look(20, still=["w1"])
    looks.watch.forget("w1")
    assert not looks.watch.dead("w1")
    assert looks.watch.counter("w2") == looks.beats["w2"]
