"""A Kubernetes node on this machine, as root: its pods run in a sandbox of Linux namespaces."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import yaml

from devcluster.cache import cache_directory
from devcluster.certificates import Authority
from devcluster.control_plane import PROGRAMS as CONTROL_PLANE
from devcluster.control_plane import Address, ControlPlane, Find
from devcluster.failure import ClusterError
from devcluster.kubeconfig import CONTEXT
from devcluster.pause_image import PAUSE_IMAGE, pause_archive
from devcluster.processes import Processes, Program
from devcluster.sandbox import Sandbox, check_system
from devcluster.waiting import wait_for

NODE = "node"
BRIDGE = "cni0"
POD_CIDR = "10.244.0.0/24"
NODE_ADDRESS = "10.244.0.1"
"""The bridge's: the node's, the API server's and the DNS server's address for pods."""
API_PORT = 6443
ETCD_PORTS = (2379, 2380)
HIDDEN = (Path("/run"), Path("/var/lib"), Path("/var/log"))
"""Where programs of a node write beside what they are told; the sandbox has its own."""

SOCKET = Path("/run/containerd.sock")
"""In the sandbox, whose /run is its own; a socket's path may have no more than 104 characters."""

KUBELET = Path("/var/lib/kubelet")
"""In the sandbox again, for its sockets; what pods keep there is on the disk below the cluster's
directory."""

