"""Every panel of the dashboard shows something while a job trains, by what a real Prometheus answers to its queries."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.chart.dashboard_picture import draw
from tests.chart.dashboard_queries import queries
from tests.e2e.jobs import job, wait_for_phase
from tests.e2e.long_jobs import LONG
from tests.e2e.prometheus import scraping

from devcluster.installation import CHART, Installation
from devcluster.jobs import phase
from devcluster.kubectl import Kubectl
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

DASHBOARD = CHART / "files/dashboard.json"
PICTURE = "FINETUNE_DASHBOARD_PICTURE"
"""The environment variable that names a file to draw the panels to; docs/pictures/dashboard.png was made
so."""


def test_every_panel_has_data_while_a_job_trains(
    operator: Installation,
    kubectl: Kubectl,
    kubeconfig: Path,
    namespace: str,
    tiny_inputs: Volume,
    tmp_path: Path,
    say: Say,
) -> None:
    del tiny_inputs
    asked = queries(DASHBOARD, namespace, "job", "20s")
    empty = {(title, query) for title, panel in asked.items() for query in panel}
    with scraping(operator, kubeconfig, tmp_path) as prometheus:
        began = time.time()
        kubectl.apply(job("job", namespace, **LONG))
        wait_for_phase(kubectl, namespace, "job", "Running", seconds=300)

        def answered() -> bool:
            empty.difference_update({each for each in empty if prometheus.has_data(each[1])})
            assert phase(kubectl, namespace, "job") == "Running", (
                f"it has ended, and nothing was shown of {sorted(empty)}"
            )
            return not empty

        wait_for(
            "data in every panel",
            answered,
            seconds=120,
            seen=lambda: "\n".join(map(str, sorted(empty))),
            every=1,
        )
        say(
            f"data for all {sum(map(len, asked.values()))} queries of {len(asked)} panels"
            f" {time.time() - began:.0f} s after kubectl apply"
        )

        if picture := os.environ.get(PICTURE):
            wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=300)
            time.sleep(10)
            now = time.time()
            answers = {
                title: [prometheus.range(query, began, now) for query in panel]
                for title, panel in asked.items()
            }
            draw(DASHBOARD, answers, Path(picture))
