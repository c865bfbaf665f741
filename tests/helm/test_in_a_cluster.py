"""The chart in a real cluster, in a namespace of its own that is deleted afterwards.

Runs when KUBECONFIG is set, and CHART_TEST_IMAGE names an image (repository:tag) that the cluster can pull.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from rendered import CHART, SIMULATED, container, helm, named, run, template

IMAGE = os.environ.get("CHART_TEST_IMAGE", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (os.environ.get("KUBECONFIG") and IMAGE and shutil.which("kubectl")),
        reason="KUBECONFIG and CHART_TEST_IMAGE are not both set, or there is no kubectl",
    ),
]


def _helm_4() -> bool:
    return run("version", "--short").stdout.startswith("v4")


def _image() -> tuple[str, str]:
    repository, _, tag = IMAGE.rpartition(":")
    return f"image.repository={repository}", f"image.tag={tag}"


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


class Installed:
    """A release called bridge in a namespace of its own."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def kubectl(self, *arguments: str, text: str = "") -> str:
        return _run("kubectl", "-n", self.namespace, *arguments, text=text)

    def helm(self, command: str, *arguments: str) -> str:
        return _run(helm(), command, "bridge", *arguments, "-n", self.namespace)

    def install(self, *settings: str) -> None:
        values = [word for setting in (*_image(), *settings) for word in ("--set", setting)]
        how = ["--install", "--wait", "--timeout", "300s"]
        if _helm_4():
            how.append("--force-conflicts")  # `kubectl scale` has set a number, and Helm 4 leaves it alone otherwise
        self.helm("upgrade", str(CHART), *how, "-f", str(SIMULATED), *values)

    def begin_calls(self, calls: int) -> None:
        """Long calls through the Service, from a pod made after that of `helm test`."""
        pod = named(template(SIMULATED, *_image()), "Pod", "bridge-test")
        pod["metadata"].update(name="callers", namespace=self.namespace, annotations={})
        said = [word for _ in range(6) for word in ("--say", "opening_hours", "--say", "thank_you")]
        only = container(pod)
        only["command"] = ["bridgectl", "call", "--url", "ws://bridge-edge", "--calls", str(calls), "--json", *said]
        only["volumeMounts"] = [mount for mount in only["volumeMounts"] if mount["name"] == "tmp"]
        pod["spec"]["volumes"] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "tmp"]
        self.kubectl("apply", "-f", "-", text=json.dumps(pod))
        self.kubectl("wait", "--for=condition=Ready", "pod/callers", "--timeout=120s")

    def failed_calls(self) -> int:
        """Wait until the calls are over; how many of them failed."""
        self.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/callers", "--timeout=300s")
        failed = json.loads(self.kubectl("logs", "callers"))["failed"]
        self.kubectl("delete", "pod", "callers")
        return int(failed)


@pytest.fixture(scope="module")
def bridge() -> Iterator[Installed]:
    namespace = f"bridge-test-{uuid.uuid4().hex[:8]}"
    _run("kubectl", "create", "namespace", namespace)
    try:
        # The strictest of the standards, enforced by the cluster itself.
        _run("kubectl", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        installed = Installed(namespace)
        installed.install()
        yield installed
    finally:
        subprocess.run(["kubectl", "delete", "namespace", namespace, "--wait=true"], timeout=300)


def test_helm_test_places_a_call(bridge: Installed) -> None:
    bridge.helm("test", *(["--logs"] if _helm_4() else []))  # Helm 3 looks for them when the pod is gone


def test_no_call_is_lost_while_workers_are_scaled_killed_and_rolled(bridge: Installed) -> None:
    bridge.begin_calls(10)
    bridge.kubectl("scale", "deployment", "bridge-worker", "--replicas=4")
    bridge.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=4", "deployment/bridge-worker", "--timeout=120s")
    victim = bridge.kubectl("get", "pod", "-l", "app.kubernetes.io/component=worker", "-o", "name").split()[0]
    bridge.kubectl("delete", victim, "--grace-period=0", "--force")
    bridge.kubectl("scale", "deployment", "bridge-worker", "--replicas=2")
    assert bridge.failed_calls() == 0


def test_an_upgrade_keeps_the_token_and_rolls_with_no_call_lost(bridge: Installed) -> None:
    before = bridge.kubectl("get", "secret", "bridge-access", "bridge-redis", "-o", "jsonpath={.items[*].data}")
    bridge.begin_calls(5)
    bridge.install("settings.BRIDGE_LOST_SECONDS=31")
    assert bridge.failed_calls() == 0
    assert bridge.kubectl("get", "secret", "bridge-access", "bridge-redis", "-o", "jsonpath={.items[*].data}") == before
    bridge.helm("test")


def test_uninstalling_leaves_the_volume_of_redis_and_nothing_else(bridge: Installed) -> None:
    bridge.helm("uninstall", "--wait")
    kinds = "all,secret,configmap,networkpolicy,poddisruptionbudget,serviceaccount,persistentvolumeclaim"
    left = bridge.kubectl("get", kinds, "-l", "app.kubernetes.io/instance=bridge", "-o", "name").split()
    assert left == ["persistentvolumeclaim/data-bridge-redis-0"]
