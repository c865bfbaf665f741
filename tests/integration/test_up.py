"""`bridgectl up`: what a person sees who tries it, and that nothing is left of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from deepgram_audiocodes_bridge.stage import Aside
from harness import free_port
from pods import Program, environment

EXAMPLE = Path(__file__).parents[2] / "worker" / "examples" / "01_basic" / "app.py"
CONVERSATION = [
    ("agent", "Hello, this is the parcel desk. How can I help you?"),
    ("caller", "Where is my parcel?"),
    ("agent", "I have found your parcel."),
    ("agent", "It is on its way and arrives tomorrow."),
    ("caller", "What are your opening hours, please?"),
    ("agent", "We are open from eight to six, Monday to Friday."),
    ("caller", "Thank you very much for your help."),
    ("agent", "You are welcome."),
]


@contextlib.contextmanager
def up(folder: Path, *arguments: str, **variables: str) -> Iterator[Program]:
    """`bridgectl up` with these arguments, ended with the block."""
    command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", "up", *arguments]
    program = Program("up", command, variables, folder).start()
    try:
        yield program
    except BaseException:
        print(program.tail())
        raise
    finally:
        program.close()


async def shows(program: Program, words: str, seconds: float = 40) -> None:
    def shown() -> bool:
        assert program.running, program.tail()
        return words in program.stdout

    await program.until(shown, seconds, repr(words))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def descendants(pid: int) -> list[int]:
    """The processes below this one."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


async def gone(pids: list[int], program: Program) -> None:
    await program.until(lambda: not any(map(alive, pids)), 10, f"the end of {pids}")


