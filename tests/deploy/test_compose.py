"""The cluster by compose: everything it names exists, and its settings are settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from bridge_shared import config
from rendered import CHART, ROOT

FOLDER = ROOT / "deploy"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def _filled(text: str) -> str:
    """With the defaults of ${NAME:-default}."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_there_is_what_the_operations_page_says() -> None:
    assert set(SERVICES) == {"redis", "agent", "edge", "worker", "balancer", "prometheus", "grafana"}
    assert SERVICES["edge"]["deploy"]["replicas"] == SERVICES["worker"]["deploy"]["replicas"] == 2


def test_compose_itself_reads_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=30).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", str(FOLDER / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_file_that_is_mounted_exists_and_every_volume_is_declared() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = _filled(volume).partition(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).resolve().is_file(), f"{name}: {volume}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {volume}"
    build = SERVICES["edge"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


@pytest.mark.parametrize("role", ["edge", "worker"])
def test_pods_start_with_settings_that_the_code_knows_and_takes(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[role]["environment"].items():
        if value is not None:  # taken from whoever starts compose
            monkeypatch.setenv(variable, _filled(value))
    settings = config.load()
    assert settings.origin("redis_url") == "environment"


@pytest.mark.parametrize("role", ["edge", "worker"])
def test_pods_get_the_variables_that_send_traces_somewhere_if_they_are_set(role: str) -> None:
    handed_on = {name for name, value in SERVICES[role]["environment"].items() if value is None}
    page = (FOLDER / "README.md").read_text().partition("## Traces")[2].partition("\n## ")[0]
    told = set(re.findall(r"\bOTEL_[A-Z_]+[A-Z]\b", page)) - {"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_BSP"}
    assert len(told) >= 5
    assert told <= handed_on
    assert all(name.startswith("OTEL_") for name in handed_on)


@pytest.mark.parametrize("role", ["edge", "worker"])
def test_compose_waits_longer_than_a_drain_takes(role: str) -> None:
    grace = float(SERVICES[role]["stop_grace_period"].removesuffix("s"))
    assert grace >= config.Settings.model_fields["drain_seconds"].default + 15


def test_addresses_name_services_and_the_ports_that_they_listen_on() -> None:
    settings = SERVICES["worker"]["environment"]
    ports = {"redis": "6379", "agent": SERVICES["agent"]["command"][-1]}
    for variable in ("REDIS_URL", "DEEPGRAM_URL"):
        host, port = re.findall(r"://([^/:]+):(\d+)", _filled(settings[variable]))[0]
        assert ports[host] == port
    admin, calls = settings["BRIDGE_ADMIN_PORT"], settings["BRIDGE_PORT"]
    balancer = (FOLDER / "compose" / "haproxy.cfg").read_text()
    assert f"edge:{calls}" in balancer
    assert f"check port {admin}" in balancer
    [scrape] = yaml.safe_load((FOLDER / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    [found] = scrape["dns_sd_configs"]
    assert str(found["port"]) == admin
    assert set(found["names"]) == {"edge", "worker"}


def test_redis_never_throws_calls_away_and_is_the_one_of_the_chart() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"
    # It has no password; without this it would answer nobody but itself, unless its image says otherwise.
    assert command[command.index("--protected-mode") + 1] == "no"
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert SERVICES["redis"]["image"] == values["redis"]["bundled"]["image"]


def test_nothing_is_open_to_other_machines() -> None:
    """Without AC_TOKEN everybody who reaches the balancer can place calls."""
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_prometheus_and_grafana_get_the_alerts_and_the_dashboard_of_the_chart() -> None:
    mounted = {
        (FOLDER / _filled(volume).partition(":")[0]).resolve(): _filled(volume).split(":")[1]
        for name in ("prometheus", "grafana")
        for volume in SERVICES[name]["volumes"]
    }
    rules = yaml.safe_load((FOLDER / "compose" / "prometheus.yaml").read_text())["rule_files"]
    assert mounted[CHART / "files" / "alerts.yaml"].endswith(f"/{rules[0]}")
    [provider] = yaml.safe_load((FOLDER / "compose" / "grafana" / "dashboards.yaml").read_text())["providers"]
    assert mounted[CHART / "files" / "dashboard.json"].startswith(provider["options"]["path"])
