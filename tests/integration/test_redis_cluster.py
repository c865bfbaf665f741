"""A Redis Cluster: commands, inboxes and heartbeats find their node, and find it again when it is another."""

import asyncio

import pytest

from bridge_shared.errors import ConfigError, RedisUnavailable
from bridge_shared.redis import connection
from bridge_shared.redis.connection import connect
from bridge_shared.redis.scripts import Script
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import GREETING, configuration, running
from redis_topologies import ClusterServers, free_port, started, traffic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def servers():
    with started(ClusterServers) as all_of_them:
        yield all_of_them


@pytest.fixture
def redis(servers):
    """All servers up and in agreement, whatever the test before did to them."""
    servers.settle()
    return servers


@pytest.fixture
async def server(redis):
    server = await connect(redis.url, name="pod-1")
    yield server
    await server.close()


async def test_two_pods_and_a_call(redis, eventually):
    async with traffic(redis.url, strict=True) as call:
        await call.more(eventually)
        await call.end(eventually)


async def test_a_caller_talks_with_the_agent_through_the_whole_bridge(redis):
    bridge = DeepgramBridge(configuration(greeting=GREETING))
    async with SimulatedAgent() as agent, running(bridge, redis.url, agent) as app:
        call = SimulatedCall(app.url, CallPlan(say=("where_is_my_parcel",)))
        report = await call.run()
        assert report.problem is None
        assert report.violations == []
        lines = await app.calls("transcript", call.conversation_id)
    assert [line.content for line in lines][:2] == [GREETING, "Where is my parcel?"]


async def test_commands_go_to_the_node_of_their_key(server):
    keys = [f"k{n}" for n in range(50)]
    await asyncio.gather(*(server.execute("SET", key, key) for key in keys))
    assert await asyncio.gather(*(server.execute("GET", key) for key in keys)) == [key.encode() for key in keys]
    assert len(server._commands._lanes) == 3
    assert await server.execute("PING") == b"PONG"
    script = Script("#!lua\nreturn redis.call('GET', KEYS[1])\n")
    assert await asyncio.gather(*(server.script(script, [key]) for key in keys)) == [key.encode() for key in keys]
    await server.execute("RPUSH", "list", "x")
    assert await server.blocking("BLPOP", "list", "5", seconds=5) == [b"list", b"x"]


async def test_the_fullest_primary_says_how_full_a_cluster_is(server):
    assert await server.memory_used() is None
    nodes = [server.dedicated("limits", node=place) for place in await server.cluster.primaries()]
    try:
        for node, limit in zip(nodes, ("1000gb", "100mb", "0"), strict=True):
            await node.call("CONFIG", "SET", "maxmemory", limit)
        assert 0.005 < await server.memory_used() < 0.5  # that of 100 MB
    finally:
        for node in nodes:
            await node.call("CONFIG", "SET", "maxmemory", "0")
            await node.close()


@pytest.mark.parametrize("what", ["{}", "inbox:worker-{}", "call:{{call-{}}}"])
async def test_a_killed_primary_costs_no_frame_no_line_and_nobodys_life(redis, eventually, capsys, what):
    """Of the fleet's keys, of an inbox, of the call."""
    async with traffic(redis.url) as call:
        await call.more(eventually)
        tag = call.tag.strip("{}")
        key = what.format(tag) if what != "{}" else call.tag
        primary = redis.owner(key)
        primary.kill()
        await call.more(eventually)
        assert redis.owner(key) is not primary
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report(f"cluster, primary of {what.format('…')} killed"))


async def test_a_frozen_primary_costs_no_frame_no_line_and_nobodys_life(redis, eventually, capsys):
    async with traffic(redis.url) as call:
        await call.more(eventually)
        primary = redis.owner(call.tag)
        primary.pause()
        try:
            await call.more(eventually)
        finally:
            primary.resume()
        await call.more(eventually)
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("cluster, primary of the fleet's keys frozen"))


async def test_a_failover_by_hand_costs_no_frame_no_line_and_nobodys_life(redis, eventually, capsys):
    """The two nodes hand over without losing anything, so nothing may have to be sent twice by the pods."""
    async with traffic(redis.url, strict=True) as call:
        await call.more(eventually)
        for key in (call.tag, f"inbox:{call.edge.pod}"):
            primary = redis.owner(key)
            redis.replica(primary).command("CLUSTER", "FAILOVER")
            await eventually(lambda key=key, primary=primary: redis.elsewhere(key, primary))
            await call.more(eventually)
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("cluster, two failovers by hand"))


