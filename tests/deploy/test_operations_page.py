"""What operators are told about a cluster: alerts that fire when they should, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from bridge_shared import metrics
from bridge_shared.errors import AgentFailed
from bridge_sim.agent import AgentScript, Faults, SimulatedAgent
from bridge_sim.caller import SimulatedCall
from bridge_sim.plan import CallPlan
from bridge_worker.agent import count
from conftest import RedisServer
from pods import Pod, Pods, application
from rendered import CHART, ROOT, SIMULATED, named, template
from telephone import stage, wire

FAILS = """
@bridge.on("session_start")
async def fails(session, event):
    raise ValueError("no such customer")
"""

ALERTS = CHART / "files" / "alerts.yaml"
CRITICAL = {"severity": "critical"}


def series(name: str, values: str = "0x30") -> dict[str, str]:
    return {"series": name, "values": values}


def fires(
    alert: str, given: list[dict[str, str]], tmp_path: Path, *, at: str = "10m", rules: Path = ALERTS
) -> list[dict[str, str]]:
    """The labels with which this alert fires after so long, as Prometheus works it out. Skips without promtool."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    asked = {"eval_time": at, "alertname": alert, "exp_alerts": [{"exp_labels": {"nothing": "has this"}}]}
    test = {"interval": "30s", "input_series": given, "alert_rule_test": [asked]}
    file = tmp_path / "alerts.test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "30s", "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    _, _, got = (done.stdout + done.stderr).rpartition("got:")
    assert got, done.stdout + done.stderr
    return [
        dict(pair.strip().replace('"', "").split("=", 1) for pair in line.split("{", 1)[1].split("}")[0].split(","))
        for line in got.splitlines()
        if "Labels:{" in line
    ]


async def test_pods_that_never_had_a_call_say_that_they_have_none(redis_url: str, tmp_path: Path) -> None:
    async with SimulatedAgent() as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        for pod in (await pods.edge(), await pods.worker()):
            told = pod.get("/metrics")[1]
            assert f'bridge_calls_live{{role="{pod.name.split("-")[0]}"}} 0.0' in told
            # Prometheus sees a counter grow only from a value that it has seen.
            assert 'bridge_calls_total{outcome="error"} 0.0' in told
            asked = "|".join(re.findall(r'reason=~"(.*?)"', ALERTS.read_text())).split("|")
            assert {"no_worker", "token"} <= set(asked)
            for reason in asked:
                assert f'bridge_calls_refused_total{{reason="{reason}"}} 0.0' in told


async def test_a_refused_upgrade_is_counted_by_its_status_which_the_runbook_explains(
    redis_url: str, tmp_path: Path
) -> None:
    script = AgentScript(faults=Faults(refuse_handshakes=1, refuse_status=429))
    async with SimulatedAgent(script) as agent, Pods(redis_url, agent.url, application(tmp_path)) as pods:
        edge, worker = await pods.edge(), await pods.worker()
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            await call.hang_up()
        assert 'bridge_agent_errors_total{code="http_429"} 1.0' in worker.get("/metrics")[1]
    assert "`http_429`" in (ROOT / "deploy" / "README.md").read_text()


async def test_a_call_that_redis_keeps_out_is_counted_as_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    async with SimulatedAgent() as agent, Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        edge, _ = await pods.edge(), await pods.worker()
        redis_server.command("CONFIG", "SET", "maxmemory", "1")  # full
        assert (await SimulatedCall(edge.url, CallPlan()).run()).problem is not None
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        assert 'bridge_calls_refused_total{reason="redis"} 1.0' in edge.get("/metrics")[1]


def test_nobody_outside_makes_up_labels_of_the_agent_errors() -> None:
    count(AgentFailed("MADE_UP_4711", "by whoever answers at DEEPGRAM_URL", retryable=False))
    count(AgentFailed("FAILED_TO_THINK", "as published", retryable=True))
    served = metrics.render().decode()
    assert "4711" not in served
    assert 'bridge_agent_errors_total{code="other"}' in served
    assert 'bridge_agent_errors_total{code="FAILED_TO_THINK"}' in served


