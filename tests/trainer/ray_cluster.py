"""A Ray cluster as KubeRay starts one: a head that trains nothing, and workers, each `ray start --block`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.trainer.conftest import wait_until_it_answers

RAY = Path(sys.executable).with_name("ray")
DRAIN_SECONDS = 20


class RayCluster:
    """The head runs from the start, workers when they are added."""

    def __init__(self, directory: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port: int = unused.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._directory = directory
        self._nodes: list[subprocess.Popen[bytes]] = []
        head = self._start(
            0,
            "--head",
            f"--port={port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            f"--temp-dir={directory}",
        )
        wait_until_it_answers(head, port)

    def add_worker(self) -> subprocess.Popen[bytes]:
        """A node with one processor; SIGTERM takes it away as Kubernetes takes a pod away."""
        return self._start(DRAIN_SECONDS, f"--address={self.address}", "--num-cpus=1")

    def processes(self) -> list[psutil.Process]:
        """All that the nodes have started."""
        return [
            child
            for node in self._nodes
            if node.poll() is None
            for child in psutil.Process(node.pid).children(recursive=True)
        ]

    def remove(self) -> None:
        """Kills all nodes and their processes."""
        processes = self.processes()
        for node in self._nodes:
            node.kill()
            node.wait()
        for process in processes:
            if process.is_running():
                process.kill()

    def _start(self, drain_seconds: int, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            # A token that another Ray has left in the home directory would turn authentication on.
            "RAY_AUTH_MODE": "disabled",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_seconds),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        memory = f"--object-store-memory={128 * 2**20}"
        log = Path(self._directory, f"node-{len(self._nodes)}.log")
        with log.open("wb") as stream:
            node = subprocess.Popen(
                [RAY, "start", "--block", memory, *arguments], env=environment, stdout=stream, stderr=stream
            )
        self._nodes.append(node)
        return node


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Runs until the `with` block ends."""
    # The names of Ray's sockets may have 107 characters.
    directory = tempfile.mkdtemp(prefix="ray-")
    cluster = RayCluster(directory)
    try:
        yield cluster
    finally:
        cluster.remove()
        shutil.rmtree(directory, ignore_errors=True)
