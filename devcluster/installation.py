"""The operator as the chart installs it: a pod of its image, with the rights of its service account."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from devcluster.failure import ClusterError
from devcluster.helm import Helm
from devcluster.images import Image
from devcluster.kubectl import Kubectl
from devcluster.namespaces import ensure_restricted
from devcluster.objects import at
from devcluster.waiting import wait_for

CHART = Path(__file__).parents[1] / "charts/finetune-operator"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"

ROLLOUT_SECONDS = 90

SMALL_WORKER: dict[str, JsonValue] = {"cpu": "300m", "memory": "3Gi"}
ABSENT_DEVICE: dict[str, JsonValue] = {
    **SMALL_WORKER,
    "resource": "nvidia.com/gpu",
    "device_memory": "1072Mi",
}
"""No node here has one. Beside what libraries take there is room for little more than the smallest model."""
CONFIGURATION: dict[str, JsonValue] = {
    "accelerators": {"A10G": SMALL_WORKER, "CPU": SMALL_WORKER, "L4": ABSENT_DEVICE},
    "head": {"cpu": "200m", "memory": "4Gi"},
    "submitter": {"cpu": "50m", "memory": "1Gi"},
    "resync_seconds": 20,
}
"""CPU workers that present as A10G."""

NO_LOG = "unable to retrieve container logs"
"""What the kubelet answers, as if it were the log, where a container goes while its log is asked for."""


class Installation:
    """A release of the chart, and the operator's pod, started and stopped at will."""

    def __init__(
        self,
        helm: Helm,
        operator: Image,
        trainer: Image,
        *,
        release: str = RELEASE,
        namespace: str = NAMESPACE,
        **values: JsonValue,
    ) -> None:
        self.helm = helm
        self.kubectl: Kubectl = helm.kubectl
        self.release = release
        self.namespace = namespace
        self._values: dict[str, JsonValue] = {
            "image": _image(operator),
            "trainerImage": _image(trainer),
            "config": CONFIGURATION,
            **values,
        }
        self._ended: list[str] = []
        """Logs of pods that are gone."""

    @property
    def name(self) -> str:
        """What the chart names its objects."""
        return self.release if "finetune-operator" in self.release else f"{self.release}-finetune-operator"

    @property
    def user(self) -> str:
        """Who the operator is to the API server."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    def install(self, seconds: int = ROLLOUT_SECONDS) -> str:
        """Installs the release; the operator is ready when this returns. What helm writes."""
        ensure_restricted(self.kubectl, self.namespace)
        return self._install("upgrade", "--install", seconds=seconds)

    def configure(self, **values: JsonValue) -> None:
        """Sets values of the chart for the next installation or upgrade."""
        self._values |= values

    def upgrade(self, **values: JsonValue) -> None:
        """Upgrades the release with other values."""
        self._keep_log()
        self.configure(**values)
        self._install("upgrade")

    def uninstall(self) -> None:
        """Removes the release."""
        self._keep_log()
        self.helm("uninstall", self.release, "--namespace", self.namespace, "--wait", "--timeout=60s")

    def start(self) -> None:
        """Ready when this returns."""
        self.kubectl("scale", f"deployment/{self.name}", "--namespace", self.namespace, "--replicas=1")
        words = (
            "rollout",
            "status",
            f"deployment/{self.name}",
            "--namespace",
            self.namespace,
            f"--timeout={ROLLOUT_SECONDS}s",
        )
        try:
            self.kubectl(*words, seconds=ROLLOUT_SECONDS + 10)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.kubectl.story(self.namespace)}") from error

    def kill(self) -> None:
        """Ends the pod without asking, and keeps it away."""
        self._keep_log()
        self.kubectl("scale", f"deployment/{self.name}", "--namespace", self.namespace, "--replicas=0")
        selector = f"app.kubernetes.io/instance={self.release}"
        self.kubectl(
            "delete",
            "pods",
            "--namespace",
            self.namespace,
            f"--selector={selector}",
            "--force",
            "--grace-period=0",
        )
        wait_for("the operator's pod to go", lambda: not self._pods(), seconds=60)

    def restart(self) -> None:
        """Killed, and started anew."""
        self.kill()
        self.start()

    def get(self, path: str) -> str | None:
        """What it answers over HTTP; None when it does not."""
        try:
            return self.kubectl(
                "get",
                "--raw",
                f"/api/v1/namespaces/{self.namespace}/services/{self.name}-metrics:http/proxy/{path}",
            )
        except ClusterError:
            return None

    def log(self) -> str:
        """What its pod has written, and what it wrote before it was started again last."""
        logs = []
        for pod in self._pods():
            for options in (["--previous"], []):
                try:
                    text = self.kubectl("logs", pod, "--namespace", self.namespace, *options)
                except ClusterError:  # it has not begun, is gone, or was never started again
                    continue
                if not text.startswith(NO_LOG):
                    logs.append(text)
        return "\n".join(logs)

    def errors(self) -> list[dict[str, object]]:
        """Log lines with a traceback or of the level ERROR, but kopf's about an API server that is down."""
        text = "\n".join([*self._ended, self.log()])
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        ours = [line for line in lines if not str(line.get("logger")).startswith("kopf._cogs.clients.")]
        return [line for line in ours if line.get("level") in ("ERROR", "CRITICAL") or "exc_info" in line]

    def _install(self, *command: str, seconds: int = ROLLOUT_SECONDS) -> str:
        options = ["--namespace", self.namespace, "--values=-", "--wait", f"--timeout={seconds}s"]
        try:
            return self.helm(
                *command, self.release, CHART, *options, stdin=json.dumps(self._values), seconds=seconds + 30
            )
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.kubectl.story(self.namespace)}") from error

    def _pods(self) -> list[str]:
        selector = f"app.kubernetes.io/name=finetune-operator,app.kubernetes.io/instance={self.release}"
        pods = self.kubectl.all("pods", self.namespace, selector)
        return [str(at(pod, "metadata", "name")) for pod in pods]

    def _keep_log(self) -> None:
        self._ended.append(self.log())


def _image(image: Image) -> JsonValue:
    repository, _, tag = image.name.rpartition(":")
    return {"repository": repository, "tag": tag}
