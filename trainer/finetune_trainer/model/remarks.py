"""What transformers remarks while it reads a model, which the command keeps from the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split())[:300])


@contextmanager
def transformers_remarks(where: str, remarks: list[str]) -> Iterator[None]:
    """Adds to `remarks` what transformers warns about in the `with` block; `where` is the field to look at.

    It is not printed as well. Errors of transformers' log are among them: what fails is raised besides.
    """
    logger = transformers_logging.get_logger()
    collector = _Collector()
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [collector], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    for message in collector.messages:
        remark = f"{where}: transformers remarks: {message}"
        if remark not in remarks:
            remarks.append(remark)
