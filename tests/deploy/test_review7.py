"""What operators are told about a cluster: alerts that fire when they should, and only then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bridge_sim.agent import SimulatedAgent
from pods import Pods, application
from rendered import CHART

ALERTS = CHART / "files" / "alerts.yaml"


def series(name: str, values: str = "0x30") -> dict[str, str]:
    return {"series": name, "values": values}


def fires(alert: str, given: list[dict[str, str]], tmp_path: Path, *, at: str = "10m") -> list[dict[str, str]]:
    """The labels with which this alert fires after so long, as Prometheus works it out. Skips without promtool."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    asked = {"eval_time": at, "alertname": alert, "exp_alerts": [{"exp_labels": {"nothing": "has this"}}]}
    test = {"interval": "30s", "input_series": given, "alert_rule_test": [asked]}
    file = tmp_path / "alerts.test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "30s", "tests": [test]}))
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
            assert f'bridge_calls_live{{role="{pod.name.split("-")[0]}"}} 0.0' in pod.get("/metrics")[1]


@pytest.mark.parametrize("gone", ["edge", "worker"])
def test_prometheus_says_which_role_is_gone(gone: str, tmp_path: Path) -> None:
    here = [series(f'bridge_calls_live{{role="{role}",pod="{role}-1"}}') for role in ("edge", "worker") if role != gone]
    assert [alert["role"] for alert in fires("BridgeGone", here, tmp_path)] == [gone]


def test_a_cluster_without_a_call_is_not_taken_for_gone(tmp_path: Path) -> None:
    here = [series(f'bridge_calls_live{{role="{role}",pod="{role}-1"}}') for role in ("edge", "worker")]
    assert fires("BridgeGone", here, tmp_path) == []
