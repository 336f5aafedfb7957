"""Copies models, for tests that change their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pydantic import JsonValue


def copy_of(model: Path, directory: Path) -> Path:
    """Copies a model to a new directory, and returns that."""
    return Path(shutil.copytree(model, directory))


def set_keys(file: Path, **values: JsonValue) -> None:
    """Sets keys of a JSON file; None deletes a key."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
