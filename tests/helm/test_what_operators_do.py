"""What a cluster or a person would stumble over, though every rendered object is valid by itself."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge_sim.agent import SimulatedAgent
from harness import free_port
from pods import Pods, application
from rendered import (
    CHART,
    SIMULATED,
    Object,
    container,
    environment,
    named,
    pods,
    refusal,
    run,
    secret_values,
    template,
)


@contextmanager
def api_server(objects: list[Object], live: list[Object]) -> Iterator[str]:
    """The address of an API server that knows the kinds of these objects, and has what is `live` in namespace calls."""
    answers: dict[str, Any] = {"/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}}
    answers["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    groups = []
    for version in sorted({o["apiVersion"] for o in objects}):
        kinds = sorted({o["kind"] for o in objects if o["apiVersion"] == version})
        resources = [{"name": f"{k.lower()}s", "namespaced": True, "kind": k, "verbs": ["get"]} for k in kinds]
        root = "/api/v1" if version == "v1" else f"/apis/{version}"
        answers[root] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        if "/" in version:
            group, _, short = version.partition("/")
            entry = {"groupVersion": version, "version": short}
            groups.append({"name": group, "versions": [entry], "preferredVersion": entry})
        for o in live:
            if o["apiVersion"] == version:
                answers[f"{root}/namespaces/calls/{o['kind'].lower()}s/{o['metadata']['name']}"] = o
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("now", [7, 0])
def test_an_upgrade_of_a_cluster_that_scales_itself_leaves_as_many_pods_as_there_are(now: int) -> None:
    objects = template(SIMULATED, "autoscaling.kind=hpa")
    assert "replicas" not in named(objects, "Deployment", "bridge-worker")["spec"]
    worker = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "bridge-worker",
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": "bridge", "meta.helm.sh/release-namespace": "calls"},
        },
        "spec": {"replicas": now},
    }
    with api_server(objects, [worker]) as address:
        asked = ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address]
        given = ["-f", str(SIMULATED), "--set", "autoscaling.kind=hpa"]
        done = run("template", "bridge", str(CHART), "-n", "calls", *asked, *given)
    assert done.returncode == 0, done.stderr
    upgraded = [o for o in yaml.safe_load_all(done.stdout) if o]
    assert named(upgraded, "Deployment", "bridge-worker")["spec"]["replicas"] == now
    assert "replicas" not in named(upgraded, "Deployment", "bridge-edge")["spec"]


def test_an_upgrade_keeps_the_token_and_the_password_that_the_install_made_up() -> None:
    objects = template(SIMULATED)
    live = [o for o in objects if o["kind"] == "Secret"]
    assert secret_values(live).keys() == {("bridge-access", "ac-token"), ("bridge-redis", "password")}
    with api_server(objects, live) as address:
        asked = ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address]
        done = run("template", "bridge", str(CHART), "-n", "calls", *asked, "-f", str(SIMULATED), "--is-upgrade")
    assert done.returncode == 0, done.stderr
    assert secret_values([o for o in yaml.safe_load_all(done.stdout) if o]) == secret_values(live)


@pytest.mark.parametrize("kind", ["hpa", "keda"])
@pytest.mark.parametrize("role", ["edge", "worker"])
def test_an_autoscaler_with_a_least_above_its_most_is_refused(kind: str, role: str) -> None:
    given = (f"autoscaling.kind={kind}", "autoscaling.prometheus=http://p", f"autoscaling.{role}.min=30")
    assert f"autoscaling.{role}.min is 30 and autoscaling.{role}.max is" in refusal(*given)


def test_annotations_and_labels_of_ones_own_take_the_place_of_ours() -> None:
    for key, value, given in (
        ("nginx.ingress.kubernetes.io/proxy-read-timeout", "60s", ("ingress.enabled=true", "ingress.host=calls")),
        ("app.kubernetes.io/part-of", "telephony", ("monitoring.serviceMonitor=true",)),
        ("grafana_dashboard", "yes-please", ("monitoring.dashboard=true",)),
    ):
        place = "ingress.annotations" if key.startswith("nginx") else "monitoring.labels"
        setting = f"{place}.{key.replace('.', chr(92) + '.')}={value}"
        settings = [word for one in (*given, setting) for word in ("--set", one)]
        done = run("template", "bridge", str(CHART), "-f", str(SIMULATED), *settings)
        assert done.returncode == 0, done.stderr
        for document in done.stdout.split("\n---"):
            if f"{key}: {value}" in document:
                assert len(re.findall(rf"^ +{re.escape(key)}:", document, re.MULTILINE)) == 1
                break
        else:
            pytest.fail(f"{key} is not {value} anywhere")


def test_a_secret_that_only_has_an_admin_token_starts_edges_whose_door_is_open() -> None:
    objects = template(SIMULATED, "access.open=true", "access.existingSecret=theirs")
    [token] = [entry for entry in container(pods(objects)["bridge-edge"])["env"] if entry["name"] == "AC_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("app.env[0].name=RETRIES,app.env[0].value=5", "/app/env/0/value"),
        ("ingress.host=https://calls.example.com", "/ingress/host"),
        ("gateway.hostnames={calls.example.com/bot}", "/gateway/hostnames/0"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_before_and_named(setting: str, place: str) -> None:
    assert place in refusal(setting)


def test_an_application_may_have_variables_for_a_redis_of_its_own_but_not_those_of_the_bridge() -> None:
    worker = pods(template(SIMULATED, "app.env[0].name=REDIS_CACHE_URL,app.env[0].value=redis://cache"))[
        "bridge-worker"
    ]
    assert environment(worker, {})["REDIS_CACHE_URL"] == "redis://cache"
    for name in ("REDIS_URL", "REDIS_PASSWORD", "AC_TOKEN", "BRIDGE_ANYTHING"):
        assert "/app/env/0/name" in refusal(f"app.env[0].name={name},app.env[0].value=x")


def test_notes_know_a_gateway_that_takes_every_host_name_and_say_that_one_token_is_enough() -> None:
    given = ("gateway.enabled=true", "gateway.parentRefs[0].name=public")
    settings = [word for one in given for word in ("--set", one)]
    done = run("install", "bridge", str(CHART), "--dry-run=client", "-f", str(SIMULATED), *settings)
    told = done.stdout.partition("NOTES:")[2]
    assert "not reachable from outside" not in told
    assert "the Gateway public" in told
    assert "one of them" in told


@pytest.mark.parametrize("release", ["my.bridge", "eu.calls", "a" * 53])
def test_every_release_name_that_helm_takes_gives_names_that_services_may_have(release: str) -> None:
    names = [o["metadata"]["name"] for o in template(SIMULATED, release=release) if o["kind"] == "Service"]
    assert len(names) == 4
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names), names


def test_the_longest_interval_between_scrapes_leaves_four_samples_in_what_the_alerts_look_at() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    longest = schema["properties"]["monitoring"]["properties"]["interval"]["maximum"]
    windows = re.findall(r"\[(\d+)([mh])\]", (CHART / "files" / "alerts.yaml").read_text())
    assert min(int(number) * {"m": 60, "h": 3600}[unit] for number, unit in windows) >= 4 * longest
    assert "/monitoring/interval" in refusal(f"monitoring.interval={longest + 1}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("redis.bundled.maxMemory=769mb",), "Set maxMemory to 768mb or less"),
        (("redis.bundled.maxMemory=8gb",), "three quarters of redis.bundled.resources.limits.memory (1Gi)"),
        (("redis.bundled.resources.limits.memory=1G",), "Set maxMemory to 715mb or less"),
        (("redis.bundled.resources.limits.memory=500000000",), "Set maxMemory to 357mb or less"),
        (("redis.bundled.maxMemory=0mb",), "/redis/bundled/maxMemory"),
    ],
)
def test_a_redis_that_may_outgrow_its_memory_limit_is_refused(settings: tuple[str, ...], words: str) -> None:
    assert words in refusal(*settings)


@pytest.mark.parametrize("limit", ["1.5Gi", "2Gi", "1073741824", "null"])
def test_a_redis_that_stays_within_its_memory_limit_is_not(limit: str) -> None:
    template(SIMULATED, f"redis.bundled.resources.limits.memory={limit}")


def _numbers(schema: Object, at: str = "") -> Iterator[str]:
    """Where a number that need not be whole may stand."""
    if "number" in schema.get("type", ""):
        yield at
    for name, part in schema.get("properties", {}).items():
        yield from _numbers(part, f"{at}.{name}".lstrip("."))


FRACTIONS = sorted(_numbers(json.loads((CHART / "values.schema.json").read_text())))


@pytest.mark.parametrize("place", FRACTIONS)
def test_every_number_takes_a_fraction_from_the_command_line(place: str) -> None:
    where, _, name = place.rpartition(".")
    found = pods(template(SIMULATED, f"{place}=1.5"))
    variable = name if where == "settings" else "BRIDGE_DRAIN_SECONDS"
    roles = ["edge", "worker"] if where == "settings" else [where]
    assert [environment(found[f"bridge-{role}"], {})[variable] for role in roles] == ["1.5"] * len(roles)
    assert f"/{place.replace('.', '/')}" in refusal(f"{place}=half")
    assert f"/{place.replace('.', '/')}" in refusal(f"{place}=1.5.5")


def test_a_fraction_counts_in_everything_that_follows_from_it() -> None:
    objects = template(SIMULATED, "worker.drainSeconds=20.5", "edge.drainSeconds=20.5")
    grace = {
        role: pods(objects)[f"bridge-{role}"]["spec"]["terminationGracePeriodSeconds"] for role in ("edge", "worker")
    }
    assert grace == {"edge": 5 + 21 + 30, "worker": 21 + 30}
    assert named(objects, "Deployment", "bridge-worker")["spec"]["minReadySeconds"] == 21
    assert "Set it to 36 or more" in refusal("worker.drainSeconds=20.5", "worker.terminationGracePeriodSeconds=35")


def test_large_numbers_are_written_out(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "agent: {simulated: true}\nworker: {replicas: 2000000, calls: 100000}\n"
        "ingress: {enabled: true, host: calls.example.com, timeoutSeconds: 1000000}\n"
        "settings: {BRIDGE_OIDC_OUTAGE_SECONDS: 2592000}\n"
    )
    objects = template(values)
    assert named(objects, "Deployment", "bridge-worker")["spec"]["replicas"] == 2_000_000
    annotations = named(objects, "Ingress", "bridge-edge")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "1000000"
    assert not [text for text in environment(pods(objects)["bridge-worker"], {}).values() if "e+" in text]


async def test_a_cluster_with_ipv6_alone_can_be_served(redis_url: str, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("there is no IPv6 here")
    given = "settings.BRIDGE_HOST=::"
    edge = environment(pods(template(SIMULATED, given))["bridge-edge"], {})
    assert edge["BRIDGE_HOST"] == "::"
    listens = container(pods(template(SIMULATED, given))["bridge-agent"])["command"]
    assert listens[listens.index("--host") + 1] == "::"
    async with SimulatedAgent() as agent, Pods(redis_url, agent.url, application(tmp_path)) as running:
        pod = running.begin("edge", BRIDGE_HOST=edge["BRIDGE_HOST"], BRIDGE_PORT=str(free_port()))
        port = (await pod.until_logged("admin port open"))["port"]

        def ready() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://[::1]:{port}/readyz", timeout=2) as got:
                return bool(got.status == 200)
            return False

        await pod.until(ready, 30, "being ready on IPv6")