async def test_a_full_edge_leaves_the_service_only_while_another_one_takes_new_calls(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        SimulatedAgent() as agent,
        Pods(redis_url, agent.url, application(tmp_path), BRIDGE_EDGE_CALLS="1") as pods,
        contextlib.AsyncExitStack() as calls,
    ):

        async def fill(edge: Pod) -> SimulatedCall:
            call = await calls.enter_async_context(SimulatedCall(edge.url, CallPlan()))
            await call.connect()
            await call.initiate()
            return call

        one, _ = await pods.edge(), await pods.worker()
        at_one = await fill(one)
        assert await asyncio.to_thread(one.get, "/readyz") == (200, "ok\n")
        other = await pods.edge()
        await one.until_answers("/readyz", 503, "at capacity")
        at_other = await fill(other)
        await one.until_answers("/readyz", 200)
        await at_other.hang_up()
        await one.until_answers("/readyz", 503, "at capacity")
        await at_one.hang_up()


@pytest.mark.parametrize("gone", ["edge", "worker"])
def test_prometheus_says_which_role_is_gone(gone: str, tmp_path: Path) -> None:
    here = [series(f'bridge_calls_live{{role="{role}",pod="{role}-1"}}') for role in ("edge", "worker") if role != gone]
    assert [alert["role"] for alert in fires("BridgeGone", here, tmp_path)] == [gone]


def test_a_cluster_without_a_call_is_not_taken_for_gone(tmp_path: Path) -> None:
    here = [series(f'bridge_calls_live{{role="{role}",pod="{role}-1"}}') for role in ("edge", "worker")]
    assert fires("BridgeGone", here, tmp_path) == []


def test_another_release_does_not_hide_that_this_one_is_gone(tmp_path: Path) -> None:
    rules = tmp_path / "alerts.yaml"
    ours = named(template(SIMULATED, "monitoring.prometheusRule=true"), "PrometheusRule", "bridge")
    rules.write_text(yaml.safe_dump(ours["spec"]))
    there = [series(f'bridge_calls_live{{role="{role}",namespace="elsewhere"}}') for role in ("edge", "worker")]
    fired = fires("BridgeGone", there, tmp_path, rules=rules)
    assert sorted((alert["namespace"], alert["role"]) for alert in fired) == [("calls", "edge"), ("calls", "worker")]


def _calls(outcomes: dict[str, str], refused: str = "0x90") -> list[dict[str, str]]:
    there = [series(f'bridge_calls_total{{outcome="{outcome}"}}', values) for outcome, values in outcomes.items()]
    return [*there, series('bridge_calls_refused_total{reason="no_worker"}', refused)]


ONE_IN_FIVE_MINUTES = " ".join(f"{number}x9" for number in range(9))


def test_a_site_that_seldom_has_a_call_is_told_when_all_of_them_fail(tmp_path: Path) -> None:
    broken = _calls({"error": ONE_IN_FIVE_MINUTES, "hangup": "0x90"})
    assert fires("BridgeCallsFail", broken, tmp_path, at="35m") == [{"alertname": "BridgeCallsFail"} | CRITICAL]
    refused = _calls({"error": "0x90", "hangup": "0x90"}, ONE_IN_FIVE_MINUTES)
    assert fires("BridgeCallsFail", refused, tmp_path, at="35m") == [{"alertname": "BridgeCallsFail"} | CRITICAL]


def test_a_few_failures_among_many_calls_and_a_site_without_calls_are_no_alarm(tmp_path: Path) -> None:
    busy = _calls({"error": ONE_IN_FIVE_MINUTES, "hangup": "0+5x90"})
    assert fires("BridgeCallsFail", busy, tmp_path, at="35m") == []
    assert fires("BridgeCallsFail", _calls({"error": "0x90", "hangup": "0x90"}), tmp_path, at="35m") == []


@pytest.mark.parametrize(
    ("alert", "counter"),
    [
        ("BridgeHandlerErrors", 'bridge_handler_errors_total{event="user_speech"}'),
        ("BridgeFinishesFail", 'bridge_finishes_total{result="failed"}'),
    ],
)
def test_an_application_that_fails_in_every_call_of_a_site_with_few_is_told(
    alert: str, counter: str, tmp_path: Path
) -> None:
    assert len(fires(alert, [series(counter, ONE_IN_FIVE_MINUTES)], tmp_path, at="35m")) == 1
    assert fires(alert, [series(counter, "7x90")], tmp_path, at="35m") == []


@pytest.mark.parametrize(("accepted", "alarm"), [("0x90", True), ("0+1x90", False)])
def test_a_token_that_fits_nobody_is_told_and_strangers_at_the_door_of_a_site_with_calls_are_not(
    accepted: str, alarm: bool, tmp_path: Path
) -> None:
    given = [
        series('bridge_calls_refused_total{reason="token"}', ONE_IN_FIVE_MINUTES),
        series("bridge_setup_seconds_count", accepted),
    ]
    assert bool(fires("BridgeNobodyGetsIn", given, tmp_path, at="35m")) == alarm


