from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    ROOT / path
    for path in (
        "crds/finetune_api",
        "operator/finetune_operator",
        "trainer/finetune_trainer",
        "cli/finetune_cli",
    )
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory],
        cwd=ROOT,
        check=True,
    )
    [path] = directory.iterdir()
    return ZipFile(path)


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: ZipFile) -> None:
    files = {name for name in wheel.namelist() if not name.startswith("finetune_operator-0.1.0.dist-info/")}

    assert files == {
        str(path.relative_to(package.parent))
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_packages_carry_their_types(wheel: ZipFile) -> None:
    assert {f"{package.name}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_wheel_installs_the_command_and_the_kubectl_plugin(wheel: ZipFile) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(wheel.read("finetune_operator-0.1.0.dist-info/entry_points.txt").decode())

    assert entry_points.sections() == ["console_scripts"]
    assert dict(entry_points["console_scripts"]) == {
        "finetune": "finetune_cli.main:app",
        "kubectl-finetune": "finetune_cli.main:app",
    }


def test_the_wheel_carries_the_licence(wheel: ZipFile) -> None:
    assert wheel.read("finetune_operator-0.1.0.dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
