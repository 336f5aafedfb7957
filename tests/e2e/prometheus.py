"""A real Prometheus that scrapes the operator through the API server, and what it answers."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from devcluster.control_plane import free_address
from devcluster.failure import ClusterError
from devcluster.installation import Installation
from devcluster.processes import Processes, Program
from devcluster.waiting import wait_for

NAME = "prometheus"
INTERVAL_SECONDS = 2
SECRETS = {
    "ca_file": "certificate-authority-data",
    "cert_file": "client-certificate-data",
    "key_file": "client-key-data",
}


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    labels: dict[str, str]
    points: list[tuple[float, float]]
    """Times, by time.time(), and values."""


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    address: str

    def has_data(self, query: str) -> bool:
        """Whether a query is answered now with at least one number."""
        return any(
            not math.isnan(value) for series in self._ask("query", query=query) for _, value in series.points
        )

    def range(self, query: str, start: float, end: float) -> list[Series]:
        """What a query is answered over a time."""
        return self._ask("query_range", query=query, start=str(start), end=str(end), step="2")

    def _ask(self, what: str, **parameters: str) -> list[Series]:
        with urlopen(f"http://{self.address}/api/v1/{what}?{urlencode(parameters)}", timeout=20) as answer:
            found = json.load(answer)["data"]["result"]
        values = [(each["metric"], each.get("values") or [each["value"]]) for each in found]
        return [
            Series(labels, [(float(at), float(value)) for at, value in points]) for labels, points in values
        ]


@contextmanager
def scraping(operator: Installation, kubeconfig: Path, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus that has the operator as its only target. Raises ClusterError where none is installed."""
    program = shutil.which(NAME)
    if program is None:
        raise ClusterError("prometheus is not installed: apt-get install prometheus")
    address = free_address()
    listen = f"{address.host}:{address.port}"
    (directory / "prometheus.yml").write_text(yaml.safe_dump(_configuration(operator, kubeconfig, directory)))
    options = [
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address={listen}",
    ]
    processes = Processes(directory / "processes")
    processes.start(Program(NAME, [program, *options]))
    prometheus = Prometheus(listen)

    def up() -> bool:
        processes.check(NAME)
        try:
            return prometheus.has_data("up == 1")
        except OSError:
            return False

    try:
        wait_for("Prometheus to scrape the operator", up, seconds=60, seen=lambda: processes.log(NAME))
        yield prometheus
    finally:
        processes.kill(NAME)


def _configuration(operator: Installation, kubeconfig: Path, directory: Path) -> dict[str, object]:
    document = yaml.safe_load(kubeconfig.read_text())
    [cluster], [user] = document["clusters"], document["users"]
    entries = {**cluster["cluster"], **user["user"]}
    scheme, _, server = str(entries["server"]).partition("://")
    tls: dict[str, str] = {}
    for option, key in SECRETS.items():
        file = directory / option
        file.touch(mode=0o600)
        file.write_bytes(base64.b64decode(entries[key]))
        tls[option] = str(file)
    path = f"/api/v1/namespaces/{operator.namespace}/services/{operator.name}-metrics:http/proxy/metrics"
    scrape = {
        "job_name": "finetune-operator",
        "scheme": scheme,
        "metrics_path": path,
        "honor_labels": True,
        "tls_config": tls,
        "static_configs": [{"targets": [server]}],
    }
    return {"global": {"scrape_interval": f"{INTERVAL_SECONDS}s"}, "scrape_configs": [scrape]}
