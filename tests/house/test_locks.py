from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.stem for path in (ROOT / "locks").iterdir())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
GROUPS: dict[str, list[str]] = PYPROJECT["dependency-groups"]


def entries(lock: str) -> list[str]:
    """The entries of a lock file, each on one line with its hashes, comments left out."""
    lines = [
        line
        for line in (ROOT / "locks" / f"{lock}.txt").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def pins(lock: str) -> dict[str, set[str]]:
    """The versions of each package in a lock file; there are several when they depend on the platform."""
    versions: dict[str, set[str]] = {}
    for entry in entries(lock):
        requirement = Requirement(entry.partition(" --hash")[0])
        [specifier] = requirement.specifier
        assert specifier.operator == "=="
        versions.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return versions


def expanded(requirements: list[str]) -> Iterator[Requirement]:
    """The requirements, with `finetune-operator[extra]` replaced by those of the extra."""
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from expanded(EXTRAS[extra])
        else:
            yield requirement


WANTED = {
    "build": [*PYPROJECT["build-system"]["requires"], *GROUPS["build"]],
    "trainer": [*PROJECT["dependencies"], *EXTRAS["trainer"], *GROUPS["examples"]],
    "image": [*PROJECT["dependencies"], *EXTRAS["trainer"], *GROUPS["image"]],
    "operator": [*PROJECT["dependencies"], *EXTRAS["operator"]],
    "dev": [*PROJECT["dependencies"], *chain(*EXTRAS.values()), *GROUPS["examples"], *GROUPS["dev"]],
}


@pytest.mark.parametrize("lock", WANTED)
def test_a_lock_pins_every_requirement_of_the_project_at_a_version_that_satisfies_it(lock: str) -> None:
    pinned = pins(lock)

    unsatisfied = [
        str(requirement)
        for requirement in expanded(WANTED[lock])
        if not all(
            requirement.specifier.contains(version)
            for version in pinned.get(canonicalize_name(requirement.name), {"0"})
        )
    ]

    assert not unsatisfied, "run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_of_a_lock_has_hashes(lock: str) -> None:
    assert [entry for entry in entries(lock) if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_no_address(lock: str) -> None:
    assert (
        re.findall(
            r"\S*://\S*|--index\S*|--extra-index\S*|--find-links\S*",
            (ROOT / "locks" / f"{lock}.txt").read_text(),
        )
        == []
    )


def test_what_trains_is_what_was_tested() -> None:
    dev = pins("dev")

    assert {name: versions for name, versions in pins("trainer").items() if dev.get(name) != versions} == {}


def test_the_image_and_the_build_tools_fit_beside_what_was_tested() -> None:
    dev = pins("dev")

    assert {
        name: versions for name, versions in pins("image").items() if dev.get(name, versions) != versions
    } == {}
    assert {
        name: versions for name, versions in pins("build").items() if dev.get(name, versions) != versions
    } == {}


@pytest.mark.parametrize("lock", ["trainer", "image"])
def test_the_trainer_carries_neither_the_operator_nor_the_tests(lock: str) -> None:
    assert pins(lock).keys() & {"kopf", "kubernetes", "kubernetes-asyncio", "moto", "pytest", "trl"} == set()
