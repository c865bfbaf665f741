"""The page at the admin port, in a real browser."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bridge_sim.agent import AgentScript, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from pods import Pods, application

TOKEN = "0815-token"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


async def browse(url: str, folder: Path, *options: str) -> str:
    """Let a headless browser load a page and run it for five seconds of its own time; what it prints."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs a browser (Debian: apt-get install chromium)")
    quiet = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/browser",
    ]
    command = [browser, *quiet, "--virtual-time-budget=5000", *options, url]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=True, cwd=folder
    )
    return done.stdout


@pytest.mark.slow
async def test_the_page_shows_live_calls_what_is_said_and_the_pods(redis_url: str, tmp_path: Path) -> None:
    async with (
        SimulatedAgent(AgentScript(think_s=0.0)) as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN=TOKEN) as pods,
    ):
        edge, worker = await asyncio.gather(pods.edge(), pods.worker())
        async with SimulatedCall(edge.url, CallPlan(turn_timeout_s=40)) as call:
            await call.connect()
            await call.initiate()
            for sentence in ("opening_hours", "thank_you"):
                await call.say(sentence)
                await call.wait_answer()
            at = f"http://127.0.0.1:{worker.admin_port}/"
            page = await browse(f"{at}#{TOKEN}", tmp_path, "--dump-dom")
            assert call.conversation_id in page
            for text in ("What are your opening hours, please?", "You are welcome.", "2 answers; on average"):
                assert text in page
            assert re.search(r"<td>20\d\d-\d\d-\d\d \d\d:\d\d:\d\d</td>", page)  # since when
            assert page.count("<td>ready</td>") == 2
            assert "bearer token of BRIDGE_ADMIN_TOKEN" in await browse(f"{at}#wrong", tmp_path, "--dump-dom")
            if picture := os.environ.get("PAGE_PICTURE"):
                await browse(f"{at}#{TOKEN}", tmp_path, f"--screenshot={picture}", "--window-size=1150,700")
            await call.hang_up()
