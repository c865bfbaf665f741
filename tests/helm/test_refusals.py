"""What the chart refuses to render, and whether its words help."""

from __future__ import annotations

import json

import pytest
import yaml

from rendered import CHART, SIMULATED, Object, refusal, run


@pytest.mark.parametrize(
    ("setting", "place", "key"),
    [
        ("worker.replica=3", "/worker", "'replica'"),
        ("redis.bundled.persistence=true", "/redis/bundled", "'persistence'"),
        ("wroker.replicas=3", "''", "'wroker'"),
        ("settings.BRIDGE_LOST_SECOND=3", "/settings", "'BRIDGE_LOST_SECOND'"),
        ("settings.BRIDGE_OIDC_ISSUER=https://h", "/settings", "'BRIDGE_OIDC_ISSUER'"),
        ("access.oidc.issuer=http://h", "/access/oidc/issuer", "pattern"),
        ("settings.BRIDGE_PORT=8081", "/settings", "'BRIDGE_PORT'"),
        ("settings.BRIDGE_LOST_SECONDS=5000", "/settings/BRIDGE_LOST_SECONDS", "maximum"),
        ("worker.replicas=many", "/worker/replicas", "integer"),
        ("worker.drainSeconds=-1", "/worker/drainSeconds", "minimum"),
        ("redis.url=localhost:6379", "/redis/url", "pattern"),
        ("autoscaling.kind=vpa", "/autoscaling/kind", "'keda'"),
        ("monitoring.runbookUrl=README.md", "/monitoring/runbookUrl", "pattern"),
        ("access.tokens={two words}", "/access/tokens/0", "pattern"),
        ("app.env[0].name=BRIDGE_PORT", "/app/env/0/name", "'not' failed"),
    ],
)
def test_a_wrong_key_or_value_is_named(setting: str, place: str, key: str) -> None:
    message = refusal(setting)
    assert place in message
    assert key in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("agent.simulated=false",), "set agent.apiKey or agent.existingSecret, or agent.simulated=true"),
        (("agent.apiKey=k",), "leave them out, or simulated"),
        (("agent.simulated=false", "agent.apiKey=k", "agent.existingSecret=s"), "give one of them"),
        (("redis.url=redis://h", "redis.existingSecret=s"), "give one of them"),
        (("app.inline=pass", "app.configMap=c"), "give one of them"),
        (("access.existingSecret=s", "access.adminToken=t"), "put the tokens into that Secret"),
        (("access.oidc.issuer=https://h",), "access.oidc.audience is missing"),
        (("access.oidc.audience=a",), "access.oidc.issuer is missing"),
        (("access.oidc.issuer=https://h", "access.oidc.audience=a", "access.open=true"), "Give one of them"),
        (("ingress.enabled=true",), "give the name that Live Hub shall call"),
        (("gateway.enabled=true",), "name the Gateway"),
        (("autoscaling.kind=keda",), "give the address of the Prometheus"),
        (("autoscaling.kind=hpa", "autoscaling.cpu=0", "autoscaling.callsMetric="), "nothing left to scale by"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_what_to_do(settings: tuple[str, ...], words: str) -> None:
    assert words in refusal(*settings)


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (("worker.terminationGracePeriodSeconds=44",), 45),
        (("edge.terminationGracePeriodSeconds=139",), 140),
        (("worker.terminationGracePeriodSeconds=60", "worker.drainSeconds=60"), 75),
    ],
)
def test_a_grace_period_shorter_than_the_drain_is_refused_with_the_least_that_would_do(
    settings: tuple[str, ...], least: int
) -> None:
    assert f"Set it to {least} or more, or to null" in refusal(*settings)
    role = settings[0].partition(".")[0]
    enough = [s for s in settings if "Grace" not in s] + [f"{role}.terminationGracePeriodSeconds={least}"]
    done = run("template", "bridge", str(CHART), "-f", str(SIMULATED), *(a for s in enough for a in ("--set", s)))
    assert done.returncode == 0, done.stderr


def test_every_key_of_the_schema_has_a_default_and_every_default_is_in_the_schema() -> None:
    def keys(schema: Object, at: str = "") -> set[str]:
        inner = schema.get("properties")
        if inner is None or at in ("settings", "global", "app.env") or at.endswith("resources"):
            return {at}
        return {key for name, part in inner.items() for key in keys(part, f"{at}.{name}".lstrip("."))}

    def defaults(values: object, at: str = "") -> set[str]:
        if not isinstance(values, dict) or not values or at.endswith("resources"):
            return {at}
        return {key for name, part in values.items() for key in defaults(part, f"{at}.{name}".lstrip("."))}

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert keys(schema) - {"global"} == defaults(yaml.safe_load((CHART / "values.yaml").read_text()))
