"""docs/development.md names every file of the packages, and none that is not there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/development.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGES = ("crds/finetune_api", "operator/finetune_operator", "trainer/finetune_trainer", "cli/finetune_cli")
PATH = re.compile(r"`((?:crds|operator|trainer|cli|charts|devcluster|tests|docs|examples)/[\w./-]+)`")


def listed(page: str) -> list[str]:
    """The files of the house's tables: the folder of the heading, and the name in a row."""
    files = []
    for section in re.split(r"^### ", page.partition("\n## The house\n")[2], flags=re.MULTILINE)[1:]:
        folder = re.match(r"`([^`]+/)`\n", section)
        assert folder, section
        files += [f"{folder[1]}{name}" for name in re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)]
    return files


def modules() -> list[str]:
    """The files of the four packages but for `__init__.py`, which only describe their folders."""
    return [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]


def test_every_file_of_the_packages_has_one_line_and_every_line_is_of_a_file() -> None:
    assert sorted(listed(PAGE)) == sorted(modules())


@pytest.mark.parametrize("path", sorted(set(PATH.findall(PAGE + CONTRIBUTING))))
def test_every_path_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_target_of_make_that_is_named_is_there() -> None:
    named = set(re.findall(r"\bmake ((?:[a-z0-9]+-?)+)(?=[` \n])", "\n".join(code(PAGE + CONTRIBUTING))))
    [phony] = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert {"run-operator", "generate", "test", "lint"} <= named
    assert named <= set(phony.split())


def code(page: str) -> list[str]:
    """What is set as code: between backticks, or indented by four spaces; a newline after each."""
    return [f"{text}\n" for text in re.findall(r"`([^`]+)`|^    (.+)$", page, re.MULTILINE) for text in text]


def test_what_the_editor_starts_is_there() -> None:
    launch = json.loads((ROOT / ".vscode/launch.json").read_text())
    started = [each["module"] for each in launch["configurations"] if "module" in each]
    programs = [each["program"] for each in launch["configurations"] if "program" in each]

    assert started == ["finetune_operator", "pytest"]
    assert all(importlib.util.find_spec(module) for module in started)
    assert programs == ["${workspaceFolder}/.venv/bin/finetune"]
