"""A pytest plugin for pytest-xdist: which tests may run at the same time, and on how many threads.

With `-n 2` a file's tests run one after the other in one process, so that what a module shares is made once;
files run beside each other. Each process starts the API server and the stores of its own that its tests ask
for. Tests that start Ray are one group: Ray finds clusters of the same machine, and two would take each
other's memory.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

RAY = ("tests/trainer/test_on_cluster.py", "tests/cli/test_run_on_several_devices.py")
"""Files of which one runs at a time; they begin first, since they take longest."""


class ByFile(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """Gives each file to one process, and all of `RAY` to the same."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "Ray" if file in RAY else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:  # noqa: ANN401 - xdist's
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    workers = workers_beside(config)
    if workers:
        # Before anything imports torch; children take it over.
        threads = len(os.sched_getaffinity(0)) // workers
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if workers_beside(config):
        items.sort(key=lambda item: item.nodeid.partition("::")[0] not in RAY)


def workers_beside(config: pytest.Config) -> int:
    """How many processes share the tests, this one included; 0 where this process runs them all."""
    given = getattr(config, "workerinput", None)
    return int(given["workercount"]) if given else 0
