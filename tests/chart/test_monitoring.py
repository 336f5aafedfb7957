"""The dashboard and the alert rules of the chart ask for metrics that the operator exports."""

from __future__ import annotations

import json
import re
from collections import Counter as Count
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tests.chart.dashboard_queries import queries

from finetune_operator.telemetry import metrics
from finetune_operator.telemetry.metrics import JobCollector

FILES = Path(__file__).parents[2] / "charts/finetune-operator/files"
DASHBOARD = FILES / "dashboard.json"
ALERTS = FILES / "alerts.yaml"
ALERTS_TEST = Path(__file__).with_name("alerts_test.yaml")

DOCUMENT: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS: list[dict[str, Any]] = DOCUMENT["panels"]
DATA_PANELS = [panel for panel in PANELS if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]

NOT_OURS = {"ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
"""What Prometheus itself and its client for Python add."""
TARGET_LABELS = {"job", "instance"}
"""What Prometheus adds to every series that it scrapes; outside the Prometheus operator no more."""

_WORDS = {"and", "or", "unless", "offset", "bool"}
_GROUPING = r"\b(?:by|without|on|ignoring|group_left|group_right) *\(([^)]*)\)"
_OF_A_JOB = re.compile(r"finetune_job_\w+(?:\{(.*?)\})?")


def names(query: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"', "", query)
    for part in (r"\{[^}]*\}", r"\[[^]]*\]", _GROUPING):
        bare = re.sub(part, " ", bare)
    return set(re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?! *\()", bare)) - _WORDS


def labels(query: str) -> set[str]:
    """The labels that a PromQL expression chooses or groups by."""
    bare = re.sub(r'"[^"]*"', '""', query)
    matched = {
        label
        for matchers in re.findall(r"\{([^}]*)\}", bare)
        for label in re.findall(r"(\w+) *[=!]", matchers)
    }
    return matched | {label for group in re.findall(_GROUPING, bare) for label in re.findall(r"\w+", group)}


def collectors() -> Iterator[Counter | Gauge | Histogram | JobCollector]:
    """All that the operator exports."""
    yield from (value for value in vars(metrics).values() if isinstance(value, Counter | Gauge | Histogram))
    yield JobCollector(list)


def exported() -> dict[str, set[str]]:
    """The names of the series of each metric of the operator, as a scrape gives them."""
    registry = CollectorRegistry()
    for collector in collectors():
        registry.register(collector)
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {
        family.name: {family.name + suffix for suffix in suffixes[family.type]}
        for family in registry.collect()
    }


def asked() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alert rules, after what it is for."""
    for title, expressions in queries(DASHBOARD, "team", "bert", "1m").items():
        yield from ((title, expression) for expression in expressions)
    yield from ((each["name"], each["expr"]) for each in DOCUMENT["annotations"]["list"])
    for variable in DOCUMENT["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(
                r"label_values\((.*), (\w+)\)", variable["query"]["query"], re.DOTALL
            ).groups()  # type: ignore[union-attr]
            yield variable["name"], f"group by ({label}) ({series})"
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)


def test_every_metric_that_is_asked_for_is_exported() -> None:
    known = set().union(*exported().values()) | NOT_OURS

    assert [(where, unknown) for where, query in asked() if (unknown := names(query) - known)] == []


def test_every_metric_of_the_operator_is_shown() -> None:
    shown = set().union(*(names(query) for _, query in asked()))

    assert len(exported()) > 10
    assert [metric for metric, series in exported().items() if not series & shown] == []


def test_every_label_that_is_asked_for_is_one_that_series_have() -> None:
    known = {"le", "alertname", "alertstate"} | TARGET_LABELS
    for collector in collectors():
        families = collector.collect() if isinstance(collector, JobCollector) else [collector]
        known |= {label for family in families for label in family._labelnames}

    assert [(where, unknown) for where, query in asked() if (unknown := labels(query) - known)] == []


def test_the_variables_choose_the_jobs_of_every_panel_that_shows_jobs() -> None:
    chosen = {
        (panel["title"], matchers)
        for panel in DATA_PANELS
        for target in panel["targets"]
        for matchers in _OF_A_JOB.findall(target["expr"])
    }

    assert len(chosen) >= 8
    assert {
        title for title, matchers in chosen if matchers != 'namespace=~"$namespace",name=~"$job"'
    } == set()


def test_panels_do_not_overlap_and_leave_no_gap() -> None:
    cells = Count(
        (x, y)
        for grid in (panel["gridPos"] for panel in PANELS)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    )
    height = max(y for _, y in cells) + 1

    assert cells == Count((x, y) for x in range(24) for y in range(height))


def test_panels_are_told_apart_by_id_and_title() -> None:
    for key in ("id", "title"):
        assert [first[key] for first, second in combinations(PANELS, 2) if first[key] == second[key]] == []
    for panel in DATA_PANELS:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


@pytest.mark.parametrize("panel", DATA_PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit_and_asks_the_chosen_data_source(
    panel: dict[str, Any],
) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_dashboard_has_its_variables_and_fits_a_config_map_well() -> None:
    assert (DOCUMENT["uid"], DOCUMENT["title"]) == ("finetune-operator", "FineTuneJobs")
    assert [(each["name"], each["type"]) for each in DOCUMENT["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("namespace", "query"),
        ("job", "query"),
    ]
    sources = [
        each["datasource"]["uid"]
        for key in ("templating", "annotations")
        for each in DOCUMENT[key]["list"]
        if "datasource" in each
    ]
    assert sources == ["${datasource}"] * 3
    assert DASHBOARD.stat().st_size < 40_000


def test_the_dashboard_is_written_as_json_dumps_writes_it() -> None:
    assert DASHBOARD.read_text() == json.dumps(DOCUMENT, indent=2, ensure_ascii=False) + "\n"


def test_no_variable_is_left_in_a_query() -> None:
    filled = queries(DASHBOARD, "team", "bert", "20s")

    assert filled.keys() == {panel["title"] for panel in DATA_PANELS}
    assert [each for expressions in filled.values() for each in expressions if "$" in each] == []


def test_variables_are_filled_in_as_grafana_does_it(tmp_path: Path) -> None:
    expressions = [
        'a{namespace=~"$namespace",name=~"${job}"}',
        "rate(b[$__rate_interval])",
        "increase(c[$__range])",
        "${datasource}",
    ]
    panels = [
        {"type": "row", "title": "A row"},
        {"type": "stat", "title": "A panel", "targets": [{"expr": each} for each in expressions]},
    ]
    dashboard = tmp_path / "dashboard.json"
    dashboard.write_text(json.dumps({"time": {"from": "now-6h", "to": "now"}, "panels": panels}))

    assert queries(dashboard, "team", "bert|gpt", "20s") == {
        "A panel": ['a{namespace=~"team",name=~"bert|gpt"}', "rate(b[20s])", "increase(c[6h])", "prometheus"]
    }


def test_a_variable_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    wrong = tmp_path / "dashboard.json"
    wrong.write_text(DASHBOARD.read_text().replace("$__range", "$__ragne"))

    with pytest.raises(KeyError, match="__ragne"):
        queries(wrong, "team", "bert", "1m")


def test_every_alert_is_seen_firing_and_silent() -> None:
    tests = yaml.safe_load(ALERTS_TEST.read_text())["tests"]
    expected = [
        (each["alertname"], bool(each["exp_alerts"]))
        for test in tests
        for each in test.get("alert_rule_test", [])
    ]

    assert set(expected) == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_waits_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert "kubectl " in rule["annotations"]["description"]
