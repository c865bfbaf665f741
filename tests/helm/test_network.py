"""Who reaches whom under the rendered NetworkPolicies, worked out as Kubernetes does."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from rendered import SIMULATED, Object, container, pods, template

OPEN = SIMULATED
CLOSED = SIMULATED.with_name("ingress.yaml")  # callers from namespace ingress, operators from namespace monitoring


class Peer(NamedTuple):
    """A pod by the labels of its namespace and its own."""

    namespace: str
    labels: dict[str, str]


def ours(objects: list[Object], name: str) -> Peer:
    return Peer("calls", pods(objects)[name]["metadata"]["labels"])


def stranger(namespace: str) -> Peer:
    return Peer(namespace, {"app.kubernetes.io/name": "something-else"})


def reaches(objects: list[Object], peer: Peer, name: str, port: str) -> bool:
    """Whether `peer` may open a connection to this port of a pod of the release."""
    target = pods(objects)[name]
    assert port in [p["name"] for p in container(target)["ports"]]
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    about = [p for p in policies if _matches(p["podSelector"], target["metadata"]["labels"])]
    rules = [rule for policy in about if "Ingress" in policy["policyTypes"] for rule in policy["ingress"]]
    return not about or any(
        port in [p["port"] for p in rule["ports"]] and ("from" not in rule or any(_is(p, peer) for p in rule["from"]))
        for rule in rules
    )


def _is(wanted: Object, peer: Peer) -> bool:
    assert wanted and wanted.keys() <= {"namespaceSelector", "podSelector"}
    if "namespaceSelector" in wanted:
        there = _matches(wanted["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        there = peer.namespace == "calls"
    return there and _matches(wanted.get("podSelector", {}), peer.labels)


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    expressions: list[dict[str, Any]] = selector.get("matchExpressions", [])
    assert all(e["operator"] == "In" for e in expressions)
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(labels.get(e["key"]) in e["values"] for e in expressions)


@pytest.mark.parametrize("values", [OPEN, CLOSED], ids=lambda path: path.stem)
def test_the_caller_of_helm_test_reaches_an_edge_and_redis(values: Any) -> None:
    objects = template(values)
    assert reaches(objects, ours(objects, "bridge-test"), "bridge-edge", "calls")
    assert reaches(objects, ours(objects, "bridge-test"), "bridge-redis", "redis")


def test_only_edges_workers_and_the_test_reach_redis_and_only_those_of_this_release() -> None:
    objects, others = template(OPEN), template(OPEN, release="second")
    assert [name for name in pods(objects) if reaches(objects, ours(objects, name), "bridge-redis", "redis")] == [
        "bridge-edge",
        "bridge-worker",
        "bridge-test",
    ]
    assert not reaches(objects, ours(others, "second-bridge-worker"), "bridge-redis", "redis")
    assert not reaches(objects, stranger("calls"), "bridge-redis", "redis")


def test_only_workers_reach_the_simulated_agent() -> None:
    objects = template(OPEN)
    reaching = [name for name in pods(objects) if reaches(objects, ours(objects, name), "bridge-agent", "agent")]
    assert reaching == ["bridge-worker"]


def test_prometheus_scrapes_from_any_namespace_unless_those_of_operators_are_named() -> None:
    for role in ("bridge-edge", "bridge-worker"):
        for namespace in ("monitoring", "elsewhere"):
            assert reaches(template(OPEN), stranger(namespace), role, "admin")
            assert reaches(template(CLOSED), stranger(namespace), role, "admin") == (namespace == "monitoring")


def test_everybody_may_call_unless_those_who_may_are_named() -> None:
    for namespace in ("ingress", "elsewhere"):
        assert reaches(template(OPEN), stranger(namespace), "bridge-edge", "calls")
        assert reaches(template(CLOSED), stranger(namespace), "bridge-edge", "calls") == (namespace == "ingress")


@pytest.mark.parametrize("values", [OPEN, CLOSED], ids=lambda path: path.stem)
def test_nothing_keeps_edges_workers_and_the_test_from_names_deepgram_and_the_issuer(values: Any) -> None:
    objects = template(values)
    for policy in [o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and "Egress" in o["spec"]["policyTypes"]]:
        for name in ("bridge-edge", "bridge-worker", "bridge-test"):
            assert not _matches(policy["podSelector"], pods(objects)[name]["metadata"]["labels"])