def free_pair() -> int:
    """A port that is free, as is the next one."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", first + 1)):
            return first


def to_the_outside(port: int) -> bool:
    """Whether somebody listens there on all addresses of this machine."""
    return b"00000000:%04X" % port in Path("/proc/net/tcp").read_bytes()


def going_on(shown: str) -> tuple[str, int, str]:
    """What is printed for another terminal: the URL of Redis, the port of the page, its token."""
    (redis,) = re.findall(r"^In another terminal: export REDIS_URL=(\S+); .*bridgectl calls$", shown, re.MULTILINE)
    ((port, token),) = re.findall(r"^Page: http://127\.0\.0\.1:(\d+)/#(\S{16,})$", shown, re.MULTILINE)
    assert b"0100007F:%04X" % int(port) in Path("/proc/net/tcp").read_bytes()  # and on no other address
    assert not to_the_outside(int(port))
    return redis, int(port), token


async def listed(port: int, token: str) -> int:
    """The status with which the admin API answers whoever shows this token."""
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"Authorization": f"Bearer {token}"}
        return (await client.get(f"http://127.0.0.1:{port}/v1/calls", headers=headers)).status_code


async def pods(port: int, token: str) -> list[str]:
    """The ids of the pods, as the admin API has them."""
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"Authorization": f"Bearer {token}"}
        answer = (await client.get(f"http://127.0.0.1:{port}/v1/pods", headers=headers)).json()
    return sorted(pod["pod"] for pod in answer["pods"])


async def call(url: str) -> None:
    report = await SimulatedCall(url, CallPlan(say=("thank_you",))).run()
    assert (report.problem, report.violations) == (None, [])


@pytest.mark.timeout(90)
async def test_without_a_key_it_says_so_and_shows_a_call_and_how_to_read_it(tmp_path: Path) -> None:
    port = free_port()
    with up(tmp_path, str(EXAMPLE), BRIDGE_PORT=str(port)) as program:
        await shows(program, "Listening for calls. Ctrl-C drains.", 60)
        shown = program.stdout
        assert "DEEPGRAM_API_KEY is not set: A SIMULATED AGENT ANSWERS THE CALLS" in shown
        assert f"Bot URL for Live Hub: ws://<this machine>:{port} " in shown
        assert "Token: none. ANYBODY WHO REACHES THIS PORT CAN CALL. Set AC_TOKEN" in shown
        redis, port_of_page, token = going_on(shown)
        assert shown.index(token) < shown.index("Placing a simulated call")
        assert (await listed(port_of_page, token), await listed(port_of_page, "wrong")) == (200, 401)
        calls = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", "calls", "--json"]
        variables = environment({"REDIS_URL": redis})
        there = await asyncio.to_thread(subprocess.run, calls, env=variables, capture_output=True, timeout=20)
        assert there.stdout == b"[]\n"
        assert re.findall(r"^  \| \d\d:\d\d:\d\d  (caller|agent) +(.+)$", shown, re.MULTILINE) == CONVERSATION
        assert "The call is over after 3 turns." in shown
        (one_liner,) = re.findall(r"^    (.*python.* -c .*)$", shown, re.MULTILINE)
        read = await asyncio.to_thread(
            subprocess.run, one_liner, shell=True, capture_output=True, text=True, timeout=20, env=environment({})
        )
        roles = {"agent": "assistant", "caller": "user"}
        assert read.stdout.splitlines() == [f"{roles[who]}: {text}" for who, text in CONVERSATION]
        assert re.search(r"^    redis-cli -p \d+ XRANGE 'call:\{[0-9a-f-]+\}:transcript' - \+$", shown, re.MULTILINE)

        async with SimulatedCall(f"ws://127.0.0.1:{port}", CallPlan()) as live_hub:
            assert await live_hub.validate()
        below = descendants(program.pid)
        assert below
        program.send(signal.SIGINT)
        assert await program.ended() == 0
        await gone(below, program)
        assert "Traceback" not in program.stderr


async def test_ctrl_c_in_the_middle_of_the_demonstration_hangs_up_and_ends_with_0(tmp_path: Path) -> None:
    with up(tmp_path, BRIDGE_PORT=str(free_port())) as program:
        await shows(program, "agent   Hello, this is the parcel desk.")
        program.send(signal.SIGINT)
        assert await program.ended(15) == 0
        assert "Hanging up the simulated call." in program.stdout
        assert "Traceback" not in program.stderr


@pytest.mark.parametrize("place", ["environment", ".env file"])
async def test_with_a_key_it_places_no_call_and_waits_for_callers(place: str, redis_url: str, tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(EXAMPLE.read_text())
    async with SimulatedAgent() as agent:
        settings = {"DEEPGRAM_URL": agent.url, "REDIS_URL": redis_url, "BRIDGE_PORT": str(free_port())}
        if place == "environment":
            settings["DEEPGRAM_API_KEY"] = "a-key"
        else:
            (tmp_path / ".env").write_text("DEEPGRAM_API_KEY=a-key\n")
            del settings["DEEPGRAM_URL"]
        with up(tmp_path, str(app), **settings) as program:
            await shows(program, "Listening for calls. Ctrl-C drains.")
            assert "SIMULATED" not in program.stdout
            assert "Placing" not in program.stdout
            program.send(signal.SIGINT)
            assert await program.ended(15) == 0
        assert agent.total == 0


@pytest.mark.timeout(90)
async def test_pods_as_processes_take_calls_at_each_edge_and_end_together(tmp_path: Path) -> None:
    first = free_pair()
    arguments = (str(EXAMPLE), "--workers", "2", "--edges", "2", "--port", str(first))
    with up(tmp_path, *arguments) as program:
        await shows(program, "All pods are ready.")
        assert "SIMULATED" in program.stdout
        urls = re.findall(r"^edge \d: (ws://\S+)$", program.stdout, re.MULTILINE)
        assert urls == [f"ws://127.0.0.1:{first}", f"ws://127.0.0.1:{first + 1}"]
        below = descendants(program.pid)
        assert len(below) == 5  # and Redis
        _, port_of_page, token = going_on(program.stdout)
        assert await listed(port_of_page, token) == 200
        admins = re.findall(
            r"^(?:worker|edge) \d: pid \d+, admin http://127.0.0.1:(\d+)$", program.stdout, re.MULTILINE
        )
        assert [await listed(int(port), token) for port in admins if int(port) != port_of_page] == [200] * 3
        assert not [port for port in admins if to_the_outside(int(port))]
        names = re.findall(r"^(?:worker|edge) \d: pod ((?:worker|edge)-\S+)$", program.stdout, re.MULTILINE)
        assert sorted(names) == await pods(port_of_page, token)
        await asyncio.gather(*(call(url) for url in urls))
        program.send(signal.SIGINT)
        assert await program.ended() == 0
        await gone(below, program)
        assert "Traceback" not in program.stderr


TWO_BRIDGES = """
import asyncio, os
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge

