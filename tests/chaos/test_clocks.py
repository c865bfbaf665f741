"""The clocks of pods are wrong by an hour: nothing but the times in their logs may depend on them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from experiment import experiment

from bridge_sim.agent import SimulatedAgent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc)")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_a_worker_whose_clock_is_off_by_an_hour_takes_calls_and_keeps_the_others_theirs(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path, shim: Path, seconds: int
) -> None:
    name = f"the clocks of a worker and an edge off by {seconds:+d} s"
    async with experiment(redis_url, agent, tmp_path, name, "no effect but in logs", workers=1) as e:
        wrong = {"LD_PRELOAD": str(shim), "CLOCK_OFFSET": str(seconds)}
        crooked = await e.pods.worker(**wrong)
        first = e.workers[0]
        first.terminate()
        assert await first.ended(40) == 0  # all calls are at the crooked one now
        await e.pods.worker()
        await e.another_turn()
        assert agent.total == 2 * len(e.talking.calls)
        with e.fault():
            crooked.kill()
        await e.another_turn()
