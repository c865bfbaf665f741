"""Whatever is set wrongly is told in one sentence on standard error, with exit code 2, before any call is taken."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_shared import config
from bridge_shared.errors import ConfigError
from conftest import RedisServer
from deepgram_audiocodes_bridge import local
from pods import environment

APP = """
import asyncio
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge
bridge = DeepgramBridge(BridgeConfig(deepgram_api_key="test-key", deepgram_config={"agent": {}}, port=8000))
asyncio.run(bridge.run())
"""
GROUP = """
import asyncio
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge
async def main():
    async with asyncio.TaskGroup() as tasks:
        for port in (8001, 8002):
            config = BridgeConfig(deepgram_api_key="test-key", deepgram_config={"agent": {}}, port=port)
            tasks.create_task(DeepgramBridge(config).run())
asyncio.run(main())
"""
GATHER = """
import asyncio
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge
bridges = [
    DeepgramBridge(BridgeConfig(deepgram_api_key="test-key", deepgram_config={"agent": {}}, port=port))
    for port in (8001, 8002)
]
async def main():
    await asyncio.gather(*(bridge.run() for bridge in bridges))
asyncio.run(main())
"""
NOWHERE = "redis://127.0.0.1:1"
BRIDGECTL = ("-m", "deepgram_audiocodes_bridge.cli")


def complaint(folder: Path, *arguments: str, **variables: str) -> str:
    """Run this environment's Python in that folder; the one sentence that it says before it exits with 2."""
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment({"BRIDGE_LOG_LEVEL": "ERROR", "BRIDGE_HOST": "127.0.0.1", **variables}),
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert run.returncode == 2, run.stderr
    said = [line for line in run.stderr.splitlines() if "watchdog" not in line]  # which tells of a busy machine
    assert len(said) == 1, run.stderr
    (sentence,) = said
    return sentence.removeprefix("bridgectl: ").removeprefix("error: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "group.py").write_text(GROUP)
    (tmp_path / "gather.py").write_text(GATHER)
    (tmp_path / "unfinished.py").write_text("import asyncio\nbridge = = None\n")
    (tmp_path / "needy.py").write_text("import asyncio\nimport no_such_library\n")
    (tmp_path / "empty.py").write_text("print('hello')\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "strict.py").write_text("raise SystemExit('CRM_URL is not set.')\n")
    (tmp_path / "keyless.py").write_text("import os\nprint(os.environ['CRM_TOKEN'])\n")
    (tmp_path / "broken.py").write_text("prices = {}\nprint(prices['parcel'])\n")
    return tmp_path


@contextlib.contextmanager
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.mark.parametrize(
    ("role", "variables", "sentence"),
    [
        (
            "worker",
            {"BRIDGE_WORKER_CALL": "7"},
            "BRIDGE_WORKER_CALL: there is no such setting. "
            "Did you mean BRIDGE_WORKER_CALLS? `bridgectl config` lists them all",
        ),
        (
            "edge",
            {"BRIDGE_DRAIN_SECONDS": "soon"},
            "BRIDGE_DRAIN_SECONDS: 'soon' is not a number. Set it to 0-7200 or leave it unset",
        ),
        ("worker", {"REDIS_URL": ""}, "REDIS_URL: is not set. Set it to the Redis that all pods share"),
        ("edge", {"REDIS_URL": ""}, "REDIS_URL: is not set. Set it to the Redis that all pods share"),
    ],
    ids=["unknown", "ill-typed", "worker without Redis", "edge without Redis"],
)
def test_a_variable_that_cannot_be_used_is_named_with_its_mend(
    role: str, variables: dict[str, str], sentence: str, folder: Path
) -> None:
    assert complaint(folder, *BRIDGECTL, role, "app.py", **{"REDIS_URL": NOWHERE, **variables}) == sentence


@pytest.mark.parametrize(
    ("app", "sentence"),
    [
        ("missing.py", "is no file. Give the path of the Python file that ends in asyncio.run(bridge.run())"),
        ("unfinished.py", "cannot be run: SyntaxError: invalid syntax (line 2). Mend the file"),
        (
            "needy.py",
            "cannot be run: ModuleNotFoundError: No module named 'no_such_library' (line 2). Install what it imports",
        ),
        (
            "keyless.py",
            "cannot be run: KeyError: 'CRM_TOKEN' (line 2). Set the variable CRM_TOKEN, or mend the file",
        ),
        ("broken.py", "cannot be run: KeyError: 'parcel' (line 2). Mend the file"),
        ("empty.py", "ran no bridge. End it with asyncio.run(bridge.run())"),
        ("leaving.py", "ran no bridge. End it with asyncio.run(bridge.run())"),
        ("strict.py", "stopped before it ran a bridge: CRM_URL is not set. Give it what it asks for"),
    ],
)
def test_an_application_that_cannot_run_is_named_with_the_line(
    app: str, sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError) as refused:
        local.worker(Path(app), config.load(redis_url=NOWHERE))
    assert str(refused.value) == f"APP {app}: {sentence}"


def test_an_application_that_stops_itself_is_told_apart_from_a_drain(folder: Path) -> None:
    sentence = "APP strict.py: stopped before it ran a bridge: CRM_URL is not set. Give it what it asks for"
    assert complaint(folder, *BRIDGECTL, "worker", "strict.py", REDIS_URL=NOWHERE) == sentence


async def test_a_redis_that_does_not_answer_a_whole_cluster_in_one_process_is_a_wrong_setting(folder: Path) -> None:
    ways = [(*BRIDGECTL, "up", "group.py"), ("group.py",)]
    told = (asyncio.to_thread(complaint, folder, *way, REDIS_URL=NOWHERE, DEEPGRAM_API_KEY="x") for way in ways)
    for sentence in await asyncio.gather(*told):
        assert sentence.startswith("REDIS_URL: no Redis answered within 2")
        assert sentence.endswith(". Start that Redis, or name one that runs")


def test_a_pod_gives_up_a_redis_that_does_not_come(folder: Path) -> None:
    variables = {"REDIS_URL": NOWHERE, "BRIDGE_REDIS_WAIT_SECONDS": "1", "BRIDGE_LOG_LEVEL": "ERROR"}
    sentence = complaint(folder, *BRIDGECTL, "worker", "app.py", **variables)
    assert sentence.startswith("REDIS_URL: no Redis answered within 2")
    assert re.search(r"; waited \d s for it\. Start that Redis, or name one that runs$", sentence)


def test_a_pod_does_not_wait_for_a_redis_that_refuses_its_password(folder: Path, redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "secret")
    wrong = redis_server.url.replace("://", "://:guess@")
    for url in (redis_server.url, wrong):
        assert complaint(folder, *BRIDGECTL, "worker", "app.py", REDIS_URL=url) == (
            "REDIS_URL: Redis refused the user name or password. Put the right ones into the URL"
        )


def test_a_redis_that_would_evict_live_calls_is_refused(folder: Path, redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    sentence = complaint(folder, *BRIDGECTL, "worker", "app.py", REDIS_URL=redis_server.url)
    assert sentence == (
        "REDIS_URL: this Redis evicts keys when memory is short (maxmemory-policy allkeys-lru), which would end "
        "live calls. Set maxmemory-policy to noeviction"
    )


@pytest.mark.parametrize(
    "command",
    [(*BRIDGECTL, "edge"), (*BRIDGECTL, "up", "group.py"), ("gather.py",), ("group.py",)],
    ids=["edge without APP", "up with two bridges", "python with gather", "python with a task group"],
)
def test_a_port_that_is_taken_is_named(command: tuple[str, ...], folder: Path, redis_url: str) -> None:
    with taken_port() as port:
        variables = {"REDIS_URL": redis_url, "BRIDGE_PORT": port, "BRIDGE_OPEN_DOOR": "true", "DEEPGRAM_API_KEY": "x"}
        assert complaint(folder, *command, **variables) == (
            f"BRIDGE_PORT: cannot listen on 127.0.0.1:{port} (Address already in use). "
            "Choose a free port, or stop what listens there"
        )


def test_a_taken_port_of_the_application_is_named_as_its_own(folder: Path, redis_url: str) -> None:
    with taken_port() as port:
        (folder / "app.py").write_text(APP.replace("8000", port))
        assert complaint(folder, *BRIDGECTL, "edge", "app.py", REDIS_URL=redis_url) == (
            f"BridgeConfig.port (bridge {port}): cannot listen on 127.0.0.1:{port} (Address already in use). "
            "Choose a free port, or stop what listens there"
        )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("port='abc'", "BridgeConfig.port: 'abc' is not the number of a port. "),
        ("port=8000, ac_token=5", "BridgeConfig.ac_token (bridge 8000): is of type int. "),
        ("port=8000, play_media_format=16", "BridgeConfig.play_media_format (bridge 8000): 16 is not a media format. "),
        ("port=8000, name='a/b c'", "BridgeConfig.name: 'a/b c' cannot be the path of a URL, "),
    ],
    ids=["port", "ac_token", "play_media_format", "name"],
)
@pytest.mark.parametrize(
    "command",
    [("app.py",), (*BRIDGECTL, "up", "app.py"), (*BRIDGECTL, "worker", "app.py")],
    ids=["python", "up", "pod"],
)
def test_a_value_in_the_application_that_cannot_be_used_is_named(
    command: tuple[str, ...], fields: str, told: str, folder: Path
) -> None:
    (folder / "app.py").write_text(APP.replace("port=8000", fields))
    assert complaint(folder, *command, REDIS_URL=NOWHERE, DEEPGRAM_API_KEY="x").startswith(told)


def test_an_admin_port_that_is_taken_is_named(folder: Path, redis_url: str) -> None:
    with taken_port() as port:
        assert complaint(folder, *BRIDGECTL, "worker", "app.py", REDIS_URL=redis_url, BRIDGE_ADMIN_PORT=port) == (
            f"BRIDGE_ADMIN_PORT: port {port} cannot be used: Address already in use. "
            "Set it to a free port, or to 0 for any"
        )


def test_an_edge_does_not_stand_open_unless_it_is_asked_to(folder: Path, redis_url: str) -> None:
    assert complaint(folder, *BRIDGECTL, "edge", REDIS_URL=redis_url) == (
        "AC_TOKEN: is not set, so anybody could place calls. Set it, or BRIDGE_OIDC_ISSUER, or BRIDGE_OPEN_DOOR=true"
    )
