"""The progress record is written into its config map over TLS, with the pod's token, in one merge patch."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.trainer.records_server import RecordsServer, records_server

from devcluster.certificates import Authority
from finetune_api.assignment import LARGEST_RECORD
from finetune_api.failure import FailureClass
from finetune_api.status import Checkpoint, Failure, ProgressRecord
from finetune_trainer.report.config_map import ConfigMap
from finetune_trainer.report.record_writer import RecordRefusedError

RECORD = ProgressRecord(attempt=2, failure=Failure(failure_class=FailureClass.NODE_LOST, message="gone"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RecordsServer]:
    with records_server(tmp_path / "service-account") as server:
        yield server


def test_the_record_is_patched_into_the_one_key(server: RecordsServer) -> None:
    server.config_map.write(RECORD)

    (request,) = server.requests
    assert request.path == "/api/v1/namespaces/somewhere/configmaps/records"
    assert request.headers["Content-Type"] == "application/merge-patch+json"
    assert list(request.body) == ["data"]
    assert list(request.body["data"]) == ["record.json"]
    assert request.record == RECORD


def test_the_record_is_camel_case_and_without_what_is_not_known(server: RecordsServer) -> None:
    server.config_map.write(RECORD)

    text = server.requests[0].body["data"]["record.json"]
    assert json.loads(text) == {
        "version": 1,
        "attempt": 2,
        "checkpoints": [],
        "failure": {"class": "NodeLost", "message": "gone"},
        "finished": False,
        "interrupted": False,
    }


def test_a_token_that_was_replaced_is_used(server: RecordsServer) -> None:
    server.config_map.write(RECORD)
    (server.config_map.service_account / "token").write_text("another token\n")
    server.config_map.write(RECORD)

    assert [request.headers["Authorization"] for request in server.requests] == [
        "Bearer a token",
        "Bearer another token",
    ]


def test_a_server_of_another_authority_gets_no_token(server: RecordsServer, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    Authority(stranger)
    for name in ("token", "namespace"):
        (stranger / name).write_text("secret")

    with pytest.raises(ssl.SSLCertVerificationError):
        replace(server.config_map, service_account=stranger).write(RECORD)

    assert server.requests == []


def test_a_refusal_is_told_in_the_servers_words(server: RecordsServer) -> None:
    server.answers = [
        (HTTPStatus.NOT_FOUND, json.dumps({"kind": "Status", "message": 'configmaps "records" not found'}))
    ]

    with pytest.raises(
        RecordRefusedError, match=r'^config map records: 404 Not Found: configmaps "records" not found$'
    ):
        server.config_map.write(RECORD)


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND])
def test_a_right_that_is_gone_is_a_refusal(server: RecordsServer, status: HTTPStatus) -> None:
    server.answers = [(status, "{}")]

    with pytest.raises(RecordRefusedError):
        server.config_map.write(RECORD)


@pytest.mark.parametrize(
    "status", [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT]
)
def test_what_may_pass_is_none(server: RecordsServer, status: HTTPStatus) -> None:
    server.answers = [(status, "{}")]

    with pytest.raises(OSError, match=str(int(status))):
        server.config_map.write(RECORD)


def test_an_answer_that_is_no_status_is_told_as_it_is(server: RecordsServer) -> None:
    server.answers = [(HTTPStatus.BAD_GATEWAY, "try later")]

    with pytest.raises(OSError, match=r"^config map records: 502 Bad Gateway: try later$"):
        server.config_map.write(RECORD)


def test_a_server_that_is_not_there_is_an_error_of_the_system(server: RecordsServer) -> None:
    with pytest.raises(ConnectionRefusedError):
        replace(server.config_map, port=1).write(RECORD)


def test_a_record_that_is_too_large_is_not_sent(
    server: RecordsServer, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    checkpoints = [
        Checkpoint(name=f"epoch-{number}", path="x" * 4000, epoch=1, step=1, time=now)
        for number in range(300)
    ]

    server.config_map.write(RECORD.model_copy(update={"checkpoints": checkpoints}))

    assert server.requests == []
    (said,) = caplog.messages
    assert re.fullmatch(
        r"the progress record is not written: it has 12\d{5} bytes, and a config map takes"
        rf" {LARGEST_RECORD}",
        said,
    )


def test_a_pod_finds_its_api_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    assert ConfigMap.in_this_pod("records") == ConfigMap(
        "records", "fd00::1", 443, Path("/var/run/secrets/kubernetes.io/serviceaccount")
    )
