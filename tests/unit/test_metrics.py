"""bridge_shared.metrics: the names that dashboards and alert rules rely on."""

from __future__ import annotations

import re
import subprocess
import sys

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from bridge_shared import metrics


def rendered() -> dict[str, str]:
    """Name -> type of everything on /metrics."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {family.name: family.type for family in families}


def test_what_is_rendered_can_be_parsed_and_has_our_prefix():
    served = rendered()
    assert served["bridge_calls_live"] == "gauge"
    assert served["bridge_setup_seconds"] == "histogram"
    assert all(name.startswith(("bridge_", "python_", "process_")) for name in served)


def test_the_table_in_the_docstring_lists_every_metric():
    documented = set(re.findall(r"^\| `\w+`[^|]*\| `(bridge_\w+)`", metrics.__doc__ or "", re.MULTILINE))
    served = set()
    for name, kind in rendered().items():
        if name.startswith("bridge_") and not name.endswith("_created"):
            served.add(f"{name}_total" if kind == "counter" else name)
    assert documented == served


def test_a_count_is_served():
    def value() -> float:
        return metrics.registry.get_sample_value("bridge_calls_refused_total", {"reason": "test"}) or 0.0

    before = value()
    metrics.calls_refused.labels("test").inc()
    assert value() == before + 1


def test_setup_buckets_reach_past_the_accept_timeout():
    """A histogram whose last finite bucket is the time-out itself could not tell late from very late."""
    metrics.setup_seconds.observe(9)
    assert metrics.registry.get_sample_value("bridge_setup_seconds_bucket", {"le": "8.0"}) is not None
    assert (metrics.registry.get_sample_value("bridge_setup_seconds_bucket", {"le": "15.0"}) or 0) >= 1


def test_the_applications_own_registry_stays_its_own():
    assert not [f.name for f in REGISTRY.collect() if f.name.startswith("bridge_")]


def test_importing_us_before_the_application_defines_equal_names_is_no_clash():
    code = "import bridge_shared.metrics, prometheus_client as p; p.Counter('bridge_cuts', 'mine')"
    subprocess.run([sys.executable, "-c", code], check=True)
