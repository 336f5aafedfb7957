"""A node cluster comes up once, and goes without a trace, whatever happened to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devcluster.cache import cache_directory
from devcluster.node import Node
from devcluster.sandbox import CGROUPS

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.breaks_the_cluster


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: None) -> Iterator[Path]:
    """Where a second cluster of this machine keeps its files, beside the one that other tests use."""
    del programs
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path
    command("down")
    shutil.rmtree(cache_directory() / "containerd" / node(tmp_path).sandbox.name, ignore_errors=True)


def node(state: Path) -> Node:
    return Node(state / "finetune-operator/cluster/node", Path)


def command(name: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "devcluster", name]
    environment = {**os.environ, "FINETUNE_TEST_CLUSTER": "node"}
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


def traces(state: Path) -> dict[str, list[str]]:
    """What a node may leave on a machine, by kind."""
    name = node(state).sandbox.name
    processes = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return {
        "processes": [line for line in processes if str(state) in line or f"finetune-{name}" in line],
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line],
        "interfaces": [
            each.name for each in Path("/sys/class/net").iterdir() if each.name in (f"ft-{name}", "cni0")
        ],
        "control groups": [str(path) for path in CGROUPS.glob(f"*/finetune-{name}")],
        "rules": [line for line in rules() if "KUBE" in line or "CNI" in line],
        "files": [str(path) for path in state.rglob("*") if path.is_file() and path.name != ".lock"],
    }


def rules() -> list[str]:
    return subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()


def nothing(state: Path) -> bool:
    return not any(traces(state).values())


def process_ids(state: Path) -> list[int]:
    processes = (
        node(state).processes.process(name)
        for name in ("etcd", "kube-apiserver", "kubelet", "containerd", "ray-operator")
    )
    return [process.pid for process in processes if process]


def test_twice_up_is_once_and_down_leaves_nothing(state: Path) -> None:
    first = command("up")
    assert first.returncode == 0, first.stderr
    started = process_ids(state)
    second = command("up")

    assert second.returncode == 0, second.stderr
    assert (
        first.stdout
        == second.stdout
        == f"export KUBECONFIG={state}/finetune-operator/cluster/node/kubeconfig\n"
    )
    assert len(started) == 5
    assert process_ids(state) == started
    assert command("down").returncode == 0
    assert nothing(state), traces(state)


@pytest.mark.parametrize("seconds", [0.5, 1.5, 4, 8])
def test_killed_on_its_way_up_it_goes_without_a_trace(state: Path, seconds: float) -> None:
    environment = {**os.environ, "FINETUNE_TEST_CLUSTER": "node"}
    coming = subprocess.Popen([sys.executable, "-m", "devcluster", "up"], cwd=ROOT, env=environment)
    time.sleep(seconds)
    coming.send_signal(signal.SIGKILL)
    coming.wait()

    assert command("down").returncode == 0
    assert nothing(state), traces(state)


def test_after_its_processes_were_killed_it_comes_up_again(state: Path) -> None:
    up = command("up")
    assert up.returncode == 0, up.stderr
    first = node(state).sandbox.first_process()
    assert first is not None
    first.kill()

    again = command("up")

    assert again.returncode == 0, again.stderr
    assert "the cluster is up\n" in again.stderr


def test_down_without_up_is_nothing(state: Path) -> None:
    assert command("down").returncode == 0
    assert nothing(state), traces(state)
