"""Log lines: JSON for machines, or text; those about a job carry its namespace, name and UID."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

from finetune_operator.observed import ObjectMeta

_FIELDS = ("namespace", "name", "uid")
_UTC = "%Y-%m-%dT%H:%M:%SZ"


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401 - logging's own types
        return msg, {**kwargs, "extra": {"job": self.extra}}


class _Json(JsonFormatter):
    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data.pop("job", None)
        log_data.pop("k8s_ref", None)
        log_data.pop("settings", None)
        log_data.pop("k8s_skip", None)
        log_data.update(_job_of(record))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        job = _job_of(record)
        where = f" [{job['namespace']}/{job['name']}]" if job else ""
        return f"{self.formatTime(record, self.datefmt)} {record.levelname}{where} {super().format(record)}"


def job_logger(job: ObjectMeta) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose lines are about a job."""
    return _JobLogger(
        logging.getLogger("finetune_operator"), {field: getattr(job, field) for field in _FIELDS}
    )


def configure(log_format: Literal["json", "text"], level: str) -> None:
    """Sends all log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    logging.Formatter.converter = time.gmtime
    renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
    if log_format == "json":
        handler.setFormatter(
            _Json("%(asctime)s %(levelname)s %(name)s %(message)s", datefmt=_UTC, rename_fields=renamed)
        )
    else:
        handler.setFormatter(_Text("%(message)s", datefmt=_UTC))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # A line for every request and every ignored event is for those who ask for it.
    for chatty in ("asyncio", "kopf.objects", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)


def _job_of(record: logging.LogRecord) -> dict[str, str]:
    """The job that a line is about: it is in `job` of our own lines, in `k8s_ref` of kopf's."""
    about = getattr(record, "job", None) or getattr(record, "k8s_ref", None)
    return (
        {field: str(about[field]) for field in _FIELDS if about.get(field)} if isinstance(about, dict) else {}
    )
