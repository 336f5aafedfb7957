from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.command_line import Command, process

ROOT = Path(__file__).parents[2]
EXAMPLES = [*sorted(ROOT.glob("examples/*.yaml")), *sorted(ROOT.glob("examples/llmforge/*.yaml"))]

RIGHT = "model_id: m\ntrain_path: t.jsonl\nlora_config: {}\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_right(finetune: Command, example: Path) -> None:
    ended = finetune("validate", example)

    assert (ended.code, ended.out) == (0, f"{example}: ok\n")


def test_all_mistakes_of_all_files_are_shown_each_with_its_file_and_field(tmp_path: Path) -> None:
    (tmp_path / "right.yaml").write_text(RIGHT)
    (tmp_path / "fields.yaml").write_text(
        "model_id: m\ntrain_path: t.jsonl\nlearning_rte: 1e-4\nlora_config: {r: many}\nnum_epochs: 0\n"
    )
    (tmp_path / "syntax.yaml").write_text("model_id: m\ntrain_path: [\n")

    ended = process("validate", "fields.yaml", "right.yaml", "syntax.yaml", "absent.yaml", cwd=tmp_path)

    assert ended.code == 1
    assert ended.out == "right.yaml: ok\n"
    assert ended.err.splitlines() == [
        "error: fields.yaml: spec.num_epochs: must be at least 1, is 0",
        "error: fields.yaml: spec.lora_config.r: must be a whole number, is 'many'",
        "error: fields.yaml: spec.learning_rte: is not a known field; did you mean learning_rate?",
        "error: syntax.yaml:3:1: expected the node content, but found '<stream end>'",
        "error: absent.yaml: No such file or directory",
    ]


JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {generateName: tune-}
spec:
  model_id: m
  train_path: t.jsonl
  lora_config: {}
"""


def test_a_job_whose_name_the_api_server_makes_is_right(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)

    ended = finetune("validate", "job.yaml")

    assert (ended.code, ended.out, ended.err) == (0, "job.yaml: ok\n", "")


def test_what_the_api_server_would_refuse_of_a_job_is_an_error(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        JOB.replace("generateName: tune-", "name: tune, labels: {team: blue team}")
        + "  num_devices: '2'\n  cluster: {head: {resources: {limits: {cpu: 0.5}}}}\n"
    )

    ended = finetune("validate", "job.yaml")

    assert ended.code == 1
    assert ended.err.splitlines() == [
        (
            "error: job.yaml: metadata.labels.team: must be a label's value: at most 63 letters, digits, `-`,"
            " `_` and `.`; numbers in quotes, is 'blue team'"
        ),
        'error: job.yaml: spec.cluster.head.resources.limits.cpu: must be in quotes, "0.5", is 0.5',
        "error: job.yaml: spec.num_devices: must be a whole number, is '2'; take it out of the quotes",
    ]


def test_warnings_are_shown_and_change_nothing(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(RIGHT + "output_dir: /mnt\nnum_epochs: 2\nnum_epochs: 2\n")

    ended = finetune("validate", "job.yaml")

    assert (ended.code, ended.out) == (0, "job.yaml: ok\n")
    assert ended.err.splitlines() == [
        "warning: job.yaml:6: num_epochs is given twice with the same value",
        "warning: job.yaml: spec.output_dir has no effect: storage.path decides where runs are written",
    ]


def test_what_the_user_wrote_is_shown_as_it_is(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        RIGHT + 'lr_scheduler_type: "[red]x[/red] :smile:"\n"\\e[31mfield\\n": 1\n'
    )

    ended = finetune("validate", "job.yaml")

    assert ended.code == 1
    assert "is '[red]x[/red] :smile:'" in ended.err
    assert r"\x1b[31mfield\n" in ended.err
    assert "\x1b" not in ended.err
    assert len(ended.err.splitlines()) == 2


def test_a_long_problem_stays_on_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(RIGHT + f"dtype: {'long ' * 50}\n")

    ended = process("validate", "job.yaml", cwd=tmp_path, COLUMNS="40")

    assert len(ended.err.splitlines()) == 1


def test_a_device_by_another_name_is_right_and_it_is_said_what_it_is_taken_as(
    finetune: Command, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(f"{RIGHT}worker_resources: {{g5.12xlarge: 0.01}}\n")

    ended = finetune("validate", "job.yaml")

    assert (ended.code, ended.out) == (0, "job.yaml: ok\n")
    assert ended.err == (
        "warning: job.yaml: spec.worker_resources[g5.12xlarge] is taken as accelerator_type:A10G\n"
    )


def test_a_machine_that_is_not_known_is_a_mistake_that_lists_what_is(
    finetune: Command, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(f"{RIGHT}worker_resources: {{p9.48xlarge: 0.01}}\n")

    for command in ("validate", "convert"):
        ended = finetune(command, "job.yaml")

        assert (ended.code, ended.out) == (1, "")
        assert "spec.worker_resources[p9.48xlarge]: no accelerator of this name is known" in ended.err
        assert "p5.*" in ended.err
