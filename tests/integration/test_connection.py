"""The one door to Redis: who may come in, what errors become, and what a broken connection costs."""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import shutil
import socket
import subprocess
import time

import pytest

from bridge_shared import metrics
from bridge_shared.errors import ConfigError, RedisRefused, RedisUnavailable
from bridge_shared.redis import connection
from bridge_shared.redis.cluster import Cluster
from bridge_shared.redis.connection import connect
from bridge_shared.redis.embedded import EmbeddedRedis
from bridge_shared.redis.requests import key_of
from bridge_shared.redis.scripts import Script
from bridge_shared.redis.sentinel import Sentinel
from bridge_shared.redis.url import topology
from bridge_shared.redis.wire import Lone, Place, Wire, pack


@pytest.fixture
async def server(redis_url):
    server = await connect(redis_url, name="pod-1")
    yield server
    await server.close()


@pytest.fixture
async def own(redis_server):
    """A `Server` on a process that the test may harm."""
    server = await connect(redis_server.url, name="pod-1")
    yield server
    await server.close()


def clients(listing: bytes) -> list[str]:
    return [line.split(" name=", 1)[1].split(" ")[0] for line in listing.decode().splitlines() if " name=" in line]


async def test_a_command_is_answered_as_the_server_sent_it(server):
    assert await server.execute("SET", "k", b"\x00\xff") == b"OK"
    assert await server.execute("GET", "k") == b"\x00\xff"
    assert await server.execute("GET", "absent") is None


async def test_an_error_reply_is_refused_and_the_connection_goes_on(server):
    await server.execute("SET", "k", "text")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await server.execute("LPUSH", "k", "x")
    assert await server.execute("GET", "k") == b"text"


async def test_many_tasks_share_one_connection_and_each_gets_its_own_reply(server):
    replies = await asyncio.gather(*(server.execute("ECHO", str(n)) for n in range(500)))
    assert replies == [str(n).encode() for n in range(500)]
    assert clients(await server.execute("CLIENT", "LIST")).count("pod-1:commands") == 1


