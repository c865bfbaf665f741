"""Dashboard and alerts ask for metrics and labels that the code has, and every alert says what to do."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from bridge_shared import metrics
from rendered import CHART, ROOT, SIMULATED, Object, named, template

DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
ALERTS = [
    rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]

FROM_PROMETHEUS = {"namespace", "pod", "instance", "job", "service"}
"""Labels that scraping adds."""


def _panels() -> Iterator[Object]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


EXPRESSIONS = [
    *(pytest.param(t["expr"], id=f"{p['title']} {t['refId']}") for p in _panels() for t in p["targets"]),
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in ALERTS),
]


def _served() -> dict[str, set[str]]:
    """Name of each series on /metrics -> its labels."""
    found: dict[str, set[str]] = {}
    for collector in set(metrics.registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            for suffix in suffixes:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


SERVED = _served()


def _filled(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$namespace", "calls")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_can_be_read_and_asks_for_what_pods_serve(expression: str) -> None:
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    selectors, groupings = [], []

    def walk(node: Any) -> None:
        if isinstance(node, parser.VectorSelector):
            selectors.append(node)
        elif isinstance(node, parser.AggregateExpr) and node.modifier is not None:
            groupings.append((node.modifier.labels, node))
        for part in ("lhs", "rhs", "expr", "vector_selector"):
            if (inner := getattr(node, part, None)) is not None:
                walk(inner)
        for inner in getattr(node, "args", ()):
            walk(inner)

    walk(parser.parse(_filled(expression)))
    assert selectors
    for selector in selectors:
        assert selector.name in SERVED, f"{selector.name} is not served"
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= SERVED[selector.name] | FROM_PROMETHEUS
    for labels, _ in groupings:
        assert set(labels) <= set().union(*(SERVED[selector.name] for selector in selectors)) | FROM_PROMETHEUS


def test_legends_name_labels_that_their_expression_keeps() -> None:
    for panel in _panels():
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                kept = re.search(rf"(by|on) \([^)]*\b{label}\b", target["expr"])
                assert kept, f"{panel['title']}: {label}"


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = {
        (x, y)
        for p in DASHBOARD["panels"]
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    }
    assert len(places) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in DASHBOARD["panels"])


def test_every_alert_is_explained_in_the_runbook_and_nothing_else_is() -> None:
    runbook = (ROOT / "deploy" / "README.md").read_text()
    assert set(re.findall(r"^#### (Bridge\w+)", runbook, re.MULTILINE)) == {rule["alert"] for rule in ALERTS}


def _refusals() -> set[str]:
    """Every word that the edge gives as `reason` of `bridge_calls_refused_total`."""
    found: set[str] = set()
    for file in (ROOT / "edge" / "bridge_edge").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            said: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                if name in ("refused", "refuse", "_drop"):
                    said = node.args[:1]
                elif name == "labels" and "calls_refused" in ast.unparse(node.func):
                    said = [keyword.value for keyword in node.keywords] + node.args
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                said = [node.value]
            elif isinstance(node, ast.FunctionDef) and node.name == "enter":
                said = [step.value for step in ast.walk(node) if isinstance(step, ast.Return) and step.value]
            for value in said:
                words = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                found |= {str(word.value) for word in words if isinstance(word, ast.Constant) and word.value}
    return {word for word in found if re.fullmatch("[a-z_]+", word)}


def test_every_reason_for_which_a_call_is_refused_is_in_the_runbook_and_nothing_else_is() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    rows = re.findall(
        r"^\| (`.*?) \|", page.partition("#### BridgeCallsRefused")[2].partition("\n#### ")[0], re.MULTILINE
    )
    explained = {word for row in rows for word in re.findall("`(\\w+)`", row)} - {"reason"}
    assert {"edge_full", "no_worker", "agent_slow", "no_keys", "address", "head"} <= explained
    assert explained == _refusals()


def test_every_metric_that_pods_serve_is_in_the_table_of_the_operations_page_with_its_labels() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    rows = re.findall(r"^\| `(bridge_\w+)` \| (\w+) \| (?:`(\w+)`)? ?\|", page, re.MULTILINE)
    served = set()
    for collector in set(metrics.registry._collector_to_names):
        for family in collector.collect():
            if family.name.startswith("bridge_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                served.add((name, family.type, ",".join(getattr(collector, "_labelnames", ()))))
    assert set(rows) == served
    assert len(rows) == len(served)


def test_the_chart_hands_on_the_dashboard_as_it_is_and_the_alerts_for_its_own_namespace_alone() -> None:
    objects = template(SIMULATED.with_name("monitoring.yaml"))
    groups = named(objects, "PrometheusRule", "bridge")["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        selectors = re.findall(r"bridge_[a-z_]+(\S*)", rule["expr"])
        assert selectors
        assert all(selector.startswith('{namespace="calls"') for selector in selectors), rule["expr"]
        assert rule["labels"].pop("namespace") == "calls"
        rule["expr"] = rule["expr"].replace('{namespace="calls"}', "").replace('namespace="calls",', "")
    assert rules == ALERTS
    assert json.loads(named(objects, "ConfigMap", "bridge-dashboard")["data"]["bridge.json"]) == DASHBOARD


@pytest.mark.parametrize("settings", [(), ("monitoring.runbookUrl=https://git.example.com/ops/README.md",)])
def test_every_alert_carries_where_to_read_what_to_do(settings: tuple[str, ...]) -> None:
    objects = template(SIMULATED.with_name("monitoring.yaml"), *settings)
    for rule in named(objects, "PrometheusRule", "bridge")["spec"]["groups"][0]["rules"]:
        told = {name: text for name, text in rule["annotations"].items() if name.startswith("runbook")}
        if settings:
            assert told == {"runbook_url": f"https://git.example.com/ops/README.md#{rule['alert'].lower()}"}
        else:
            assert told == {"runbook": f"deploy/README.md, {rule['alert']}"}


def test_the_service_monitor_finds_the_service_of_the_admin_ports() -> None:
    objects = template(SIMULATED.with_name("monitoring.yaml"))
    wanted = named(objects, "ServiceMonitor", "bridge")["spec"]
    [service] = [
        o
        for o in objects
        if o["kind"] == "Service" and wanted["selector"]["matchLabels"].items() <= o["metadata"]["labels"].items()
    ]
    assert service["metadata"]["name"] == "bridge-admin"
    assert [e["port"] for e in wanted["endpoints"]] == [port["name"] for port in service["spec"]["ports"]]
