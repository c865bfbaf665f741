"""A primary behind sentinels: what a failover costs two pods in the middle of a call."""

import pytest

from bridge_shared.errors import ConfigError, RedisUnavailable
from bridge_shared.redis import connection
from bridge_shared.redis.connection import connect
from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import GREETING, configuration, running
from redis_topologies import PASSWORD, QUOTED, Sentinels, started, traffic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def servers():
    with started(Sentinels) as all_of_them:
        yield all_of_them


@pytest.fixture
def redis(servers):
    """All servers up and in agreement, whatever the test before did to them."""
    servers.settle()
    return servers


async def test_two_pods_and_a_call(redis, eventually):
    async with traffic(redis.url) as call:
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


async def test_a_killed_primary_costs_no_frame_no_line_and_nobodys_life(redis, eventually, capsys):
    async with traffic(redis.url) as call:
        await call.more(eventually)
        primary = redis.primary()
        primary.kill()
        await call.more(eventually)
        assert redis.primary() is not primary
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("sentinel, primary killed"))


async def test_a_failover_by_hand_costs_no_frame_no_line_and_nobodys_life(redis, eventually, capsys):
    """The former primary lives on as a replica, so it is not its connections that tell."""
    async with traffic(redis.url) as call:
        await call.more(eventually)
        primary = redis.primary()
        redis.sentinels[0].command("SENTINEL", "FAILOVER", "mymaster", password=PASSWORD)
        await eventually(lambda: redis.primary() is not primary)
        await call.more(eventually)
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("sentinel, failover by hand"))


async def test_a_frozen_primary_costs_no_frame_no_line_and_nobodys_life(redis, eventually, capsys):
    async with traffic(redis.url) as call:
        await call.more(eventually)
        primary = redis.primary()
        primary.pause()
        await call.more(eventually)
        primary.resume()
        await call.more(eventually)
        await call.end(eventually)
    with capsys.disabled():
        print("\n" + call.report("sentinel, primary frozen"))


async def test_an_idle_connection_leaves_a_primary_that_was_replaced_before_it_wakes_up(redis, eventually):
    """For about ten seconds it would take writes that nobody ever sees."""
    server = await connect(redis.url, name="idle")
    await server.execute("SET", "k", "before")
    former = redis.primary()
    former.pause()
    try:
        await eventually(lambda: redis.primary() is not former)
        await eventually(lambda: server._commands._lane._wire.place.arguments["port"] != former.port)
        former.resume()
        await server.execute("SET", "k", "after")
        assert "role:master" in redis.info(former), "nobody has told it yet, so the test proves something"
        assert former.command("GET", "k", password=PASSWORD) == "before"
        assert redis.primary().command("GET", "k", password=PASSWORD) == "after"
    finally:
        former.resume()
        await server.close()


async def test_a_silent_sentinel_is_passed_over(redis):
    redis.sentinels[0].pause()
    try:
        server = await connect(redis.url, name="pod-1")
        assert await server.execute("PING") == b"PONG"
        await server.close()
    finally:
        redis.sentinels[0].resume()


async def test_a_name_that_no_sentinel_knows_is_said(redis, monkeypatch):
    monkeypatch.setattr(connection, "REACH_SECONDS", 0.5)
    with pytest.raises(RedisUnavailable, match=r"REDIS_URL: .* no primary named 'yourmaster'"):
        await connect(redis.url.replace("mymaster", "yourmaster"), name="pod-1")


async def test_a_wrong_password_is_a_matter_for_the_operator(redis):
    for login in (f":{QUOTED}@", f"default:{QUOTED}@"):
        server = await connect(redis.url.replace(f":{QUOTED}@", login), name="pod-1")
        await server.close()
    for login in (":wrong@", ""):
        with pytest.raises(ConfigError, match=r"^REDIS_URL: Redis refused the user name or password"):
            await connect(redis.url.replace(f":{QUOTED}@", login), name="pod-1")


async def test_the_policy_of_the_primary_is_looked_at(redis):
    redis.primary().command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", password=PASSWORD)
    try:
        with pytest.raises(ConfigError, match="allkeys-lru"):
            await connect(redis.url, name="pod-1")
    finally:
        redis.primary().command("CONFIG", "SET", "maxmemory-policy", "noeviction", password=PASSWORD)