async def test_workers_say_how_full_redis_is(redis_server: RedisServer, tmp_path: Path) -> None:
    used = re.findall(rb"used_memory:(\d+)", redis_server.command("INFO", "memory"))
    async with SimulatedAgent() as agent, Pods(redis_server.url, agent.url, application(tmp_path)) as pods:
        without_a_limit = await pods.worker()
        assert "bridge_redis_memory_used_ratio 0.0" in without_a_limit.get("/metrics")[1]
        redis_server.command("CONFIG", "SET", "maxmemory", str(2 * int(used[0])))
        worker = await pods.worker()

        def ratio() -> float:
            return float(re.findall(r"^bridge_redis_memory_used_ratio (\S+)", worker.get("/metrics")[1], re.M)[0])

        await worker.until(lambda: ratio() > 0, 10, "how full Redis is")
        assert 0.4 < ratio() < 2.0


def test_a_redis_that_fills_is_told_before_it_is_full(tmp_path: Path) -> None:
    for share, alarm in (("0.85", True), ("0.7", False)):
        given = [series(f'bridge_redis_memory_used_ratio{{pod="{pod}"}}', f"{share}x60") for pod in ("a", "b")]
        assert bool(fires("BridgeRedisFills", given, tmp_path, at="15m")) == alarm


async def test_a_user_of_redis_with_the_permissions_of_the_operations_page_is_enough(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    text = " ".join((ROOT / "deploy" / "README.md").read_text().split())
    keys, channels = re.findall(r"it needs all commands on the keys (.*?) and the channels (.*?)\.", text)[0]
    allowed = [f"~{key}" for key in re.findall(r"`(.*?)`", keys)]
    allowed += [f"&{channel}" for channel in re.findall(r"`(.*?)`", channels)]
    assert len(allowed) > 2
    redis_server.command("ACL", "SETUSER", "bridge", "on", ">secret", "+@all", *allowed)
    url = redis_server.url.replace("redis://", "redis://bridge:secret@")
    async with (
        SimulatedAgent() as agent,
        Pods(url, agent.url, application(tmp_path), BRIDGE_ADMIN_TOKEN="let-me-in") as pods,
    ):
        edge, worker = await pods.edge(), await pods.worker()
        async with SimulatedCall(edge.url, CallPlan()) as call:
            await call.connect()
            await call.initiate()
            asked = urllib.request.Request(
                f"http://127.0.0.1:{edge.admin_port}/v1/calls/{call.conversation_id}/hangup",
                method="POST",
                headers={"Authorization": "Bearer let-me-in"},
            )
            answer = await asyncio.to_thread(urllib.request.urlopen, asked, timeout=10)
            assert answer.status in (200, 202)
            await call.wait_end()
        for pod in (edge, worker):
            assert "no permissions" not in pod.stderr + pod.stdout
            assert 'bridge_redis_errors_total{kind="refused"} 0.0' in pod.get("/metrics")[1]


async def test_a_call_writes_two_lines_and_every_line_about_it_says_which_call(redis_url: str, tmp_path: Path) -> None:
    app = application(tmp_path, FAILS)
    async with SimulatedAgent() as agent, Pods(redis_url, agent.url, app) as pods:
        edge, worker = await pods.edge(), await pods.worker()
        before = {pod: len(pod.log) for pod in (edge, worker)}
        call = SimulatedCall(edge.url, CallPlan(say=("thank_you",)))
        assert (await call.run()).problem is None
        await worker.until_logged("session ended")
        said = [line for pod, old in before.items() for line in pod.log[old:]]
    assert [line["message"] for line in said if line["level"] == "info"] == ["agent connected", "session ended"]
    assert "handler raised" in [line["message"] for line in said]
    assert {line.get("cid") for line in said} == {call.conversation_id}


def test_pods_measure_the_gaps_that_callers_hear() -> None:
    assert re.search(r"^# TYPE bridge_\w*gap\w* histogram$", metrics.render().decode(), re.MULTILINE)


async def test_a_drain_that_finds_nobody_for_its_calls_says_so_in_its_metrics(redis_url: str) -> None:
    def left() -> float:
        return metrics.registry.get_sample_value("bridge_handovers_total", {"result": "left"}) or 0.0

    before = left()
    async with stage(redis_url, drain_seconds=1.0) as bridge, wire(bridge.url) as vaic:
        await vaic.begin()
        await bridge.connection()
        bridge.app.process.media.call(bridge.app.process.drain)
        await vaic.until("activities")
        assert left() == before + 1
        await vaic.hang_up()