def bridge(name):
    think = {"provider": {"type": "open_ai", "model": "gpt-4o-mini"}, "prompt": "Answer."}
    config = {"agent": {"think": think, "greeting": "Hello."}}
    key = os.environ["DEEPGRAM_API_KEY"]
    return DeepgramBridge(BridgeConfig(key, config, ac_token=None, port=PORT, name=name))

async def main():
    await asyncio.gather(bridge("sales").run(), bridge("support").run())

asyncio.run(main())
"""


@pytest.mark.timeout(90)
async def test_pods_as_processes_listen_where_the_application_says_and_name_the_path_of_each_bridge(
    tmp_path: Path,
) -> None:
    first = free_pair()
    app = tmp_path / "app.py"
    app.write_text(TWO_BRIDGES.replace("PORT", str(first)))
    with up(tmp_path, str(app), "--workers", "1", "--edges", "2") as program:
        await shows(program, "All pods are ready.")
        urls = re.findall(r"^edge \d: (ws://\S+)$", program.stdout, re.MULTILINE)
        assert sorted(urls) == [
            f"ws://127.0.0.1:{port}/{name}" for port in (first, first + 1) for name in ("sales", "support")
        ]
        (shown,) = re.findall(r"^A call: bridgectl call --url (ws://\S+)$", program.stdout, re.MULTILINE)
        await call(shown)
        await call(urls[-1])
        program.send(signal.SIGINT)
        assert await program.ended() == 0


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_a_pod_that_is_killed_is_replaced_and_a_killed_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    sizes, first = ("--workers", "1", "--edges", "1", "--port", str(free_port())), free_pair()
    with up(tmp_path, str(EXAMPLE), *sizes, BRIDGE_ADMIN_PORT=str(first)) as program:
        await shows(program, "All pods are ready.")
        admins = re.findall(r"^(worker|edge) 1: pid \d+, admin http://127.0.0.1:(\d+)$", program.stdout, re.MULTILINE)
        assert admins == [("worker", str(first)), ("edge", str(first + 1))]  # counted up, workers first
        (url,) = re.findall(r"^edge \d: (ws://\S+)$", program.stdout, re.MULTILINE)
        (worker,) = re.findall(r"^worker 1: pid (\d+)", program.stdout, re.MULTILINE)
        await call(url)  # by then the pods have run for long enough to be worth replacing
        os.kill(int(worker), signal.SIGKILL)
        await shows(program, "worker 1 was ended by SIGKILL; in its place: pid")
        await shows(program, "worker 1 is ready")
        await call(url)
        below = descendants(program.pid)
        assert len(below) == 3
        program.kill()
        await gone(below, program)


async def test_a_killed_process_with_everything_in_it_leaves_no_redis_behind(tmp_path: Path) -> None:
    with up(tmp_path, BRIDGE_PORT=str(free_port())) as program:
        await shows(program, "Bot URL")
        (redis,) = descendants(program.pid)
        program.kill()
        await gone([redis], program)


async def test_the_whole_cluster_ends_when_a_pod_cannot_run(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with up(tmp_path, "--workers", "1", "--edges", "1", "--port", str(port)) as program:
            assert await program.ended() == 2
            assert "edge 1 ended with exit code 2: stopping the others" in program.stdout


async def test_pods_as_processes_do_not_wait_for_a_redis_that_somebody_may_have_mistyped(tmp_path: Path) -> None:
    with up(tmp_path, "--workers", "1", "--port", str(free_port()), REDIS_URL="redis://127.0.0.1:1") as program:
        assert await program.ended() == 2  # within half of the time that a pod would wait
        assert "REDIS_URL: no Redis answered within 2" in program.stderr + program.stdout


def test_what_the_application_prints_is_cut_and_dim_only_during_the_demonstration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = io.StringIO()
    aside = Aside(terminal)
    print("before", file=aside)
    with aside.dimmed():
        print("short", file=aside)
        print("long " * 10, file=aside)
        with aside.undimmed():
            print("the conversation, whole", file=aside)
        print("unfinished", end="", file=aside)
    print("after", file=aside)
    assert terminal.getvalue() == (
        "before\n\x1b[2mshort\x1b[0m\n\x1b[2mlong long long l...\x1b[0m\nthe conversation, whole\nunfinishedafter\n"
    )