COMMANDS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""What must be installed, and the Debian package that has it."""


class Node:
    """A control plane and one node, below `directory`; what containers are made of is kept in the cache."""

    def __init__(self, directory: Path, find: Find) -> None:
        self._directory = directory
        self._find = find
        name = _name_of(directory)
        self.sandbox = Sandbox(name)
        self._images = cache_directory() / "containerd" / name

    @property
    def kubeconfig(self) -> Path:
        """An administrator's."""
        return self._directory / "kubeconfig"

    @property
    def processes(self) -> Processes:
        """The programs that run in the sandbox."""
        return Processes(self._directory / "processes", self.sandbox.entering(), outlive_this=True)

    @property
    def control_plane(self) -> ControlPlane:
        """Whose programs run in the sandbox too."""
        address = Address(
            listen="0.0.0.0",
            host=self.sandbox.link.sandbox,
            port=API_PORT,
            etcd_ports=ETCD_PORTS,
            advertised=NODE_ADDRESS,
        )
        return ControlPlane(self._directory, self._find, self.processes, address)

    def running(self) -> bool:
        """Whether it is up: every program runs."""
        if self.sandbox.first_process() is None:
            return False
        processes = self.processes
        return all(processes.process(name) is not None for name in (*CONTROL_PLANE, *self._programs()))

    def start(self) -> None:
        """Starts everything; the node is ready when this returns.

        Raises ClusterError, with nothing left behind.
        """
        check_system(COMMANDS)
        for hidden in HIDDEN:
            for path in (self._directory, self._images):
                if path.is_relative_to(hidden):
                    raise ClusterError(
                        f"{path} is below {hidden}, which the node has for itself; set XDG_CACHE_HOME and"
                        " XDG_STATE_HOME"
                    )
        self.stop()
        try:
            self._start()
        except BaseException:
            self.stop(keep_logs=True)
            raise

    def stop(self, *, keep_logs: bool = False) -> None:
        """Ends every process, mount, interface and rule of the node; only images are kept."""
        self.sandbox.remove()
        for entry in self._directory.glob("*"):
            if not (keep_logs and entry.name == "processes"):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def images(self) -> dict[str, str]:
        """The digests of the images that pods can have, by name; each has a name `sha256:...` as well."""
        lines = self.ctr("images", "list").splitlines()[1:]
        return {words[0]: words[2] for words in map(str.split, lines)}

    def layers(self) -> set[str]:
        """Digests of what need not be imported again."""
        return set(self.ctr("content", "list", "--quiet").split())

    def import_images(self, archive: Path) -> None:
        """Makes the images of an archive available to pods."""
        self.ctr("images", "import", archive, seconds=900)

    def ctr(self, *arguments: str | Path, seconds: float = 120) -> str:
        """Runs containerd's command line client on the kubelet's containers and images."""
        return self.sandbox.run(
            "ctr", "--address", SOCKET, "--namespace", "k8s.io", *arguments, seconds=seconds
        )

    def start_program(self, name: str) -> None:
        """Starts one that has been stopped."""
        if name in CONTROL_PLANE:
            self.control_plane.start_program(name)
        else:
            self.processes.start(self._programs()[name])
            wait_for(
                f"{name} to stay",
                lambda: self.processes.process(name),
                seconds=5,
                seen=lambda: self.processes.log(name),
            )

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._images.mkdir(parents=True, exist_ok=True)
        self.sandbox.create()
        for hidden in HIDDEN:
            self.sandbox.run("mount", "-t", "tmpfs", "tmpfs", hidden)
        (self._directory / "kubelet").mkdir()
        self.sandbox.run("mkdir", KUBELET)
        self.sandbox.run("mount", "--bind", self._directory / "kubelet", KUBELET)
        self._make_network()
        self._start_containerd()

        control_plane = self.control_plane
        authority = control_plane.start()
        self._write_configuration(authority)
        for name in ("kubelet", "kube-scheduler", "kube-proxy", "coredns"):
            self.start_program(name)
        wait_for("the node to be ready", self._ready, seconds=90, seen=self._what_runs)

    def _make_network(self) -> None:
        for words in (
            ["ip", "link", "add", BRIDGE, "type", "bridge"],
            ["ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", BRIDGE],
            ["ip", "link", "set", BRIDGE, "up"],
            ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
        ):
            self.sandbox.run(*words)
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "ipMasq": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": POD_CIDR}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        self._write("cni/10-pods.conflist", json.dumps(network))

    def _start_containerd(self) -> None:
        self._write("containerd.toml", _containerd(self._directory, self._images))
        self._start_containerd_once()
        left = self.ctr("containers", "list", "--quiet").split()
        if left:  # of a node that was killed; the kubelet would look after them
            self.ctr("containers", "delete", *left)
            self.processes.stop("containerd")
            self._start_containerd_once()
        self.import_images(pause_archive(self._find("pause")))

    def _start_containerd_once(self) -> None:
        self.processes.start(self._programs()["containerd"])

        def answers() -> bool:
            self.processes.check("containerd")
            try:
                self.ctr("version")
            except ClusterError:
                return False
            return True

        wait_for("containerd to answer", answers, seconds=60, seen=lambda: self.processes.log("containerd"))

    def _write_configuration(self, authority: Authority) -> None:
        control_plane = self.control_plane
        control_plane.client_kubeconfig(
            authority, "kubelet", common_name=f"system:node:{NODE}", organizations=["system:nodes"]
        )
        control_plane.client_kubeconfig(authority, "kube-scheduler", common_name="system:kube-scheduler")
        control_plane.client_kubeconfig(authority, "kube-proxy", common_name="system:kube-proxy")
        control_plane.client_kubeconfig(authority, "coredns", organizations=["system:masters"])
        serving = authority.issue(
            "kubelet-serving", common_name=f"system:node:{NODE}", hosts=[NODE_ADDRESS, NODE]
        )
        self._write("resolv.conf", "")
        self._write(
            "kubelet.yaml",
            yaml.safe_dump(
                _kubelet(
                    self._directory,
                    self.sandbox.cgroup,
                    authority.certificate,
                    serving.certificate,
                    serving.key,
                )
            ),
        )
        self._write("Corefile", _corefile(self._directory / "coredns.kubeconfig"))

    def _programs(self) -> dict[str, Program]:
        directory = self._directory
        scheduler, proxy, kubelet = (
            directory / f"{name}.kubeconfig" for name in ("kube-scheduler", "kube-proxy", "kubelet")
        )
        commands: dict[str, list[str | Path]] = {
            "containerd": ["containerd", "--config", directory / "containerd.toml"],
            "kubelet": [
                f"--config={directory / 'kubelet.yaml'}",
                f"--kubeconfig={kubelet}",
                f"--hostname-override={NODE}",
                f"--node-ip={NODE_ADDRESS}",
                f"--root-dir={KUBELET}",
            ],
            "kube-scheduler": [
                f"--kubeconfig={scheduler}",
                f"--authentication-kubeconfig={scheduler}",
                f"--authorization-kubeconfig={scheduler}",
                "--leader-elect=false",
            ],
            "kube-proxy": [
                f"--kubeconfig={proxy}",
                "--proxy-mode=iptables",
                f"--cluster-cidr={POD_CIDR}",
                f"--hostname-override={NODE}",
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
            ],
            "coredns": ["-conf", directory / "Corefile"],
        }
        return {
            name: Program(name, arguments if name == "containerd" else [self._find(name), *arguments])
            for name, arguments in commands.items()
        }

    def _ready(self) -> bool:
        for name in self._programs():
            self.processes.check(name)
        try:
            node = json.loads(self.control_plane.get(f"/api/v1/nodes/{NODE}"))
        except OSError:
            return False
        return any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in node["status"].get("conditions", ())
        )

    def _what_runs(self) -> str:
        return "\n".join(self.processes.log(name, 6) for name in ("kubelet", "containerd"))

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _name_of(directory: Path) -> str:
    """Short enough for an interface's name, and another one for each directory."""
    return f"{zlib.crc32(str(directory.resolve()).encode()):08x}"


def _containerd(directory: Path, images: Path) -> str:
    return f"""\
version = 2
root = "{images}"
state = "{directory / "containerd"}"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory / "cni"}"
"""


def _kubelet(
    directory: Path, cgroup: str, authority: Path, certificate: Path, key: Path
) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": str(authority)},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(directory / "resolv.conf"),
        "podLogsDir": str(directory / "pod-logs"),
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 200,
        "nodeStatusUpdateFrequency": "2s",
        "serializeImagePulls": False,
    }


def _corefile(kubeconfig: Path) -> str:
    return f""".:53 {{
  bind {NODE_ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} {CONTEXT}
    ttl 0
  }}
}}
"""
