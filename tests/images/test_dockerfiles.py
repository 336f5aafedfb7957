"""What the images are made of and how they start, as their Dockerfiles say."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from devcluster.images import OPERATOR, RECIPES, ROOT, TRAINER, Recipe, context_files

INSTRUCTION = re.compile(r"^([A-Z]+) (.*)", re.MULTILINE)


@pytest.mark.parametrize(
    ("recipe", "packages"),
    [(TRAINER, ("crds", "trainer", "cli")), (OPERATOR, ("crds", "operator"))],
    ids=["trainer", "operator"],
)
def test_an_image_is_made_of_the_packages_that_it_runs(recipe: Recipe, packages: tuple[str, ...]) -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = context_files(recipe, ROOT)

    assert {"pyproject.toml", "README.md", "LICENSE", "locks/build.txt"} <= set(map(str, files))
    modules = {
        path.relative_to(ROOT) for package in wheel["packages"] for path in (ROOT / package).rglob("*.py")
    }
    assert {path for path in files if path.suffix == ".py" and path.parts[0] != "examples"} == {
        path for path in modules if path.parts[0] in packages
    }


@pytest.mark.parametrize(
    ("recipe", "user"), [(TRAINER, "1000:1000"), (OPERATOR, "65532:65532")], ids=["trainer", "operator"]
)
def test_an_image_runs_as_a_numbered_user_who_is_not_root_and_can_be_built_on_another_base(
    recipe: Recipe, user: str
) -> None:
    instructions = INSTRUCTION.findall((ROOT / recipe.dockerfile).read_text())

    assert [value for name, value in instructions if name == "USER"] == [user]
    assert instructions[-2 if recipe is OPERATOR else -1][0] == "USER"
    assert {value.partition(" AS ")[0] for name, value in instructions if name == "FROM"} <= {
        "${BASE}",
        "dependencies",
    }


def test_the_operators_image_starts_the_operator_and_the_trainers_what_the_pod_says() -> None:
    started = {
        recipe.name: [
            value
            for name, value in INSTRUCTION.findall((ROOT / recipe.dockerfile).read_text())
            if name in ("ENTRYPOINT", "CMD")
        ]
        for recipe in RECIPES.values()
    }
    assert started == {"trainer": [], "operator": ['["python", "-m", "finetune_operator"]']}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_dependencies_come_from_a_lock_with_hashes_before_the_code_is_there(recipe: Recipe) -> None:
    text = (ROOT / recipe.dockerfile).read_text()
    copied = [
        value.split()[:-1]
        for name, value in INSTRUCTION.findall(text)
        if name == "COPY" and "--from" not in value
    ]
    lock = f"locks/{'image' if recipe is TRAINER else 'operator'}.txt"

    assert copied[0] == ["locks/build.txt", lock]
    assert copied[-1] == ["."]
    assert (
        text.count("--requirement") == text.count("--require-hashes --only-binary :all: --requirement") == 2
    )


def test_neither_torch_nor_ray_is_in_the_operators_image() -> None:
    names = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "locks/operator.txt").read_text(), re.MULTILINE))
    assert {"kopf", "kubernetes", "pydantic"} <= names
    assert not names & {"torch", "ray", "transformers", "peft", "numpy", "pyarrow", "typer"}


def test_the_trainer_runs_as_any_user_who_then_has_a_name_and_shares_what_is_written_with_a_group(
    tmp_path: Path,
) -> None:
    """As OpenShift has it: a user of any number, in group 0. Tried are the image's own lines of shell."""
    text = (ROOT / TRAINER.dockerfile).read_text()
    [mode, profile] = [
        re.search(pattern, text, re.MULTILINE)
        for pattern in (r"^    (chmod -R \S+) /home/ray; \\$", r"^    (printf .* )>/etc/profile\.d/\S+$")
    ]
    assert mode is not None
    assert profile is not None
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True, mode=0o755)
    written = tmp_path / "run/checkpoint"
    script = f"""
        umask 0022
        {mode[1]} {home}
        {profile[1]}>{tmp_path}/profile.sh
        . {tmp_path}/profile.sh
        mkdir -p {written}
        echo >{written}/a
    """

    subprocess.run(["bash", "-euc", script], check=True, timeout=60)

    assert re.search(r"^    chgrp -R 0 /home/ray; \\$", text, re.MULTILINE)
    assert re.search(r"^    USER=ray \\$", text, re.MULTILINE)
    for path in (home, home / ".cache", written.parent, written, written / "a"):
        assert path.stat().st_mode & 0o020, f"{path} is not the group's to write"
