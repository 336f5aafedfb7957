from __future__ import annotations

import json
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.cli.command_line import FINETUNE, Command, process, small_job

COMMANDS = ["run", "extend", "validate", "convert", "plan", "data", "crd", "merge", "chat", "push", "serve"]
TRAINING_PACKAGES = ["matplotlib", "numpy", "peft", "pyarrow", "ray", "torch", "transformers"]

IMPORTED = """
import json, sys
from finetune_cli.main import app
sys.argv = ["finetune", *sys.argv[1:]]
try:
    app()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""

WITHOUT_TRAINER = """
import sys
from importlib.abc import MetaPathFinder

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled())
from finetune_cli.main import app
sys.argv = ["finetune", *sys.argv[1:]]
app()
"""


def test_it_says_its_version(finetune: Command) -> None:
    ended = finetune("--version")

    assert (ended.code, ended.out) == (0, f"finetune {version('finetune-operator')}\n")


def test_help_names_every_command(finetune: Command) -> None:
    ended = finetune("--help")

    assert ended.code == 0
    assert all(f"│ {command} " in ended.out for command in COMMANDS)


def test_the_help_of_run_names_the_directory_that_is_taken_by_default(finetune: Command) -> None:
    from finetune_trainer.local import DEFAULT_STORAGE

    ended = finetune("run", "--help")

    assert ended.code == 0
    assert DEFAULT_STORAGE in " ".join(ended.out.replace("│", " ").split())


def test_help_costs_less_than_a_second_of_computing(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_kubectl_finds_it_as_a_plugin() -> None:
    ended = subprocess.run(
        [FINETUNE.with_name("kubectl-finetune"), "--version"], capture_output=True, text=True, check=True
    )

    assert ended.stdout == f"finetune {version('finetune-operator')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "job.yaml"],
        ["convert", "job.yaml"],
        ["run", "wrong.yaml"],
        ["plan", "wrong.yaml"],
        ["validate", "job.yaml", "--set", "spec.seed=1"],
    ],
)
def test_what_needs_no_training_loads_no_package_of_the_trainer(
    tmp_path: Path, tiny_model: Path, arguments: list[str]
) -> None:
    small_job(tmp_path, tiny_model)
    (tmp_path / "wrong.yaml").write_text("model_id: tiny\n")

    ended = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = {name.partition(".")[0] for name in json.loads(ended.stderr.splitlines()[-1])}

    assert "typer" in loaded
    assert loaded.isdisjoint(TRAINING_PACKAGES)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "job.yaml"],
        ["plan", "job.yaml"],
        ["data", "job.yaml"],
        ["extend", "runs", "--epochs", "+2"],
        ["merge", "epoch-0", "merged"],
        ["chat", "run"],
        ["push", "epoch-0", "owner/name"],
        ["serve", "epoch-0", "--as", "vllm"],
        ["report", "run"],
    ],
)
def test_without_the_trainers_packages_it_says_how_to_install_them(
    tmp_path: Path, tiny_model: Path, arguments: list[str]
) -> None:
    small_job(tmp_path, tiny_model)
    program = WITHOUT_TRAINER.format(packages=TRAINING_PACKAGES)

    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: this command needs ")
    assert ended.stderr.endswith(", which is not installed: pip install 'finetune-operator[trainer]'\n")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND [ARGS]"),
        (["traine"], "No such command 'traine'"),
        (["run"], "Missing argument 'FILE'"),
        (["run", "job.yaml", "--devices", "0"], "'--devices'"),
        (["run", "job.yaml", "-o", "xml"], "'table', 'yaml', 'json'"),
        (["report"], "Missing argument 'RUN'"),
        (["run", "job.yaml", "--set", "seed=1"], "must be spec.FIELD=VALUE, is 'seed=1'; did you"),
        (["validate", "job.yaml", "--set", "spec.seed"], "must be spec.FIELD=VALUE, is 'spec.seed'"),
        (["plan", "job.yaml", "--set", "spec.lora_config={"], "spec.lora_config:1:2: expected"),
        (["extend", "runs"], "Missing option '--epochs'"),
        (["extend", "runs", "--epochs", "2"], "must be +N, the number of epochs more, is 2"),
        (["validate"], "Missing argument 'FILE'"),
        (["plan", "job.yaml", "--plot", "rate.gif"], "rate.gif must end in .png, .svg or .pdf"),
        (["merge", "epoch-0"], "Missing argument 'OUT'"),
        (["push", "epoch-0"], "Missing argument 'OWNER/NAME'"),
        (["serve", "epoch-0"], "Missing option '--as'"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(finetune: Command, arguments: list[str], said: str) -> None:
    ended = finetune(*arguments)

    assert ended.code == 2
    assert said in ended.out + ended.err


def test_crd_writes_the_definition_that_is_committed(finetune: Command) -> None:
    ended = finetune("crd")

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (Path(__file__).parents[2] / "crds/finetunejobs.yaml").read_text()
