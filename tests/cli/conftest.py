"""The `finetune` command in the tests' own process, which is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import pytest
from tests.cli.command_line import Command, Ended

from finetune_cli.main import app


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`finetune("validate", "job.yaml")` in this process, in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            app()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return command