async def test_a_cancelled_command_does_not_shift_the_replies_of_others(server):
    first = asyncio.create_task(server.execute("ECHO", "cancelled"))
    others = [asyncio.create_task(server.execute("ECHO", str(n))) for n in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(*others) == [str(n).encode() for n in range(20)]
    assert await server.execute("ECHO", "after") == b"after"


async def test_a_blocking_command_holds_up_nobody_else(server):
    waiting = asyncio.create_task(server.blocking("BLPOP", "list", "5", seconds=5))
    assert await server.execute("ECHO", "meanwhile") == b"meanwhile"
    await server.execute("RPUSH", "list", "x")
    assert await waiting == [b"list", b"x"]


async def test_after_its_connection_was_killed_the_next_command_works(server, redis_url):
    other = await connect(redis_url, name="killer")
    try:
        for _ in range(5):
            await other.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with contextlib.suppress(RedisUnavailable):  # written to the dying connection
                await server.execute("PING")
            assert await server.execute("PING") == b"PONG"
    finally:
        await other.close()


async def test_listeners_hear_of_a_new_connection_and_a_faulty_one_harms_nobody(own, redis_server, eventually, caplog):
    heard = []
    await own.execute("PING")
    own.on_connect.add(lambda: heard.append(1))
    own.on_connect.add(lambda: 1 // 0)
    redis_server.kill_clients()
    await eventually(lambda: heard)
    assert await own.execute("PING") == b"PONG"
    assert "a listener for new connections failed" in caplog.text


async def test_a_paused_server_is_unavailable_and_nothing_is_sent_twice(own, redis_server, eventually):
    await own.execute("SET", "n", 0)
    redis_server.pause()
    for _ in range(2):
        with pytest.raises(RedisUnavailable):
            await own.execute("INCR", "n")
    redis_server.resume()

    async def back():
        with contextlib.suppress(RedisUnavailable):
            return await own.execute("PING")

    await eventually(back)
    # The first was written before the pause was noticed, and is carried out; the second never left.
    assert int(await own.execute("GET", "n")) <= 1


async def test_a_command_given_while_the_server_restarts_waits_for_it(own, redis_server):
    await own.execute("PING")
    redis_server.kill()
    waiting = asyncio.create_task(own.execute("ECHO", "patient"))
    await asyncio.to_thread(redis_server.restart)
    try:
        assert await waiting == b"patient"
    except RedisUnavailable:  # on a slow machine the restart takes longer than a command may
        assert await own.execute("ECHO", "patient") == b"patient"


async def test_a_script_runs_on_a_server_that_has_lost_it(server):
    script = Script("#!lua\nreturn ARGV[1]\n")
    assert await server.script(script, [], ["a"]) == b"a"
    await server.execute("SCRIPT", "FLUSH")
    assert await server.script(script, [], ["b"]) == b"b"
    assert await server.execute("EVALSHA", script.sha, 0, "c") == b"c"


async def test_a_server_without_memory_is_unavailable_not_refusing(own):
    await own.execute("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisUnavailable, match="maxmemory"):
        await own.execute("SET", "k", "v")
    await own.execute("CONFIG", "SET", "maxmemory", "0")
    assert await own.execute("SET", "k", "v") == b"OK"


async def test_a_dedicated_connection_gives_up_a_reply_that_is_late(own, redis_server):
    wire = own.dedicated("test")
    assert await wire.call("PING") == b"PONG"
    redis_server.pause()
    with pytest.raises(RedisUnavailable, match="in time"):
        await wire.call("BLPOP", "nothing", "0.05", seconds=0.2)
    assert not wire.connected
    redis_server.resume()
    assert await wire.call("PING") == b"PONG"
    assert wire.opened == 2
    await wire.close()


async def test_a_dedicated_connection_that_was_cancelled_in_a_read_begins_anew(server):
    wire = server.dedicated("test")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await wire.call("BLPOP", "nothing", "5", seconds=9)
    assert await wire.call("ECHO", "mine") == b"mine"
    await wire.close()


async def test_several_commands_in_one_write_answer_one_by_one_errors_among_them(server):
    wire = server.dedicated("test")
    a, b, c = await wire.calls(pack("SET", "k", "v"), pack("LPUSH", "k", "v"), pack("GET", "k"))
    assert (a, c) == (b"OK", b"v")
    assert isinstance(b, RedisRefused)
    await wire.close()


async def test_a_loading_or_demoted_server_is_unavailable(own, redis_server, eventually):
    await own.execute("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(RedisUnavailable, match="read only"):
        await own.execute("SET", "k", "v")
    await own.execute("REPLICAOF", "NO", "ONE")

    async def writable():
        with contextlib.suppress(RedisUnavailable):
            return await own.execute("SET", "k", "v")

    await eventually(writable)


async def test_a_server_that_has_become_a_replica_is_not_taken_for_the_primary(redis_server):
    place = Place({"host": "127.0.0.1", "port": redis_server.port}, check="primary")
    wire = Wire(Lone(place), "test")
    assert await wire.call("PING") == b"PONG"
    await wire.close()
    redis_server.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(RedisUnavailable, match="is a slave now"):
        await wire.call("PING")
    assert not wire.connected
    await wire.close()


async def test_leaving_a_place_closes_its_connections_even_while_they_are_made(redis_server, eventually):
    place = Place({"host": "127.0.0.1", "port": redis_server.port})
    standing, being_made = Wire(Lone(place), "one"), Wire(Lone(place), "two")
    await standing.open()
    reading = asyncio.create_task(standing.call("BLPOP", "nothing", "5", seconds=9))
    await asyncio.sleep(0)
    redis_server.pause()
    connecting = asyncio.create_task(being_made.open())
    await eventually(lambda: being_made.connected)
    place.leave()
    for task in (reading, connecting):
        with pytest.raises(RedisUnavailable):
            await task
    await standing.close()
    await being_made.close()
    assert not place.wires


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused_by_name(redis_server, policy):
    redis_server.command("CONFIG", "SET", "maxmemory-policy", policy)
    with pytest.raises(ConfigError, match=rf"^BRIDGE_MEDIA_REDIS_URL: .*{policy}.*noeviction"):
        await connect(redis_server.url, name="pod-1", setting="BRIDGE_MEDIA_REDIS_URL")


async def test_a_server_that_hides_its_policy_is_used_with_a_warning(redis_server, caplog):
    redis_server.command("ACL", "SETUSER", "bridge", "on", ">pw", "~*", "&*", "+@all", "-info")
    with caplog.at_level(logging.WARNING):
        server = await connect(redis_server.url.replace("//", "//bridge:pw@"), name="pod-1")
    assert await server.execute("PING") == b"PONG"
    await server.close()
    assert "hides its eviction policy" in caplog.text


@pytest.mark.parametrize("login", ["bridge:wrong@", "nobody:x@", ":wrong@"])
async def test_a_wrong_password_is_a_matter_for_the_operator(redis_server, login):
    redis_server.command("ACL", "SETUSER", "bridge", "on", ">pw", "~*", "+@all")
    with pytest.raises(ConfigError, match=r"^REDIS_URL: Redis refused the user name or password") as caught:
        await connect(redis_server.url.replace("//", f"//{login}"), name="pod-1")
    assert "wrong" not in str(caught.value)


async def test_no_password_where_one_is_needed_is_a_matter_for_the_operator(redis_server):
    redis_server.command("CONFIG", "SET", "requirepass", "pw")
    with pytest.raises(ConfigError, match="password"):
        await connect(redis_server.url, name="pod-1")


async def test_a_server_in_protected_mode_is_a_matter_for_the_operator():
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing; says which address of this machine leads out
        except OSError:
            pytest.skip("this machine has no other address than its own")
        address = outward.getsockname()[0]
    server = EmbeddedRedis(("--bind", f"127.0.0.1 {address}"))
    server.start_sync()
    try:
        with pytest.raises(ConfigError, match=r"^REDIS_URL: .* Set a password for it"):
            await connect(f"redis://{address}:{server.port}", name="pod-1")
    finally:
        server.stop_sync()


async def test_nobody_there_is_unavailable_within_the_time_it_has(redis_server, monkeypatch):
    monkeypatch.setattr(connection, "REACH_SECONDS", 0.3)
    redis_server.kill()
    with pytest.raises(RedisUnavailable, match="no Redis answered within"):
        await connect(redis_server.url, name="pod-1")


async def test_a_paused_server_cannot_be_reached_within_the_time_it_has(redis_server, monkeypatch):
    monkeypatch.setattr(connection, "REACH_SECONDS", 0.3)
    redis_server.pause()
    with pytest.raises(RedisUnavailable, match="no Redis answered within"):
        await connect(redis_server.url, name="pod-1")


@pytest.mark.parametrize(("mode", "says"), [("cluster", r"redis\+cluster://"), ("sentinel", r"redis\+sentinel://")])
def test_what_is_no_server_of_its_own_is_refused_with_the_url_that_it_needs(mode, says):
    with pytest.raises(ConfigError, match=says):
        connection._check({"redis_mode": mode, "maxmemory_policy": "noeviction"}, "REDIS_URL")


async def test_a_server_of_its_own_is_no_cluster(redis_url):
    with pytest.raises(ConfigError, match=r"not part of a cluster\. Write redis://"):
        await connect(redis_url.replace("redis://", "redis+cluster://"), name="pod-1")


async def test_a_server_of_its_own_is_no_sentinel(redis_url, monkeypatch):
    monkeypatch.setattr(connection, "REACH_SECONDS", 0.3)
    url = redis_url.replace("redis://", "redis+sentinel://").replace("/0", "/mymaster/0")
    with pytest.raises(RedisUnavailable, match=r"no sentinel knows the primary: unknown command"):
        await connect(url, name="pod-1")


def test_an_old_server_is_refused():
    with pytest.raises(ConfigError, match=r"this is Redis 6\.2\.14\. Use Redis 7\.0"):
        connection._check({"redis_version": "6.2.14", "maxmemory_policy": "noeviction"}, "REDIS_URL")
    connection._check({"redis_version": "7.0.0", "maxmemory_policy": "noeviction"}, "REDIS_URL")
    connection._check({"redis_version": "10.1.0", "maxmemory_policy": "noeviction"}, "REDIS_URL")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://u:secret@a", "scheme 'http'"),
        ("u:secret@a:6379", "scheme ''"),
        ("", "scheme ''"),
        ("redis://u:secret@a:port/0", "host or port cannot be read"),
        ("redis://u:secret@a:99999/0", "host or port cannot be read"),
        ("redis://u:secret@a/first", "database is not a number"),
        ("redis://u:secret@a/0?socket_timeout=5", "option 'socket_timeout'"),
        ("redis://u:secret@a/0?ssl_ca_certs=x", "option 'ssl_ca_certs'"),
        ("redis://u:secret@a/0?ssl=true", "option 'ssl'"),
        ("redis://u:secret@a/0/1", "database is not a number"),
        ("redis://u:secret@a,b/0", "several hosts"),
        ("redis+sentinel://u:secret@a:26379,b:26379", "what the sentinels call the primary"),
        ("redis+sentinel://u:secret@a:26379,:26379/mymaster/0", "names no host"),
        ("redis+sentinel://u:secret@a/mymaster/first", "database is not a number"),
        ("redis+sentinel://u:secret@a/mymaster/0/1", "database is not a number"),
        ("redis+sentinel://u:secret@a/mymaster?socket_timeout=5", "option 'socket_timeout'"),
        ("redis+sentinel://u:secret@a/mymaster?ssl=yes", "option 'ssl'"),
        ("redis+cluster://u:secret@a:port", "host or port cannot be read"),
        ("redis+cluster://u:secret@[::1", "host or port cannot be read"),
        ("redis+cluster://u:secret@", "names no host"),
        ("redis+cluster://u:secret@a:7000/1", "only the database 0"),
        ("redis+cluster://u:secret@a:7000?ssl_ca_certs=x", "option 'ssl_ca_certs'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url, says):
    with pytest.raises(ConfigError, match=r"^REDIS_URL: ") as caught:
        topology(url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_url_is_taken_apart():
    place = await topology("rediss://me:p%40ss@[::1]:6380/3?ssl_cert_reqs=none").locate("")
    assert place.tls
    assert place.arguments == {
        "host": "::1",
        "port": 6380,
        "db": 3,
        "username": "me",
        "password": "p@ss",
        "ssl_cert_reqs": "none",
    }
    assert (await topology("redis://").locate("")).arguments["host"] == "localhost"


def test_a_url_of_sentinels_is_taken_apart():
    where = topology("redis+sentinel://me:p%40ss@s1,[::2]:1,s3:26380/my%2Fmaster/3?ssl=true&ssl_cert_reqs=none")
    assert isinstance(where, Sentinel)
    assert where._name == "my/master"
    assert [s.address for s in where._sentinels] == ["s1:26379", "::2:1", "s3:26380"]
    assert all(s.tls and s.arguments["ssl_cert_reqs"] == "none" for s in where._sentinels)
    assert not any("password" in s.arguments for s in where._sentinels), "not before they ask for it"
    primary = where._place(("r1", 6379))
    assert primary.tls and primary.check == "primary"
    assert primary.arguments == {
        "host": "r1",
        "port": 6379,
        "db": 3,
        "username": "me",
        "password": "p@ss",
        "ssl_cert_reqs": "none",
    }


def test_a_url_of_a_cluster_is_taken_apart():
    where = topology("redis+cluster://:p%40@ss@n1,n2:7000/0")
    assert isinstance(where, Cluster)
    assert where._seeds == (("n1", 6379), ("n2", 7000))
    node = where._place(("n3", 1))
    assert not node.tls
    assert node.arguments == {"host": "n3", "port": 1, "db": 0, "username": None, "password": "p@@ss"}


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("PING", ""),
        ("HGETALL k", "k"),
        ("XINFO STREAM k", "k"),
        ("EVAL return 2 k l a", "k"),
        ("EVALSHA 00 0 a", ""),
        ("XREAD COUNT 1 BLOCK 0 STREAMS k 0-0", "k"),
        ("BLPOP k 5", "k"),
        ("script FLUSH", ""),
    ],
)
def test_the_first_key_of_a_command_is_found(command, key):
    assert key_of(tuple(command.split())) == key
    assert key_of(tuple(word.encode() if word == "k" else word for word in command.split())) == key


async def test_the_database_of_the_url_is_used(redis_url):
    second = await connect(redis_url.removesuffix("/0") + "/2", name="pod-1")
    await second.execute("SET", "k", "in two")
    await second.close()
    first = await connect(redis_url, name="pod-1")
    assert await first.execute("GET", "k") is None
    await first.execute("SELECT", 2)
    assert await first.execute("GET", "k") == b"in two"
    await first.close()


async def test_rediss_speaks_tls_and_checks_the_certificate(tmp_path):
    if not has_tls():
        pytest.skip("needs a redis-server with TLS")
    certificate, key = make_certificate(tmp_path)
    probe = EmbeddedRedis()  # a free port for TLS, beside the plain one that tells when the server is up
    await probe.start()
    tls_port = probe.port
    await probe.stop()
    redis = EmbeddedRedis(
        ["--tls-port", str(tls_port), "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no"]
    )
    await redis.start()
    try:
        good = await connect(f"rediss://localhost:{tls_port}/0?ssl_ca_certs={certificate}", name="pod-1")
        assert await good.execute("PING") == b"PONG"
        await good.close()
        with pytest.raises(RedisUnavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            await connect(f"rediss://localhost:{tls_port}/0", name="pod-1")
    finally:
        await redis.stop()


def has_tls():
    binary = shutil.which("redis-server")
    return binary is not None and b"libssl" in subprocess.run(["ldd", binary], capture_output=True).stdout


def make_certificate(folder):
    """A certificate for localhost that signs itself; the paths of it and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def test_a_script_that_the_server_does_not_hold_yet_is_no_error_of_redis(server):
    def refused() -> float:
        return metrics.registry.get_sample_value("bridge_redis_errors_total", {"kind": "refused"}) or 0.0

    before = refused()
    await server.execute("SCRIPT", "FLUSH")
    assert await server.script(Script("return 'ran'"), ["k"]) == b"ran"
    assert refused() == before
    with pytest.raises(RedisRefused):
        await server.execute("NONSENSE")
    assert refused() == before + 1
