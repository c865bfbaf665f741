"""What `helm template` makes of the chart, as Python objects."""

from __future__ import annotations

import base64
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "bridge"
VALUES = sorted((ROOT / "tests" / "helm" / "values").glob("*.yaml"))
SIMULATED = VALUES[0].with_name("simulated.yaml")

Object = dict[str, Any]


@functools.cache
def helm() -> str:
    """The helm to use: on PATH, or where `make helm` puts it. Skips the test if there is none."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    if (found := shutil.which("helm", path=places)) is None:
        pytest.skip("helm is not on PATH, and `make helm` has not fetched it")
    return found


def run(*arguments: str, program: str | None = None) -> subprocess.CompletedProcess[str]:
    """helm (or that `program`) with these arguments; its output, whether it succeeded or not."""
    return subprocess.run([program or helm(), *arguments], capture_output=True, text=True, timeout=60)


def template(values: Path = SIMULATED, *settings: str, release: str = "bridge") -> list[Object]:
    """What the chart renders for a file of values and `--set` settings. Fails with helm's message."""
    return [document for document in yaml.safe_load_all(_template(values, settings, release)) if document]


@functools.cache
def _template(values: Path, settings: tuple[str, ...], release: str) -> str:
    done = run("template", release, str(CHART), "--namespace", "calls", "-f", str(values), *_set(settings))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(*settings: str, values: Path = SIMULATED) -> str:
    """Why the chart does not render with these settings. Fails if it does."""
    done = run("template", "bridge", str(CHART), "-f", str(values), *_set(settings))
    assert done.returncode != 0, "it rendered"
    return done.stderr


def _set(settings: tuple[str, ...]) -> Iterator[str]:
    for setting in settings:
        yield from ("--set", setting)


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name."""
    [found] = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """The pod of each object that makes pods, by the object's name: with `metadata` and `spec`."""
    found = {}
    for o in objects:
        if o["kind"] == "Pod":
            found[o["metadata"]["name"]] = o
        elif o["kind"] in ("Deployment", "StatefulSet"):
            found[o["metadata"]["name"]] = o["spec"]["template"]
    return found


def container(pod: Object) -> Object:
    """The only container of a pod."""
    [only] = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def secret_values(objects: list[Object]) -> dict[tuple[str, str], str]:
    """(Secret, key) -> value, decoded."""
    return {
        (o["metadata"]["name"], key): base64.b64decode(value).decode()
        for o in objects
        if o["kind"] == "Secret"
        for key, value in o.get("data", {}).items()
    }


def environment(pod: Object, secrets: dict[tuple[str, str], str]) -> dict[str, str]:
    """The variables that Kubernetes would give the container; Secrets that are not ours are made up."""
    variables: dict[str, str] = {}
    for entry in container(pod).get("env", []):
        if "value" in entry:
            value = str(entry["value"])
            for name, earlier in variables.items():
                value = value.replace(f"$({name})", earlier)
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            key = (reference["name"], reference["key"])
            if key not in secrets and reference.get("optional"):
                continue
            value = secrets.get(key, "redis://theirs:6379/0" if key[1].endswith("url") else "theirs")
        variables[entry["name"]] = value
    return variables
