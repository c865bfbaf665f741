"""Where and with what a benchmark ran; nothing that names a person, a path or a host."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bridge_shared.redis.embedded import find_server

LIBRARIES = ("websockets", "redis", "hiredis", "uvloop", "orjson", "msgpack")


def about(target: str, arguments: list[str]) -> dict[str, Any]:
    """Machine, versions and command, before anything is measured. `load` is what the machine was busy with then."""
    if "--json" in arguments:  # says nothing about what was measured
        at = arguments.index("--json")
        arguments = arguments[:at] + arguments[at + 2 :]
    return {
        "command": f"make {target}" + (f' ARGS="{shlex.join(arguments)}"' if arguments else ""),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
            "Redis server": _server(),
        },
        "commit": _commit(),
    }


def store(file: Path, given: dict[str, Any]) -> None:
    """Put this into the JSON file; the parts of `scale` beside those that are there, everything else in its place."""
    data = json.loads(file.read_text()) if file.exists() else {}
    scale = {**data.get("scale", {}), **given.get("scale", {})}
    file.write_text(json.dumps({**data, **given, **({"scale": scale} if scale else {})}, indent=1) + "\n")


def lines(found: dict[str, Any]) -> list[str]:
    """The same for a reader."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return [
        f"- command: `{found['command']}`, {found['at']}, commit {found['commit']}",
        f"- machine: {found['cores']} cores ({found['processor']}), {found['memory_gib']} GiB, {found['kernel']}; "
        f"load before the start {found['load']}",
        f"- versions: {versions}",
    ]


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def _server() -> str:
    """`Redis server v=7.0.15 sha=…` → 7.0.15; Valkey says it likewise."""
    said = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True).stdout.split()
    return next((word[2:] for word in said if word.startswith("v=")), "unknown")


def _commit() -> str:
    """The commit, with `+` if the product differs from it."""
    root = Path(__file__).parents[2]
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    if asked.returncode:
        return "unknown"
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "edge", "worker", "shared"], cwd=root)
    return asked.stdout.strip() + "+" * (same.returncode != 0)
