"""A pytest plugin that fails every test that is skipped or expected to fail, unless REASONS names it.

A skipped test shows nothing, and nobody reads the count of skips.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

REASONS: dict[str, str] = {}
"""Why a test may be skipped or expected to fail, by its node id (for a whole file: the file's path)."""


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and report.nodeid not in REASONS:
        # pytest counts no report with this attribute as a failure.
        cause = vars(report).pop("wasxfail", report.longreprtext)
        report.outcome = "failed"
        report.longrepr = (
            f"skipped or expected to fail: {cause}\nRun it everywhere, or say why not in REASONS under"
            f" {report.nodeid!r}."
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report
