"""What Grafana asks Prometheus for the dashboard, once the variables are filled in."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template


def queries(dashboard: Path, namespace: str, job: str, rate_interval: str) -> dict[str, list[str]]:
    """The PromQL expressions of each panel with data, by its title, filled in as Grafana does it.

    The time range is the dashboard's own.

    `namespace` and `job` are regular expressions, `rate_interval` is a duration: at least four times the
    interval of scrapes. Raises KeyError for a variable that is not known."""
    document = json.loads(dashboard.read_text())
    variables = {
        "namespace": namespace,
        "job": job,
        "datasource": "prometheus",
        "__rate_interval": rate_interval,
        "__range": document["time"]["from"].removeprefix("now-"),
    }
    return {
        panel["title"]: [Template(target["expr"]).substitute(variables) for target in panel["targets"]]
        for panel in document["panels"]
        if panel["type"] != "row"
    }
