"""Linux namespaces of a cluster's own: processes, mounts and network are kept apart and end together."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from devcluster.commands import run
from devcluster.failure import ClusterError
from devcluster.waiting import wait_for

FIRST_PROCESS = """\
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what orphans leave behind goes at once
while True:
    signal.pause()
"""
LINKS = ipaddress.ip_network("10.213.0.0/16")
"""Where the two addresses of the link to the machine are taken from."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Link:
    """The cable between the machine and the sandbox."""

    machine: str
    sandbox: str


class Sandbox:
    """Process, mount and network namespaces, and control groups, all found by `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def interface(self) -> str:
        """The machine's end of the link."""
        return f"ft-{self.name}"[:15]

    @property
    def cgroup(self) -> str:
        """The control group below which everything runs."""
        return f"finetune-{self.name}"

    def create(self) -> Link:
        """Makes the namespaces and the link. Raises ClusterError where the system does not allow it."""
        command = [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
        ]
        launched = subprocess.Popen(
            [*command, sys.executable, "-I", "-S", "-c", FIRST_PROCESS, self.cgroup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

        def first_process() -> psutil.Process | None:
            if launched.poll() is not None:
                assert launched.stderr is not None
                raise ClusterError(
                    f"this system allows no namespaces: {launched.stderr.read().decode().strip()}"
                )
            return self.first_process()

        first = wait_for("new namespaces", first_process, seconds=10)
        link = self._free_link()
        run(
            [
                "ip",
                "link",
                "add",
                self.interface,
                "type",
                "veth",
                "peer",
                "name",
                "machine",
                "netns",
                str(first.pid),
            ]
        )
        run(["ip", "address", "add", f"{link.machine}/30", "dev", self.interface])
        run(["ip", "link", "set", self.interface, "up"])
        for words in (
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{link.sandbox}/30", "dev", "machine"],
            ["ip", "link", "set", "machine", "up"],
            ["mount", "--make-rshared", "/"],
        ):
            self.run(*words)
        self._create_cgroups()
        return link

    @property
    def link(self) -> Link:
        """The addresses of a sandbox that exists."""
        [shown] = json.loads(run(["ip", "-json", "address", "show", "dev", self.interface]))
        [machine] = [address for address in shown["addr_info"] if address["family"] == "inet"]
        network = ipaddress.ip_interface(f"{machine['local']}/{machine['prefixlen']}").network
        return Link(*map(str, network.hosts()))

    def first_process(self) -> psutil.Process | None:
        """The process with which everything in the sandbox ends; None when it is not there."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"]
            if words and words[-2:] == [FIRST_PROCESS, self.cgroup] and Path(words[0]).name != "unshare":
                return process
        return None

    def entering(self) -> tuple[str, ...]:
        """The command that runs the rest of its arguments in the sandbox.

        Raises ClusterError when there is none.
        """
        first = self.first_process()
        if first is None:
            raise ClusterError("the cluster's processes are gone; `make cluster` starts it again")
        return ("nsenter", f"--target={first.pid}", "--mount", "--net", "--pid", "--")

    def run(self, *command: str | Path, seconds: float = 60) -> str:
        """Runs a command in the sandbox and returns what it writes. Raises ClusterError when it fails."""
        return run([*self.entering(), *command], seconds=seconds)

    def remove(self) -> None:
        """Ends everything in the sandbox; its mounts, interfaces and rules go with it."""
        first = self.first_process()
        if first is not None:
            first.send_signal(signal.SIGKILL)
            first.wait(30)
        subprocess.run(["ip", "link", "delete", self.interface], capture_output=True, check=False, timeout=30)
        wait_for("the control groups to be empty", self._remove_cgroups, seconds=30, seen=self._cgroups_left)

    def _free_link(self) -> Link:
        shown = json.loads(run(["ip", "-json", "address"]))
        taken = [
            ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
            for each in shown
            for address in each["addr_info"]
        ]
        for network in LINKS.subnets(new_prefix=30):
            if not any(network.overlaps(other) for other in taken if other.version == 4):
                machine, sandbox = map(str, network.hosts())
                return Link(machine, sandbox)
        raise ClusterError(f"all addresses of {LINKS} are in use")

    def _cgroup_parents(self) -> Iterator[Path]:
        if (CGROUPS / "cgroup.controllers").exists():
            yield CGROUPS
        else:
            yield from (
                hierarchy
                for hierarchy in CGROUPS.iterdir()
                if hierarchy.is_dir() and not hierarchy.is_symlink()
            )

    def _create_cgroups(self) -> None:
        for parent in self._cgroup_parents():
            group = parent / self.cgroup
            group.mkdir(exist_ok=True)
            for name in (
                "cpuset.cpus",
                "cpuset.mems",
            ):  # a new group of cgroup v1 has none, and takes no process
                if (group / name).exists() and not (group / name).read_text().strip():
                    (group / name).write_text((parent / name).read_text())

    def _remove_cgroups(self) -> bool:
        for parent in self._cgroup_parents():
            for directory, _, _ in os.walk(parent / self.cgroup, topdown=False):
                try:
                    Path(directory).rmdir()
                except OSError:
                    return False
        return True

    def _cgroups_left(self) -> str:
        return "\n".join(
            directory
            for parent in self._cgroup_parents()
            for directory, _, _ in os.walk(parent / self.cgroup)
        )


def check_system(commands: dict[str, str]) -> None:
    """Raises ClusterError unless this is root and every command is there.

    `commands` names the Debian package of each.
    """
    problems: list[str] = []
    if os.geteuid() != 0:
        problems.append(
            "a node needs root (the control plane alone does not): run this as root, or set"
            " FINETUNE_TEST_CLUSTER=kind"
        )
    packages = sorted(
        {
            package
            for command, package in commands.items()
            if shutil.which(command) is None and not Path(command).is_file()
        }
    )
    if packages:
        problems.append(f"programs are missing: apt-get install {' '.join(packages)}")
    if problems:
        raise ClusterError("; ".join(problems))
