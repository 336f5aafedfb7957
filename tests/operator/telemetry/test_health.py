"""What the operator answers over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from devcluster.control_plane import free_address
from finetune_operator.telemetry.health import serve


@dataclass
class Service:
    """One that listens, and what it says of itself."""

    runner: asyncio.Runner
    port: int
    wrong: dict[str, str | None] = field(default_factory=dict)

    def get(self, path: str, method: str = "GET") -> tuple[int, str, str]:
        """Status, content type and text."""

        async def get() -> tuple[int, str, str]:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session,
                session.request(method, f"http://127.0.0.1:{self.port}{path}") as answer,
            ):
                return answer.status, answer.headers["Content-Type"], await answer.text()

        return self.runner.run(get())


@pytest.fixture
def service(runner: asyncio.Runner) -> Iterator[Service]:
    service = Service(runner, free_address().port)
    listening = runner.run(
        serve(service.port, live=lambda: service.wrong.get("live"), ready=lambda: service.wrong.get("ready")),
    )
    yield service
    runner.run(listening.cleanup())


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_all_is_well(service: Service, path: str) -> None:
    assert service.get(path) == (200, "text/plain; charset=utf-8", "ok")


def test_what_is_wrong_is_said_and_is_no_success(service: Service) -> None:
    service.wrong = {"live": "a watch has gone silent"}
    assert service.get("/livez")[::2] == (503, "a watch has gone silent")
    assert service.get("/readyz")[::2] == (200, "ok")

    service.wrong = {"ready": "starting"}
    assert service.get("/livez")[::2] == (200, "ok")
    assert service.get("/readyz")[::2] == (503, "starting")


def test_a_check_is_made_at_each_request(service: Service) -> None:
    service.wrong["ready"] = "starting"
    assert service.get("/readyz")[0] == 503

    service.wrong.clear()

    assert service.get("/readyz")[0] == 200


def test_the_metrics_are_what_prometheus_reads(service: Service) -> None:
    status, content_type, text = service.get("/metrics")

    assert status == 200
    assert content_type.startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {
        "finetune_reconcile_duration_seconds",
        "finetune_watch_stale_seconds",
        "process_resident_memory_bytes",
    } <= names


def test_there_is_nothing_else(service: Service) -> None:
    assert service.get("/")[0] == 404
    assert service.get("/metrics/")[0] == 404
    assert service.get("/livez", "POST")[0] == 405


def test_a_port_that_is_taken_is_an_error(service: Service) -> None:
    with pytest.raises(OSError, match="in use"):
        service.runner.run(serve(service.port, live=lambda: None, ready=lambda: None))
