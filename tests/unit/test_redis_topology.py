"""What servers say about where keys are: the map of slots, and what an error reply means."""

import pytest
from redis import exceptions
from redis._parsers.base import BaseParser

from bridge_shared.errors import RedisRefused, RedisUnavailable
from bridge_shared.redis.cluster import Cluster, Node
from bridge_shared.redis.sentinel import Sentinel
from bridge_shared.redis.wire import Misplaced, ScriptMissing, StreamIdTooSmall, TryAgain, Wire, translate

ASKED = ("10.0.0.9", 7000)


def cluster(*seeds):
    return Cluster(seeds or [ASKED], {"db": 0, "username": None, "password": "p"})


def said(*ranges, cluster_=None):
    """A cluster after one of its nodes has said this."""
    where = cluster_ or cluster()
    where._adopt(ASKED, list(ranges))
    where._doubtful = False
    return where


async def owner(where, key):
    return (await where.locate(key)).address


# "a" is in slot 15495, "b" in 3300, "c" in 7365.


async def test_a_key_belongs_to_the_node_whose_range_holds_its_slot():
    where = said(
        [10923, 16383, [b"10.0.0.3", 7000, b"id"], [b"10.0.0.4", 7000, b"id", [b"hostname", b"h"]]],
        [0, 5460, [b"10.0.0.1", 7000, b"id"]],
        [5461, 10922, ["10.0.0.2", "7000"]],
    )
    assert await owner(where, "a") == await owner(where, "x{a}y") == "10.0.0.3:7000"
    assert await owner(where, "b") == "10.0.0.1:7000"
    assert await owner(where, "c") == await owner(where, "call:{c}:transcript") == "10.0.0.2:7000"
    assert (await where.locate("a")).arguments["password"] == "p"


async def test_a_node_that_does_not_know_its_own_name_has_that_by_which_it_was_asked():
    for host in (None, b"", b"?"):
        assert await owner(said([0, 16383, [host, 7001, b"id"]]), "a") == "10.0.0.9:7001"


async def test_a_slot_without_an_owner_is_an_outage():
    where = said([0, 5460, [b"10.0.0.1", 7000, b"id"]])
    with pytest.raises(RedisUnavailable, match="owns slot 15495"):
        await where.locate("a")
    assert where._doubtful


@pytest.mark.parametrize(
    "reply", [b"OK", None, [], [[1]], [[0, 1, b"x"]], [["x", 1, [b"h", 1]]], [[0, 1, [b"h", b"x"]]]]
)
def test_a_map_that_cannot_be_read_is_an_outage(reply):
    with pytest.raises(RedisUnavailable):
        cluster()._adopt(ASKED, reply)


async def test_a_node_keeps_its_place_from_one_map_to_the_next_and_one_that_lost_its_slots_is_left():
    where = said([0, 8191, [b"a", 1]], [8192, 16383, [b"b", 1]])
    b, a = await where.locate("a"), await where.locate("b")
    left = []
    for place in (a, b):
        wire = Wire(where, "")
        wire.drop = lambda place=place: left.append(place)
        place.wires.add(wire)
    said([0, 16383, [b"a", 1], [b"b", 1]], cluster_=where)
    assert await where.locate("a") is await where.locate("b") is a
    assert left == [b]


def test_moved_is_asked_about_where_it_points_and_ask_changes_no_map():
    where = said([0, 16383, [b"a", 1]])
    place = where._place(("a", 1))
    ask = Misplaced("ASK", "b", 2, asking=True)
    assert where.doubt(place, ask)
    assert (ask.place.address, where._doubtful) == ("b:2", False)
    moved = Misplaced("MOVED", "", 3)
    assert where.doubt(place, moved)
    assert (moved.place.address, where._doubtful, where._nodes[0]) == ("a:3", True, ("a", 3))


def test_a_node_that_fails_is_asked_last():
    where = said([0, 16383, [b"a", 1], [b"b", 1], [b"c", 1]])
    assert where._nodes[0] == ASKED
    where.doubt(where._place(("a", 1)), RedisUnavailable("gone"))
    assert (where._nodes[-1], len(where._nodes)) == (("a", 1), 4)
    assert where._nodes[0] != ASKED, "another may know better"


def test_a_connection_for_many_keys_stays_when_one_of_them_has_moved():
    where = said([0, 16383, [b"a", 1]])
    node = Node(where, where._place(("a", 1)))
    assert not node.doubt(node.place, Misplaced("MOVED", "b", 1))
    assert not node.doubt(node.place, Misplaced("ASK", "b", 1, asking=True))
    assert node.doubt(node.place, Misplaced("CLUSTERDOWN"))
    assert where._doubtful


def test_a_sentinel_that_named_a_wrong_primary_is_asked_last():
    where = Sentinel([("s1", 1), ("s2", 1)], "mymaster", {"db": 0})
    where.doubt(where._place(("a", 1)), RedisUnavailable("refused"))
    assert [s.address for s in where._sentinels] == ["s2:1", "s1:1"]


def error(reply):
    """What redis-py makes of an error reply."""
    return BaseParser.parse_error(reply)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("READONLY You can't write against a read only replica.", Misplaced),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Misplaced),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", Misplaced),
        ("CLUSTERDOWN The cluster is down", Misplaced),
        ("CLUSTERDOWN Hash slot not served", Misplaced),
        ("TRYAGAIN Multiple keys request during rehashing of slot", TryAgain),
        ("LOADING Redis is loading the dataset in memory", RedisUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", RedisUnavailable),
        ("MISCONF Redis is configured to save RDB snapshots", RedisUnavailable),
        ("BUSY Redis is busy running a script", RedisUnavailable),
        ("OOM command not allowed when used memory > 'maxmemory'.", RedisUnavailable),
        ("NOSCRIPT No matching script. Please use EVAL.", ScriptMissing),
        ("ERR The ID specified in XADD is equal or smaller than the target stream top item", StreamIdTooSmall),
        ("CROSSSLOT Keys in request don't hash to the same slot", RedisRefused),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", RedisRefused),
        ("NOAUTH Authentication required.", RedisRefused),
        ("ERR unknown command", RedisRefused),
    ],
)
def test_an_error_reply_says_whether_to_ask_again_and_whether_elsewhere(reply, kind):
    assert type(translate(error(reply))) is kind


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("127.0.0.1", 6381, False)),
        ("MOVED 3999 ::1:6381", ("::1", 6381, False)),
        ("MOVED 3999 :6381", ("", 6381, False)),
        ("ASK 3999 node-1.example:6381", ("node-1.example", 6381, True)),
    ],
)
def test_a_redirection_names_the_server_to_ask(reply, expected):
    ours = translate(error(reply))
    assert (ours.host, ours.port, ours.asking) == expected
    assert isinstance(translate(exceptions.ConnectionError("reset")), RedisUnavailable)
