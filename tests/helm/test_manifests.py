"""The rendered objects against Kubernetes' own rules: its schemas, and the restricted Pod Security Standard."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rendered import ROOT, VALUES, container, pods, template

validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

EVERY = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)

NOT_OF_KUBERNETES_ITSELF = {"HTTPRoute", "ScaledObject", "ServiceMonitor", "PrometheusRule"}
OLDEST, NEWEST = "1.25", "1.37"


@EVERY
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_the_schema_of_the_oldest_and_the_newest_kubernetes(values: Path, version: str) -> None:
    for o in template(values):
        if o["kind"] not in NOT_OF_KUBERNETES_ITSELF:
            validate.validate(o, version, strict=True)  # raises also for a kind that this version does not have


def test_a_misspelt_field_would_be_found() -> None:
    [deployment] = [o for o in template() if o["kind"] == "Deployment" and o["metadata"]["name"] == "bridge-worker"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(validate.ValidationError):
        validate.validate(deployment, NEWEST, strict=True)


@EVERY
def test_every_pod_keeps_the_restricted_pod_security_standard(values: Path) -> None:
    for name, pod in pods(template(values)).items():
        spec, only = pod["spec"], container(pod)
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & spec.keys(), name
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected"}
        assert all((volume.keys() - {"name"}) <= allowed for volume in spec.get("volumes", [])), name
        assert not any("hostPort" in port for port in only.get("ports", [])), name


def test_the_pod_that_the_operations_page_restores_redis_with_fits_the_volume_and_the_standard() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    [shown] = [o for o in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.S)) if o.get("kind") == "Pod"]
    validate.validate(shown, NEWEST, strict=True)
    [redis] = [o for o in template() if o["kind"] == "StatefulSet"]
    ours, only = redis["spec"]["template"]["spec"], container(shown)
    assert shown["spec"]["securityContext"] == ours["securityContext"]
    assert only["image"] == ours["containers"][0]["image"]
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    [claim] = redis["spec"]["volumeClaimTemplates"]
    assert shown["spec"]["volumes"][0]["persistentVolumeClaim"] == {
        "claimName": f"{claim['metadata']['name']}-{redis['metadata']['name']}-0"
    }


@EVERY
def test_no_pod_can_talk_to_the_api_server_or_gets_variables_that_nobody_asked_for(values: Path) -> None:
    for name, pod in pods(template(values)).items():
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        assert pod["spec"]["enableServiceLinks"] is False, name


@EVERY
def test_every_container_says_what_it_needs_and_how_much_memory_it_may_take(values: Path) -> None:
    for name, pod in pods(template(values)).items():
        resources = container(pod)["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}, name
        # No CPU limit: one that has used its share stands still for up to 0.1 s, in the middle of somebody's sentence.
        assert resources["limits"].keys() == {"memory"}, name


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_checkov_finds_nothing_but_the_exceptions_that_have_a_reason(tmp_path: Path) -> None:
    own = Path(sys.prefix) / "checkov" / "bin"  # where `make checkov` puts it
    if (checkov := shutil.which("checkov") or shutil.which("checkov", path=own)) is None:
        pytest.skip("checkov is not on PATH, and `make checkov` has not installed it")
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(yaml.safe_dump_all([o for values in VALUES for o in template(values)]))
    options = ["--config-file", str(ROOT / "helm" / "checkov.yaml"), "-f", str(rendered)]
    done = subprocess.run([checkov, *options, str(ROOT / "deploy" / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
