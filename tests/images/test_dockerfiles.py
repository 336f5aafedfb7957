"""What the images are made of and how they start, as their Dockerfiles say."""

from __future__ import annotations

import re
import tomllib

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