async def test_slots_that_move_cost_no_frame_no_line_and_nobodys_life(redis, eventually, capsys):
    async with traffic(redis.url, strict=True) as call:
        await call.more(eventually)
        keys = [call.tag, f"inbox:{call.edge.pod}", f"inbox:{call.worker.pod}", f"{{{call.cid}}}"]
        channel = f"alive:{call.worker.pod}"

        def subscribed():
            return redis.owner(call.tag).command("PUBSUB", "NUMSUB", channel).split() == [channel, "1"]

        for key in keys * 2:
            await asyncio.to_thread(redis.move, key)
            await call.more(eventually, frames=20)
            # The subscription that stands for the pod's life goes where the others look for it.
            await eventually(subscribed)
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("cluster, eight slots moved"))


async def test_a_slot_that_stays_half_moved_costs_nothing_either(redis, eventually, capsys):
    """The inbox's node answers ASK for as long as the operator forgets about it."""
    async with traffic(redis.url, strict=True) as call:
        await call.more(eventually)
        key = f"inbox:{call.worker.pod}"
        old = redis.owner(key)
        new = await asyncio.to_thread(redis.move, key, close=False)
        await call.more(eventually)
        assert redis.owner(key) is old
        slot = old.command("CLUSTER", "KEYSLOT", key)
        assert new.command("CLUSTER", "COUNTKEYSINSLOT", slot) == "1"
        redis.close(slot, old, new)
        await call.more(eventually)
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("cluster, slot of an inbox half moved"))


async def test_a_command_for_a_slot_on_its_way_goes_where_its_key_is(redis, server):
    await server.execute("SET", "{s}a", "moved")
    old = redis.owner("{s}")
    new = await asyncio.to_thread(redis.move, "{s}", close=False)
    assert await server.execute("GET", "{s}a") == b"moved"
    await server.execute("SET", "{s}new", "made where the slot goes")
    slot = old.command("CLUSTER", "KEYSLOT", "{s}")
    assert (old.command("CLUSTER", "COUNTKEYSINSLOT", slot), new.command("CLUSTER", "COUNTKEYSINSLOT", slot)) == (
        "0",
        "2",
    )
    both = Script("#!lua\nreturn redis.call('MGET', KEYS[1], KEYS[2])\n")
    assert await server.script(both, ["{s}a", "{s}new"]) == [b"moved", b"made where the slot goes"]
    with pytest.raises(RedisUnavailable, match="Multiple keys request during rehashing"):
        await server.script(both, ["{s}a", "{s}missing"])
    waiting = asyncio.create_task(server.script_again(both, ["{s}a", "{s}missing"]))
    await asyncio.sleep(0)
    redis.close(slot, old, new)
    assert await waiting == [b"moved", None]


async def test_a_cluster_that_lost_a_part_is_unavailable_until_it_has_it_again(redis, server, eventually):
    await server.execute("SET", "k", "v")
    primary = redis.owner("k")
    parts = [redis.replica(primary), primary]
    for part in parts:
        part.kill()
    with pytest.raises(RedisUnavailable, match="no reply within"):
        await server.execute_again("GET", "k")
    redis.settle()

    async def back():
        try:
            return await server.execute("SET", "k", "v") == b"OK"
        except RedisUnavailable:
            return False

    await eventually(back)


async def test_any_node_that_answers_tells_of_the_others(redis, monkeypatch):
    dead = f"127.0.0.1:{free_port()}"
    paused = redis.servers[5]
    paused.pause()
    try:
        url = f"redis+cluster://{dead},127.0.0.1:{paused.port},127.0.0.1:{redis.servers[4].port}"
        server = await connect(url, name="pod-1")
        assert await server.execute("SET", "k", "v") == b"OK"
        await server.close()
    finally:
        paused.resume()
    monkeypatch.setattr(connection, "REACH_SECONDS", 0.3)
    with pytest.raises(RedisUnavailable, match="no node of the cluster answers"):
        await connect(f"redis+cluster://{dead}", name="pod-1")


async def test_the_policy_of_every_primary_is_looked_at(redis):
    for key in ("a", "b", "c", "d", "e", "f"):
        node = redis.owner(key)
        node.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ConfigError, match="allkeys-lru"):
                await connect(redis.url, name="pod-1")
        finally:
            node.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_a_node_is_not_taken_for_a_server_of_its_own(redis):
    with pytest.raises(ConfigError, match=r"this is a node of a cluster. Write redis\+cluster://"):
        await connect(f"redis://127.0.0.1:{redis.servers[0].port}", name="pod-1")
