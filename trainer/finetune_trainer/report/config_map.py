"""Writes the progress record into a config map, with the pod's service account."""

from __future__ import annotations

import http.client
import json
import logging
import os
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from finetune_api.assignment import LARGEST_RECORD, RECORD_KEY
from finetune_api.status import ProgressRecord
from finetune_trainer.report.record_writer import RecordRefusedError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, the certificate authority of the API server, and its namespace."""
TIMEOUT_SECONDS = 10
REFUSALS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
"""Answers for a config map or a right that is gone, as when the FineTuneJob was deleted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfigMap:
    """One config map in the pod's namespace."""

    name: str
    host: str
    port: int
    service_account: Path = SERVICE_ACCOUNT

    @classmethod
    def in_this_pod(cls, name: str) -> ConfigMap:
        """The config map of this name in this pod's namespace, at the cluster's API server."""
        return cls(name, os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"]))

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return (self.service_account / "namespace").read_text(encoding="utf-8").strip()

    def write(self, record: ProgressRecord) -> None:
        """Replaces the record. One that is too large for a config map is logged and not sent.

        Raises OSError or HTTPException when the API server cannot be reached or cannot do it now, and
        RecordRefusedError when the config map, or the right to it, is gone.
        """
        text = record.model_dump_json(by_alias=True, exclude_none=True)
        size = len(text.encode())
        if size > LARGEST_RECORD:
            _log.error(
                "the progress record is not written: it has %d bytes, and a config map takes %d",
                size,
                LARGEST_RECORD,
            )
            return
        # Kubernetes replaces token and certificate while the pod runs.
        token = (self.service_account / "token").read_text(encoding="utf-8").strip()
        trust = ssl.create_default_context(cafile=str(self.service_account / "ca.crt"))
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_SECONDS, context=trust)
        try:
            connection.request(
                "PATCH",
                f"/api/v1/namespaces/{self.namespace}/configmaps/{self.name}",
                body=json.dumps({"data": {RECORD_KEY: text}}),
                headers={
                    "Authorization": f"Bearer {token}",
                    "Content-Type": "application/merge-patch+json",
                    "Accept": "application/json",
                },
            )
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != HTTPStatus.OK:
            error = RecordRefusedError if answer.status in REFUSALS else OSError
            raise error(f"config map {self.name}: {answer.status} {answer.reason}: {_message(said)}")


def _message(body: bytes) -> str:
    """The message of a `Status` from the API server, or the beginning of any other body."""
    text = body.decode("utf-8", errors="replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
