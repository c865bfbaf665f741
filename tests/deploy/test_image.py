"""The Dockerfile and what it installs."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from rendered import ROOT, container, pods, template

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def _pins(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Package -> version and hashes of a lock file."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", file.read_text())
    found = {}
    for entry in entries:
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry):
            found[match[1]] = (match[2], frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry)))
    return found


def test_hadolint_finds_nothing() -> None:
    places = str(Path(sys.executable).parent)
    if (hadolint := shutil.which("hadolint") or shutil.which("hadolint", path=places)) is None:
        pytest.skip("hadolint is not on PATH")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_image_installs_the_versions_that_the_tests_ran_with_and_checks_their_hashes() -> None:
    image, tested = _pins(ROOT / "deploy" / "requirements.txt"), _pins(ROOT / "requirements.txt")
    assert len(image) > 20
    assert all(hashes for _, hashes in image.values())
    assert {name: pin for name, pin in image.items() if tested.get(name) != pin} == {}
    assert "--require-hashes --no-deps" in TEXT


def test_the_image_has_every_dependency_and_no_test_tool() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}

    image = set(_pins(ROOT / "deploy" / "requirements.txt"))
    extras = project["optional-dependencies"]
    assert names(project["dependencies"]) | names(extras["otel"]) <= image
    assert not image & (names(extras["test"]) | names(extras["embedded"]))


def test_both_stages_build_on_the_base_that_is_asked_for_and_the_last_is_nobody_special() -> None:
    assert re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE) == ["${BASE}", "${BASE}"]
    users = re.findall(r"^USER (\d+):(\d+)$", TEXT, re.MULTILINE)
    assert users == [("10001", "10001")]
    for name in ("bridge-edge", "bridge-worker"):
        security = pods(template())[name]["spec"]["securityContext"]
        assert (str(security["runAsUser"]), str(security["runAsGroup"])) == users[0]


def test_the_command_that_the_operations_page_installs_packages_with_works_without_a_pip_of_the_image(
    tmp_path: Path,
) -> None:
    assert "pip uninstall --yes pip" in TEXT
    environment = tmp_path / "bridge"
    venv.create(environment, with_pip=False)
    [command] = re.findall(r"`([^`]*) install …`", (ROOT / "deploy" / "README.md").read_text())
    words = command.replace("/opt/bridge", str(environment)).split()
    base = str(Path(sys.executable).parent)  # stands for the base's /usr/local/bin
    path = os.pathsep.join([str(environment / "bin"), base])
    program = shutil.which(words[0], path=path)
    assert program is not None
    done = subprocess.run([program, *words[1:], "list"], capture_output=True, text=True, timeout=60, env={"PATH": path})
    assert done.returncode == 0, done.stderr


def test_commands_of_the_chart_are_in_the_image() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, pod in pods(template()).items():
        if name != "bridge-redis":
            assert container(pod)["command"][0] in {*scripts, "python"}


def test_everything_that_the_image_copies_is_there_and_nothing_else_is_sent_to_the_builder() -> None:
    sources = {
        source for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE) for source in line.split()[:-1]
    }
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == rule or source.startswith(f"{rule}/") for rule in kept), source
    assert all(any(fnmatch.fnmatch(source, f"{rule}*") for source in sources) for rule in kept)
