"""The operator as a process beside the cluster, with the accelerators of the tests: CPU workers that present as A10G."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.request import urlopen

import yaml
from tests.cluster.control_plane import free_address
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import Processes, Program
from tests.cluster.waiting import wait_for

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds/finetunejobs.yaml"
NAME = "finetune-operator"

SMALL_WORKER = {"cpu": "300m", "memory": "3Gi"}
CONFIGURATION = {
    "accelerators": {"A10G": SMALL_WORKER, "CPU": SMALL_WORKER},
    "head": {"cpu": "200m", "memory": "4Gi"},
    "submitter": {"cpu": "50m", "memory": "1Gi"},
    "image_pull_policy": "IfNotPresent",
    "resync_seconds": 20,
    "log_format": "json",
}


class OperatorProcess:
    """One operator, started and stopped at will."""

    def __init__(self, directory: Path, kubeconfig: Path, image: str, **configuration: object) -> None:
        self._processes = Processes(directory)
        self._kubeconfig = kubeconfig
        self._port = free_address().port
        self._file = directory / "configuration.yaml"
        directory.mkdir(parents=True, exist_ok=True)
        self._file.write_text(yaml.safe_dump({**CONFIGURATION, "trainer_image": image, "listen_port": self._port, **configuration}))

    def start(self) -> None:
        """Ready when this returns."""
        environment = {"KUBECONFIG": str(self._kubeconfig), "FINETUNE_OPERATOR_CONFIG": str(self._file)}
        words = [f"{name}={value}" for name, value in environment.items()]
        self._processes.start(Program(NAME, ["env", *words, sys.executable, "-m", "finetune_operator"]))

        def ready() -> bool:
            self._processes.check(NAME)
            return self.get("readyz") == "ok"

        wait_for("the operator to be ready", ready, seconds=60, seen=lambda: self._processes.log(NAME))

    def stop(self) -> None:
        """Asks it to end."""
        self._processes.stop(NAME, seconds=20)

    def kill(self) -> None:
        """Ends it without asking."""
        self._processes.kill(NAME)

    def restart(self) -> None:
        """Killed, and started anew."""
        self.kill()
        self.start()

    def get(self, path: str) -> str | None:
        """What it answers over HTTP; None when it does not."""
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    def log(self, lines: int = 60) -> str:
        """The last lines of its log."""
        return self._processes.log(NAME, lines)

    def errors(self) -> list[dict[str, object]]:
        """Log lines with a traceback or of the level ERROR; that kopf cannot reach an API server that is down is none of ours."""
        try:
            text = (self._processes.directory / f"{NAME}.log").read_text(errors="replace")
        except FileNotFoundError:
            return []
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        ours = [line for line in lines if not str(line.get("logger")).startswith("kopf._cogs.clients.")]
        return [line for line in ours if line.get("level") in ("ERROR", "CRITICAL") or "exc_info" in line]


def apply_crd(kubectl: Kubectl) -> None:
    """The FineTuneJob's definition, served when this returns."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", CRD)
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/finetunejobs.finetune.dev", seconds=40)
