"""A real Kubernetes API without nodes: etcd, the API server and the controller manager.

The controllers make service accounts and collect garbage.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devcluster.certificates import Authority, KeyPair, service_account_keys
from devcluster.kubeconfig import write_kubeconfig
from devcluster.processes import Processes, Program
from devcluster.waiting import wait_for

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
"""In the order in which they start."""

SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"

READY_SECONDS = 60

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
"""Who did what to which resource; contents are left out."""

Find = Callable[[str], Path]


@dataclass(frozen=True)
class Address:
    """Where the API server listens."""

    listen: str = "127.0.0.1"
    """The address of the interface."""
    host: str = "127.0.0.1"
    """What clients on this machine call it."""
    port: int = 0
    etcd_ports: tuple[int, int] = (0, 0)
    """For clients, and for peers."""
    advertised: str | None = None
    """What pods reach; None where there are none."""


def free_address() -> Address:
    """Loopback, with ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return Address(port=ports[0], etcd_ports=(ports[1], ports[2]))


class ControlPlane:
    """In a directory of its own; `kubeconfig` is that of an administrator."""

    def __init__(self, directory: Path, find: Find, processes: Processes, address: Address) -> None:
        self._directory = directory
        self._find = find
        self._processes = processes
        self._address = address
        self._pki = directory / "pki"
        self.kubeconfig = directory / "kubeconfig"
        self.audit_log = directory / "audit.log"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self._address.host}:{self._address.port}"

    def start(self) -> Authority:
        """Makes keys and starts everything; ready when this returns.

        Raises ClusterError with the logs when something ends or hangs.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        authority = Authority(self._pki)
        hosts = {
            self._address.listen,
            self._address.host,
            "127.0.0.1",
            API_SERVICE_ADDRESS,
            self._address.advertised,
        } - {None, "0.0.0.0"}
        authority.issue(
            "api-server",
            common_name="kube-apiserver",
            organizations=["system:masters"],
            hosts=[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                *sorted(filter(None, hosts)),
            ],
        )
        service_account_keys(self._pki)
        self.client_kubeconfig(authority, "admin", organizations=["system:masters"], path=self.kubeconfig)
        self.client_kubeconfig(
            authority, "kube-controller-manager", common_name="system:kube-controller-manager"
        )
        (self._directory / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        for name in PROGRAMS:
            self.start_program(name)
        return authority

    def client_kubeconfig(
        self,
        authority: Authority,
        name: str,
        *,
        common_name: str | None = None,
        organizations: list[str] | None = None,
        path: Path | None = None,
    ) -> Path:
        """A kubeconfig for a user with the name `common_name`, in the groups `organizations`."""
        client = authority.issue(name, common_name=common_name or name, organizations=organizations or [])
        return write_kubeconfig(
            path or self._directory / f"{name}.kubeconfig",
            server=self.server,
            authority=authority.certificate,
            client=client,
        )

    def start_program(self, name: str) -> None:
        """Starts one that has been stopped; ready when this returns."""
        self._processes.start(Program(name, [self._find(name), *self._arguments(name)]))
        # The API server waits for etcd.
        ready = {"kube-apiserver": self._api_ready, "kube-controller-manager": self._controllers_ready}.get(
            name, lambda: True
        )

        def checked() -> bool:
            self._processes.check(name)
            return ready()

        wait_for(
            f"{name} to be ready",
            checked,
            seconds=READY_SECONDS,
            seen=lambda: self._processes.log(name),
            every=0.05,
        )

    def stop_program(self, name: str) -> None:
        """Stops one; waits until it has ended, since a draining API server holds its port."""
        self._processes.stop(name)

    def stop(self) -> None:
        """Stops everything. The directory stays."""
        for name in reversed(PROGRAMS):
            self._processes.stop(name)

    def remove(self) -> None:
        """Stops everything and removes the directory."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def get(self, path: str) -> bytes:
        """The answer to a GET, as an administrator. Raises OSError when there is none."""
        context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        context.load_cert_chain(self._pki / "admin.crt", self._pki / "admin.key")
        with urllib.request.urlopen(f"{self.server}{path}", timeout=5, context=context) as answer:
            return bytes(answer.read())

    def _api_ready(self) -> bool:
        try:
            return self.get("/readyz") == b"ok"
        except (OSError, urllib.error.URLError):
            return False

    def _controllers_ready(self) -> bool:
        try:
            self.get("/api/v1/namespaces/default/serviceaccounts/default")
        except (OSError, urllib.error.URLError):
            return False
        return True

    def _arguments(self, name: str) -> list[str]:
        return {
            "etcd": self._etcd,
            "kube-apiserver": self._api_server,
            "kube-controller-manager": self._controller_manager,
        }[name]()

    def _etcd(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._address.etcd_ports)
        return [
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _api_server(self) -> list[str]:
        serving, keys = self._pair("api-server"), self._pki / "service-accounts"
        arguments = [
            f"--etcd-servers=http://127.0.0.1:{self._address.etcd_ports[0]}",
            f"--bind-address={self._address.listen}",
            f"--secure-port={self._address.port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self._pki / 'ca.crt'}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}.pub",
            f"--service-account-signing-key-file={keys}.key",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--allow-privileged=true",
            f"--audit-policy-file={self._directory / 'audit-policy.json'}",
            f"--audit-log-path={self.audit_log}",
        ]
        if self._address.advertised is None:
            return [*arguments, "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]
        return [
            *arguments,
            f"--advertise-address={self._address.advertised}",
            f"--kubelet-client-certificate={serving.certificate}",
            f"--kubelet-client-key={serving.key}",
            f"--kubelet-certificate-authority={self._pki / 'ca.crt'}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _controller_manager(self) -> list[str]:
        kubeconfig = self._directory / "kube-controller-manager.kubeconfig"
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={self._pki / 'service-accounts.key'}",
            f"--root-ca-file={self._pki / 'ca.crt'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
        ]

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self._pki / f"{name}.crt", self._pki / f"{name}.key")
