"""The chart, rendered: objects, names, selectors, references, settings, and the arithmetic of ending pods."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from bridge_shared import config
from bridge_shared.redis.url import topology
from rendered import (
    CHART,
    ROOT,
    SIMULATED,
    VALUES,
    Object,
    container,
    environment,
    named,
    pods,
    run,
    secret_values,
    template,
)

EVERY = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)

HELD_BY_OTHERS = {
    "their-deepgram",
    "their-tokens",
    "their-redis",
    "their-crm",
    "their-redis-ca",
    "their-app",
    "their-collector",
}


def file(name: str) -> Path:
    return SIMULATED.with_name(f"{name}.yaml")


@EVERY
def test_lint_finds_nothing(values: Path) -> None:
    done = run("lint", "--strict", str(CHART), "-f", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@EVERY
def test_the_oldest_helm_that_is_promised_renders_the_same(values: Path) -> None:
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    if (oldest := shutil.which("helm-oldest", path=places)) is None:
        pytest.skip("`make helm-oldest` has not fetched it")
    told = run("version", "--short", program=oldest).stdout
    assert re.search(r"Helm (\d+\.\d+) or newer", (ROOT / "helm" / "README.md").read_text())[1] in told  # type: ignore[index]
    words = ["template", "bridge", str(CHART), "--namespace", "calls", "-f", str(values)]
    old, new = run(*words, program=oldest), run(*words)
    assert old.returncode == 0, old.stderr
    assert _but_made_up(old.stdout) == _but_made_up(new.stdout)


def _but_made_up(rendered: str) -> list[Object]:
    documents = [o for o in yaml.safe_load_all(rendered) if o]
    for o in documents:
        if o["kind"] == "Secret":
            o["data"] = sorted(o["data"])
    return documents


def test_the_file_of_values_that_the_operations_page_shows_installs_with_the_secrets_it_creates(tmp_path: Path) -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    shown = tmp_path / "my-values.yaml"
    shown.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    objects = template(shown)
    [key] = [e for e in container(pods(objects)["bridge-worker"])["env"] if e["name"] == "DEEPGRAM_API_KEY"]
    asked = key["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {asked['name']} --from-literal={asked['key']}=" in page
    [tls] = named(objects, "Ingress", "bridge-edge")["spec"]["tls"]
    assert f"create secret tls {tls['secretName']} " in page


def test_a_release_called_bridge_gives_the_deployments_that_people_scale() -> None:
    assert sorted((o["kind"], o["metadata"]["name"]) for o in template()) == [
        ("ConfigMap", "bridge-redis"),
        ("ConfigMap", "bridge-test"),
        ("Deployment", "bridge-agent"),
        ("Deployment", "bridge-edge"),
        ("Deployment", "bridge-worker"),
        ("NetworkPolicy", "bridge-agent"),
        ("NetworkPolicy", "bridge-edge"),
        ("NetworkPolicy", "bridge-redis"),
        ("NetworkPolicy", "bridge-worker"),
        ("Pod", "bridge-test"),
        ("PodDisruptionBudget", "bridge-edge"),
        ("PodDisruptionBudget", "bridge-worker"),
        ("Secret", "bridge-access"),
        ("Secret", "bridge-redis"),
        ("Service", "bridge-admin"),
        ("Service", "bridge-agent"),
        ("Service", "bridge-edge"),
        ("Service", "bridge-redis"),
        ("ServiceAccount", "bridge"),
        ("StatefulSet", "bridge-redis"),
    ]


@pytest.mark.parametrize("values", [SIMULATED, file("app-inline"), file("monitoring")], ids=lambda path: path.stem)
def test_two_releases_in_one_namespace_share_no_object_and_select_no_pod_of_the_other(values: Path) -> None:
    one, other = template(values), template(values, release="second")
    assert not {(o["kind"], o["metadata"]["name"]) for o in one} & {(o["kind"], o["metadata"]["name"]) for o in other}
    for selector, _ in _selectors(one):
        assert not [name for name, pod in pods(other).items() if _selects(selector, pod)]


@EVERY
def test_everything_that_selects_pods_selects_those_of_its_role_and_no_others(values: Path) -> None:
    objects = template(values)
    for selector, owner in _selectors(objects):
        selected = {name for name, pod in pods(objects).items() if _selects(selector, pod)}
        expected = {"bridge-edge", "bridge-worker"} if owner == "Service bridge-admin" else {owner.partition(" ")[2]}
        assert selected == expected, owner


@EVERY
def test_services_and_policies_name_ports_that_their_pods_have(values: Path) -> None:
    objects = template(values)
    for o in objects:
        if o["kind"] == "Service":
            ports, selector = [port["targetPort"] for port in o["spec"]["ports"]], o["spec"]["selector"]
        elif o["kind"] == "NetworkPolicy":
            ports = [port["port"] for rule in o["spec"]["ingress"] for port in rule["ports"]]
            selector = o["spec"]["podSelector"]["matchLabels"]
        else:
            continue
        for pod in [pod for pod in pods(objects).values() if _selects(selector, pod)]:
            assert set(ports) <= {port["name"] for port in container(pod)["ports"]}, o["metadata"]["name"]


@EVERY
def test_everything_that_pods_refer_to_is_rendered_or_belongs_to_somebody_else(values: Path) -> None:
    objects = template(values)
    ours = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    for name, pod in pods(objects).items():
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in ours
        for volume in pod["spec"].get("volumes", []):
            for kind, source in (
                ("ConfigMap", volume.get("configMap", {}).get("name")),
                ("Secret", volume.get("secret", {}).get("secretName")),
            ):
                assert source is None or source in HELD_BY_OTHERS or (kind, source) in ours, f"{name}: {volume}"
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | (
            {"data"} if name == "bridge-redis" else set()
        )
        assert {mount["name"] for mount in container(pod)["volumeMounts"]} == volumes
        for entry in container(pod).get("env", []):
            if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                if reference["name"] in HELD_BY_OTHERS:
                    continue
                assert reference["key"] in ours["Secret", reference["name"]]["data"], f"{name}: {entry}"


def test_edges_and_workers_get_the_variables_that_send_traces_somewhere() -> None:
    found = pods(template(file("traces")))
    for name in ("bridge-edge", "bridge-worker"):
        given = {e["name"]: e for e in container(found[name])["env"] if e["name"].startswith("OTEL_")}
        assert given["OTEL_EXPORTER_OTLP_ENDPOINT"]["value"] == "http://collector.monitoring:4318"
        assert given["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"] == {
            "secretKeyRef": {"name": "their-collector", "key": "headers"}
        }


def test_with_an_issuer_edges_check_its_tokens_and_no_token_of_ours_is_made_up() -> None:
    objects = template(file("oidc"))
    edge, worker = (environment(pods(objects)[f"bridge-{role}"], {}) for role in ("edge", "worker"))
    assert edge["BRIDGE_OIDC_ISSUER"] == "https://login.example.com/tenant/v2.0"
    assert edge["BRIDGE_OIDC_AUDIENCE"] == "api://bridge"
    assert "AC_TOKEN" not in edge
    assert not [name for name in worker if name in ("BRIDGE_OIDC_ISSUER", "BRIDGE_OIDC_AUDIENCE", "AC_TOKEN")]
    assert "bridge-access" not in [o["metadata"]["name"] for o in objects]
    assert "bridge-test" not in pods(objects)  # its caller would have no token


def test_tokens_of_ours_and_of_an_issuer_open_the_door_side_by_side() -> None:
    objects = template(file("oidc"), "access.tokens={one}", "access.adminToken=two")
    edge = environment(pods(objects)["bridge-edge"], secret_values(objects))
    assert (edge["AC_TOKEN"], edge["BRIDGE_ADMIN_TOKEN"]) == ("one", "two")
    assert edge["BRIDGE_OIDC_ISSUER"]
    assert "bridge-test" in pods(objects)
    kept = template(file("oidc"), "access.existingSecret=their-tokens")
    [token] = [e for e in container(pods(kept)["bridge-edge"])["env"] if e["name"] == "AC_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "their-tokens", "key": "ac-token", "optional": True}
    only_admin = template(file("oidc"), "access.adminToken=two")
    assert secret_values(only_admin)["bridge-access", "admin-token"] == "two"
    assert ("bridge-access", "ac-token") not in secret_values(only_admin)


@EVERY
def test_pods_start_with_settings_that_the_code_knows_and_takes(values: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = template(values)
    for name in sorted({"bridge-edge", "bridge-worker", "bridge-test"} & set(pods(objects))):
        variables = environment(pods(objects)[name], secret_values(objects))
        for known in [n for n in os.environ if n.startswith(("BRIDGE_", "REDIS_", "AC_TOKEN", "DEEPGRAM_"))]:
            monkeypatch.delenv(known)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        settings = config.load()  # raises for a variable that is no setting, or a value that is none
        assert settings.redis_url is not None
        topology(settings.redis_url)
        for variable in variables:
            monkeypatch.delenv(variable)


@EVERY
def test_no_variable_is_given_twice(values: Path) -> None:
    for name, pod in pods(template(values)).items():
        names = [entry["name"] for entry in container(pod).get("env", [])]
        assert len(names) == len(set(names)), name


def test_values_become_the_settings_they_are_named_after() -> None:
    objects = template(file("app-inline"), "edge.calls=250", "worker.calls=40", "logLevel=DEBUG", "agent.limit=30")
    edge, worker = (environment(pods(objects)[f"bridge-{role}"], {}) for role in ("edge", "worker"))
    assert edge["BRIDGE_EDGE_CALLS"] == "250"
    assert worker["BRIDGE_WORKER_CALLS"] == "40"
    assert worker["BRIDGE_AGENT_LIMIT"] == "30"
    assert worker["BRIDGE_TRANSCRIPT_TTL"] == "2592000"  # and not 2.592e+06
    assert worker["BRIDGE_LOST_SECONDS"] == "12.5"
    assert worker["BRIDGE_FLEET"] == edge["BRIDGE_FLEET"] == "blue"
    assert edge["CRM_URL"] == worker["CRM_URL"] == "https://crm.example.com"


def test_an_edge_has_no_key_to_the_agent_and_a_worker_none_to_the_door() -> None:
    objects = template(file("secrets-by-value"))
    edge, worker = (environment(pods(objects)[f"bridge-{role}"], {}) for role in ("edge", "worker"))
    assert "DEEPGRAM_API_KEY" not in edge
    assert "AC_TOKEN" not in worker


def test_settings_offers_exactly_the_settings_that_have_no_value_of_their_own() -> None:
    """After a setting came or went: python tests/helm/settings_schema.py"""
    writer = runpy.run_path(str(ROOT / "tests" / "helm" / "settings_schema.py"))
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["settings"]["properties"] == writer["offered"]()
    assert {config.env_name(field) for field in config.Settings.model_fields} >= writer["SET_BY_THE_CHART"]


def test_no_secret_is_anywhere_but_in_secrets() -> None:
    objects = template(file("secrets-by-value"))
    kept = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Secret"}
    everything_else = json.dumps([o for o in objects if o["kind"] != "Secret"])
    assert "in-values" not in everything_else
    assert {name for name in kept} == {"bridge-access", "bridge-agent", "bridge-redis", "bridge-media"}
    values = secret_values(objects)
    assert values["bridge-access", "ac-token"] == "old-token-in-values,new-token-in-values"
    for value in values.values():
        assert value not in everything_else


def test_without_tokens_one_is_made_up_and_the_door_stays_shut() -> None:
    tokens = {secret_values(template(SIMULATED, f"test.path={n}"))["bridge-access", "ac-token"] for n in "ab"}
    assert len(tokens) == 2  # not the same one for everybody
    assert all(len(token) == 40 for token in tokens)
    assert "BRIDGE_OPEN_DOOR" not in environment(pods(template())["bridge-edge"], {})


def test_another_application_or_token_replaces_the_pods_and_another_size_does_not() -> None:
    def annotations(*settings: str) -> Object:
        found = pods(template(file("app-inline"), *settings))["bridge-worker"]["metadata"]["annotations"]
        assert isinstance(found, dict)
        return found

    before = annotations()
    assert annotations("app.inline=print()") != before
    assert annotations("access.tokens={a,b}") != before
    assert annotations("redis.url=redis://elsewhere:6379") != before
    assert annotations("worker.replicas=7") == before


def test_redis_never_throws_calls_away_and_keeps_what_it_was_told() -> None:
    objects = template()
    text = named(objects, "ConfigMap", "bridge-redis")["data"]["redis.conf"]
    configuration = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("#"))
    assert configuration["maxmemory-policy"] == "noeviction"
    assert (configuration["appendonly"], configuration["appendfsync"]) == ("yes", "everysec")
    mounts = {mount["name"]: mount["mountPath"] for mount in container(pods(objects)["bridge-redis"])["volumeMounts"]}
    assert configuration["dir"] == mounts["data"]


@pytest.mark.parametrize("values", [SIMULATED, file("app-configmap")], ids=lambda path: path.stem)
@pytest.mark.parametrize("role", ["edge", "worker"])
def test_kubernetes_waits_longer_than_a_drain_takes(values: Path, role: str) -> None:
    pod = pods(template(values))[f"bridge-{role}"]
    drain = float(environment(pod, {})["BRIDGE_DRAIN_SECONDS"])
    command = container(pod).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep(0)"])
    before = float(command[-1].partition("sleep(")[2].rstrip(")"))
    assert pod["spec"]["terminationGracePeriodSeconds"] >= before + drain + 15


def test_a_roll_out_waits_until_a_worker_has_given_its_calls_away_before_it_ends_the_next() -> None:
    worker = named(template(), "Deployment", "bridge-worker")["spec"]
    assert worker["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert worker["minReadySeconds"] >= 20  # after which a drain waits for no pause any more


@EVERY
def test_probes_ask_the_admin_port_and_a_restart_takes_longer_than_a_takeover(values: Path) -> None:
    for role in ("edge", "worker"):
        only = container(pods(template(values))[f"bridge-{role}"])
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert only[probe]["httpGet"] == {"path": path, "port": "admin"}
        alive, ready = only["livenessProbe"], only["readinessProbe"]
        assert alive["periodSeconds"] * alive["failureThreshold"] >= 20
        assert ready["periodSeconds"] * ready["failureThreshold"] <= 5  # an edge takes calls 5 s more when it drains


def test_autoscalers_scale_the_deployments_that_exist_and_nothing_else_sets_their_size() -> None:
    for values, kind in ((file("hpa"), "HorizontalPodAutoscaler"), (file("keda"), "ScaledObject")):
        objects = template(values)
        for role in ("edge", "worker"):
            scaler = named(objects, kind, f"bridge-{role}")
            deployment = named(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
            assert "replicas" not in deployment["spec"]
    assert named(template(), "Deployment", "bridge-worker")["spec"]["replicas"] == 2


def test_keda_takes_no_pod_away_because_prometheus_has_nothing_to_say_yet() -> None:
    for role in ("edge", "worker"):
        by_calls, _ = named(template(file("keda")), "ScaledObject", f"bridge-{role}")["spec"]["triggers"]
        assert by_calls["type"] == "prometheus"
        assert by_calls["metadata"]["ignoreNullValues"] == "false"


def test_pods_are_added_at_seventy_per_cent_and_taken_away_one_at_a_time() -> None:
    scaler = named(template(file("hpa"), "worker.calls=50"), "HorizontalPodAutoscaler", "bridge-worker")["spec"]
    assert scaler["metrics"][0]["pods"]["target"]["averageValue"] == "35"
    down = scaler["behavior"]["scaleDown"]
    assert [(policy["type"], policy["value"]) for policy in down["policies"]] == [("Pods", 1)]
    grace = pods(template(file("hpa")))["bridge-worker"]["spec"]["terminationGracePeriodSeconds"]
    assert down["policies"][0]["periodSeconds"] > grace


def test_a_test_that_failed_stays_for_its_logs_until_the_next_and_one_that_passed_goes() -> None:
    hooks = [o for o in template() if "helm.sh/hook" in o["metadata"].get("annotations", {})]
    assert sorted(o["kind"] for o in hooks) == ["ConfigMap", "Pod"]
    for o in hooks:
        policy = o["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        assert set(policy.split(",")) == {"before-hook-creation", "hook-succeeded"}


def test_calls_may_last_two_hours_through_ingress_and_gateway() -> None:
    objects = template(file("ingress"))
    ingress = named(objects, "Ingress", "bridge-edge")
    annotations = ingress["metadata"]["annotations"]
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > 7200
    assert annotations["nginx.org/websocket-services"] == named(objects, "Service", "bridge-edge")["metadata"]["name"]
    assert int(annotations["nginx.org/proxy-read-timeout"].rstrip("s")) > 7200
    [rule] = named(template(file("gateway")), "HTTPRoute", "bridge-edge")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    [bare] = named(template(file("gateway"), "gateway.timeouts=false"), "HTTPRoute", "bridge-edge")["spec"]["rules"]
    assert "timeouts" not in bare


def test_what_a_cluster_lacks_can_be_left_out() -> None:
    kinds = {o["kind"] for o in template(file("old-cluster"))}
    assert not kinds & {"NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress", "HTTPRoute"}


def _selectors(objects: list[Object]) -> list[tuple[Object, str]]:
    """The labels by which each object selects pods, and the object's kind and name."""
    found = []
    for o in objects:
        spec, owner = o.get("spec", {}), f"{o['kind']} {o['metadata']['name']}"
        if o["kind"] == "Service":
            found.append((spec["selector"], owner))
        elif o["kind"] == "NetworkPolicy":
            found.append((spec["podSelector"]["matchLabels"], owner))
        elif o["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            found.append((spec["selector"]["matchLabels"], owner))
        if o["kind"] in ("Deployment", "StatefulSet"):
            for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
                found.append((spread["labelSelector"]["matchLabels"], owner))
    return found


def _selects(selector: Object, pod: Object) -> bool:
    return selector.items() <= pod["metadata"]["labels"].items()
