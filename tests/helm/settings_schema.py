"""Which settings `settings` of the chart offers. Run as a program it writes them into values.schema.json:
python tests/helm/settings_schema.py (the tests compare the two)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from bridge_shared import config

SCHEMA = Path(__file__).parents[2] / "helm" / "bridge" / "values.schema.json"
WIDTH = 110

SET_BY_THE_CHART = {
    "BRIDGE_MEDIA_REDIS_URL",
    "BRIDGE_PORT",
    "BRIDGE_ADMIN_PORT",
    "BRIDGE_ADMIN_TOKEN",
    "BRIDGE_OPEN_DOOR",
    "BRIDGE_OIDC_ISSUER",
    "BRIDGE_OIDC_AUDIENCE",
    "BRIDGE_ROLE",
    "BRIDGE_EDGE_CALLS",
    "BRIDGE_WORKER_CALLS",
    "BRIDGE_AGENT_LIMIT",
    "BRIDGE_DRAIN_SECONDS",
    "BRIDGE_LOG_LEVEL",
    "BRIDGE_LOG_FORMAT",
}
"""These have values of their own, so `settings` must not name them a second time."""


def number(low: float, high: float) -> dict[str, Any]:
    """The schema of a number that may be a fraction.

    `helm --set x=0.5` gives a text, and a schema has no bounds for texts: one out of bounds is refused by the pod,
    which ends with 2 and names it.
    """
    return {"type": ["number", "string"], "minimum": low, "maximum": high, "pattern": r"^\d+\.\d+$"}


def offered() -> dict[str, dict[str, Any]]:
    """Variable -> schema of its value, for every other setting of ours."""
    found: dict[str, dict[str, Any]] = {}
    for field, info in config.Settings.model_fields.items():
        name, extra = config.env_name(field), info.json_schema_extra
        assert isinstance(extra, dict)
        if not name.startswith(config.PREFIX) or name in SET_BY_THE_CHART:
            continue
        if extra["low"] is not None:
            whole = int in (info.annotation, *get_args(info.annotation))
            found[name] = (
                {"type": "integer", "minimum": extra["low"], "maximum": extra["high"]}
                if whole
                else number(extra["low"], extra["high"])
            )
        else:
            found[name] = {"type": "boolean" if info.annotation is bool else "string"}
    return found


def _written(value: Any, indent: int = 0) -> str:
    """JSON with what fits a line on one line."""
    flat = json.dumps(value)
    if len(flat) + indent < WIDTH or not isinstance(value, dict | list):
        return flat
    inner, outer = "\n" + " " * (indent + 2), "\n" + " " * indent
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {_written(part, indent + 2)}" for name, part in value.items()]
        return "{" + inner + f",{inner}".join(parts) + outer + "}"
    return "[" + inner + f",{inner}".join(_written(part, indent + 2) for part in value) + outer + "]"


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["properties"] = offered()
    for role in ("edge", "worker"):
        drain = schema["properties"][role]["properties"]["drainSeconds"]
        schema["properties"][role]["properties"]["drainSeconds"] = number(drain["minimum"], drain["maximum"])
    SCHEMA.write_text(_written(schema) + "\n")
