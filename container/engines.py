"""docker, podman or buildah: whichever works here, and how each is told the same thing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ENGINES = ("docker", "podman", "buildah")
SECONDS = 30  # For an engine's first answer.
INIT = ["dumb-init", "--"]  # The image's entry point, which buildah passes over.


class ProblemError(Exception):
    """What the person who called make can mend."""


def choose(wanted: str = "") -> str:
    """Returns the engine to use: the wanted one, else the first that works.

    Raises:
        ProblemError: None works.
    """
    names = [wanted] if wanted else ENGINES
    for name in names:
        if shutil.which(name) and _output([name, "info"]) is not None:
            return name
    found = [f"{name} does not answer" if shutil.which(name) else f"no {name}" for name in names]
    raise ProblemError(
        f"Expected docker, podman or buildah to work here. Found: {', '.join(found)}. Start or install "
        "one; or train without an image: pip install . && tf-finetune train --training DATA"
    )


def build(engine: str, image: str, context: Path, arguments: Mapping[str, str]) -> int:
    """Builds the image and returns the engine's exit code.

    Args:
        engine: As `choose` returned it.
        image: What it is to be called.
        context: The repository.
        arguments: Of the Dockerfile.
    """
    given = dict(arguments)
    command = [engine, "bud" if engine == "buildah" else "build"]
    if engine != "docker":
        # The format that knows HEALTHCHECK; and a name that needs no list of registries.
        command += ["--format", "docker"]
        given.setdefault("BASE_IMAGE", "docker.io/library/python:3.12-slim")
        certificates = given.get("PIP_CERT")
        if certificates and Path(certificates).is_file():
            given["PIP_CERT"] = "/run/certificates.crt"
            command += ["--volume", f"{Path(certificates).resolve()}:/run/certificates.crt:ro"]
    for name, value in given.items():
        command += ["--build-arg", f"{name}={value}"]
    return _call([*command, "--file", str(context / "container" / "Dockerfile"), "--tag", image, str(context)])


def run(
    engine: str,
    image: str,
    command: Sequence[str],
    mounts: Mapping[str, tuple[Path, bool]],
    port: int | None = None,
) -> int:
    """Runs a command in a new container, which is removed afterwards, and returns its exit code.

    Args:
        engine: As `choose` returned it.
        image: What it is called.
        command: What to run.
        mounts: What of this machine the container sees: its path there, to the path here and whether it may write.
        port: At which the container's server is to be reached from this machine, and from no other.
    """
    volumes = []
    for inside, (outside, writable) in mounts.items():
        volumes += ["--volume", f"{outside.resolve()}:{inside}" + ("" if writable else ":ro")]
    if engine == "buildah":
        return _run_by_buildah(image, command, volumes, port)
    published = ["--publish", f"127.0.0.1:{port}:8080"] if port else []
    options = ["--rm", *_user(engine), *_gpus(engine), *published, *volumes]
    return _call([engine, "run", *options, image, *command])


def _run_by_buildah(image: str, command: Sequence[str], volumes: Sequence[str], port: int | None) -> int:
    """Runs a command by buildah, whose containers have no ports of their own: the server takes this machine's."""
    made = _output(["buildah", "from", "--pull-never", image])
    if made is None:
        raise ProblemError(f"There is no image {image}. Make it: make image")
    container = made.strip().splitlines()[-1]
    listening = ["--network", "host", "--env", f"SAGEMAKER_BIND_TO_PORT={port}"] if port else []
    try:
        return _call(["buildah", "run", *listening, *volumes, container, "--", *INIT, *command])
    finally:
        _output(["buildah", "rm", container])


def _user(engine: str) -> list[str]:
    """Returns what makes files come out as the caller's; an engine that runs as the caller needs nothing."""
    user, group = os.getuid(), os.getgid()
    unlabelled = ["--security-opt", "label=disable"]  # SELinux would keep the caller's files from the container.
    if engine == "podman":
        return [*unlabelled, *(["--userns=keep-id", "--user", f"{user}:{group}"] if user else [])]
    security = _output([engine, "info", "--format", "{{.SecurityOptions}}"]) or ""
    own = [] if "rootless" in security else ["--user", f"{user}:{group}"]
    return [*(unlabelled if "selinux" in security else []), *own]


def _gpus(engine: str) -> list[str]:
    """Returns what gives the container all GPUs, if there are any."""
    if not shutil.which("nvidia-smi") or "GPU " not in (_output(["nvidia-smi", "--list-gpus"]) or ""):
        return []
    # NCCL, by which GPUs exchange gradients, wants more shared memory than the 64 MB that engines give.
    return ["--shm-size", "1g", *(["--gpus", "all"] if engine == "docker" else ["--device", "nvidia.com/gpu=all"])]


def _output(command: Sequence[str]) -> str | None:
    """Returns what a command prints, or None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _call(command: Sequence[str]) -> int:
    """Runs a command in the foreground; Ctrl-C is its own affair, as it gets it too."""
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
