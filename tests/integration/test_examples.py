"""The examples, as they are, under every way to run an application; simulated callers are content with all of them.

Their ports may be taken where tests run side by side, so BRIDGE_PORT is set: two desks are then told apart by path.
Real calls take their time, so the examples of one way run at once.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bridge_sim.agent import SimulatedAgent
from bridge_sim.caller import CallProblem, SimulatedCall
from bridge_sim.plan import CallPlan
from harness import free_port
from pods import Pods, Program, environment

FOLDER = Path(__file__).parents[2] / "worker" / "examples"
TOKEN = "let-me-in"
HEARD_SECONDS = 15


async def converse(url: str, token: str | None = None) -> None:
    """The greeting, a question and its answer."""
    call = SimulatedCall(url, CallPlan(say=("where_is_my_parcel",)), token=token)
    report = await call.run()
    assert (report.problem, report.violations) == (None, [])
    said = [role for role, _ in report.transcript]
    assert said[:3] == ["assistant", "user", "assistant"], report.transcript
    assert ("user", "Where is my parcel?") in report.transcript


async def hears(call: SimulatedCall, words: str) -> None:
    """Wait until the agent is heard to say these words."""
    try:
        async with asyncio.timeout(HEARD_SECONDS):
            while not any(role == "assistant" and words in text for role, text in call.report().transcript):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{words!r} was not heard, but {call.report().transcript}") from None


async def type_a_number(url: str) -> None:
    async with SimulatedCall(url, CallPlan()) as call:
        await call.connect()
        await call.initiate()
        await call.wait_greeting()
        for digits in ("9", "*", "4", "71", "#"):
            await call.send_dtmf(digits)
        await hears(call, "Thank you. I have parcel number 4 7 1.")
        await call.hang_up()
    assert call.report().violations == []


async def show_the_token(url: str) -> None:
    for wrong in (None, "something else"):
        with pytest.raises(CallProblem) as refused:
            async with SimulatedCall(url, CallPlan(), token=wrong) as call:
                await call.connect()
        assert refused.value.status == 401
    await converse(url, TOKEN)


async def ask_both_desks(url: str) -> None:
    await asyncio.gather(converse(f"{url}/8001"), converse(f"{url}/8002"))


async def have_a_parcel_looked_up(url: str) -> None:
    async with SimulatedCall(url, CallPlan()) as call:
        await call.connect()
        await call.initiate()
        await call.wait_greeting()
        await call.say("parcel_number")
        await hears(call, '"state": "unknown number"')
        await call.wait_answer()
        await call.hang_up()
    assert call.report().violations == []


CALLERS: dict[str, Callable[[str], Awaitable[None]]] = {
    "01_basic": converse,
    "02_dtmf": type_a_number,
    "03_auth": show_the_token,
    "04_multi_agent": ask_both_desks,
    "05_function_calls": have_a_parcel_looked_up,
    "06_crm": converse,
    "07_amazon_connect": converse,
}


async def shown(app: Path, folder: Path, agent: SimulatedAgent, *arguments: str) -> str:
    """What `bridgectl call` with these arguments shows of this example."""
    port = free_port()
    settings = {"DEEPGRAM_API_KEY": "x", "DEEPGRAM_URL": agent.url, "BRIDGE_PORT": str(port)}
    program = Program(app.parent.name, [sys.executable, str(app)], settings, folder).start()
    try:
        await serving(program, port)
        command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", "call", *arguments]
        variables = environment({"BRIDGE_PORT": str(port)})
        done = await asyncio.to_thread(
            subprocess.run, command, env=variables, capture_output=True, text=True, timeout=40, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    finally:
        program.close()


@pytest.mark.slow
async def test_the_keypad_example_is_shown_by_the_command_in_its_readme(tmp_path: Path) -> None:
    assert "bridgectl call --keys '1003#'" in (FOLDER / "02_dtmf" / "README.md").read_text()
    async with SimulatedAgent() as agent:
        output = await shown(FOLDER / "02_dtmf" / "app.py", tmp_path, agent, "--keys", "1003#")
    assert "caller  presses 1003#" in output
    assert "agent   Thank you. I have parcel number 1 0 0 3." in output
    assert re.search(r"accepted, raw/\S+, conversation [0-9a-f-]{36}$", output, re.MULTILINE)


@pytest.mark.slow
async def test_the_way_to_a_person_is_shown_by_the_command_in_its_readme(tmp_path: Path) -> None:
    assert "bridgectl call --say speak_to_a_person" in (FOLDER / "07_amazon_connect" / "README.md").read_text()
    async with SimulatedAgent() as agent:
        output = await shown(FOLDER / "07_amazon_connect" / "app.py", tmp_path, agent, "--say", "speak_to_a_person")
    assert "bot     transfer" in output
    assert "ended: transferred" in output


async def every_example(run: Callable[[str, Path], Awaitable[None]]) -> None:
    """Run all of them at once, and name each that fails."""
    apps = {name: FOLDER / name / "app.py" for name in CALLERS}
    assert sorted(path.parent.name for path in FOLDER.glob("*/app.py")) == sorted(apps)
    results = await asyncio.gather(*(run(name, app) for name, app in apps.items()), return_exceptions=True)
    failures = [f"{name}: {result!r}" for name, result in zip(apps, results, strict=True) if result is not None]
    assert not failures, "\n".join(failures)


async def serving(program: Program, port: int) -> None:
    """Wait until callers are let in."""

    async def listens() -> bool:
        assert program.running, program.tail()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return True

    await program.until(listens, 40, "its port")


@pytest.mark.timeout(110)
async def test_every_example_takes_calls_as_a_plain_python_program(tmp_path: Path) -> None:
    """Each with a Redis of its own, as on a laptop."""

    async def run(name: str, app: Path) -> None:
        port = free_port()
        settings = {"DEEPGRAM_API_KEY": "x", "DEEPGRAM_URL": agent.url, "BRIDGE_PORT": str(port), "AC_TOKEN": ""}
        if name == "03_auth":
            settings["AC_TOKEN"] = TOKEN
        program = Program(name, [sys.executable, str(app)], settings, tmp_path).start()
        try:
            await serving(program, port)
            await CALLERS[name](f"ws://127.0.0.1:{port}")
            program.terminate()
            assert await program.ended() == 0
            assert "Traceback" not in program.stderr
        except BaseException:
            print(program.tail())
            raise
        finally:
            program.close()

    async with SimulatedAgent() as agent:
        await every_example(run)
    assert all(not connection.problems for connection in agent.connections)


@pytest.mark.slow
@pytest.mark.timeout(110)
async def test_every_example_takes_calls_under_up_beside_the_demonstration(tmp_path: Path) -> None:
    async def run(name: str, app: Path) -> None:
        port = free_port()
        settings = {"BRIDGE_PORT": str(port), "AC_TOKEN": TOKEN if name == "03_auth" else ""}
        command = [sys.executable, "-m", "deepgram_audiocodes_bridge.cli", "up", str(app)]
        program = Program(name, command, settings, tmp_path).start()
        try:
            await program.until(lambda: "Placing a simulated call" in program.stdout, 40, "the demonstration")
            await CALLERS[name](f"ws://127.0.0.1:{port}")
            await program.until(lambda: "The call is over" in program.stdout, 60, "the end of the demonstration")
            assert "The call is over after 3 turns." in program.stdout
            program.terminate()
            assert await program.ended() == 0
            assert "Traceback" not in program.stderr
        except BaseException:
            print(program.tail())
            raise
        finally:
            program.close()

    await every_example(run)


@pytest.mark.slow
@pytest.mark.timeout(110)
async def test_every_example_takes_calls_as_an_edge_and_a_worker(redis_url: str) -> None:
    async def run(name: str, app: Path) -> None:
        # a fleet for each: they meet in one Redis
        settings = {"BRIDGE_FLEET": name, "AC_TOKEN": TOKEN if name == "03_auth" else ""}
        async with Pods(redis_url, agent.url, app, **settings) as pods:
            edge, _ = await asyncio.gather(pods.edge(), pods.worker())
            await CALLERS[name](edge.url)
            assert await pods.stop() == [0, 0]

    async with SimulatedAgent() as agent:
        await every_example(run)
    assert all(not connection.problems for connection in agent.connections)
