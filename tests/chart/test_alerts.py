"""The chart's alert rules and the dashboard's queries, as a real Prometheus takes them.

Its promtool is in Debian's package `prometheus`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.chart.dashboard_queries import queries

from devcluster.installation import CHART

ALERTS = CHART / "files/alerts.yaml"
DASHBOARD = CHART / "files/dashboard.json"
ALERTS_TEST = Path(__file__).with_name("alerts_test.yaml")


def promtool(*arguments: str | Path) -> None:
    """Fails with what promtool says unless it is content."""
    program = shutil.which("promtool")
    assert program, "promtool is not on PATH: apt-get install prometheus"
    result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    # Only what a panel can show, an instant vector, can be counted.
    asked = [query for panel in queries(DASHBOARD, "team", "bert", "1m").values() for query in panel]
    rules = [{"record": f"query:{number}", "expr": f"count({query})"} for number, query in enumerate(asked)]
    recording = tmp_path / "queries.yaml"
    recording.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    promtool("check", "rules", "--lint=all", "--lint-fatal", recording)


def test_prometheus_takes_the_alert_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


def test_alerts_fire_in_their_situations_and_are_silent_otherwise() -> None:
    promtool("test", "rules", ALERTS_TEST)


def test_a_missing_promtool_is_a_failure_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(AssertionError, match="apt-get install prometheus"):
        promtool("check", "rules", ALERTS)
