"""Reading a job's DeepSpeed file where it is."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import boto3
import pytest

from finetune_api import paths
from finetune_api.deepspeed import Asked, asked_sharding
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.plan.deepspeed_file import LARGEST, deepspeed_here

OFFLOADED = json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})


def spec(path: str | None) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "model_id": "m",
            "train_path": "t",
            "num_devices": 2,
            "deepspeed": {"config_path": path} if path is not None else None,
        }
    )


def asked_here(spec: FineTuneJobSpec) -> Asked:
    """What is asked for by what could be read, with the remarks about both, as an attempt takes it."""
    file, unread = deepspeed_here(spec)
    asked = asked_sharding(spec, file)
    return asked.model_copy(update={"remarks": (*asked.remarks, *unread)})


def is_offloaded(asked: Asked) -> bool:
    return asked.kind == "fsdp" and asked.cpu_offload is True


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_file_that_is_there_is_taken_at_its_word_whatever_its_name(tmp_path: Path, form: str) -> None:
    (tmp_path / "zero_2.json").write_text(f"\ufeff{OFFLOADED}")

    asked = asked_here(spec(form.format(tmp_path / "zero_2.json")))

    assert is_offloaded(asked)
    assert asked.remarks[0].startswith("spec.deepspeed: zero_2.json was read, and is ZeRO stage 3 with")


def test_a_relative_path_is_below_the_directory_that_the_run_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ds.json").write_text(OFFLOADED)
    monkeypatch.chdir(tmp_path)

    assert is_offloaded(asked_here(spec("ds.json")))


def test_a_file_is_read_from_a_bucket(s3_bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=s3_bucket, Key="ds/zero_2.json", Body=OFFLOADED.encode())

    assert is_offloaded(asked_here(spec(f"s3://{s3_bucket}/ds/zero_2.json")))


def test_a_file_is_read_from_a_config_map_that_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "MOUNTS", PurePosixPath(tmp_path))
    mount = Path(paths.config_map_mount("zero"))
    mount.mkdir(parents=True)
    (mount / "ds.json").write_text(OFFLOADED)

    assert is_offloaded(asked_here(spec("configmap://zero/ds.json")))


@pytest.mark.parametrize("path", [None, "deepspeed_configs/zero_2.json", "/nowhere/zero_3_hpz.json"])
def test_of_a_file_that_is_not_there_the_name_says_what_it_asks_for(path: str | None) -> None:
    assert asked_here(spec(path)) == asked_sharding(spec(path))


def test_of_a_file_that_is_not_in_its_bucket_the_name_says_it(s3_bucket: str) -> None:
    path = f"s3://{s3_bucket}/zero_2.json"

    assert asked_here(spec(path)) == asked_sharding(spec(path))


def test_of_a_file_that_cannot_be_reached_the_name_says_it_and_why_it_was_not_read_is_said() -> None:
    path = "configmap://zero/zero_3_offload_optim.json"

    asked = asked_here(spec(path))

    assert is_offloaded(asked)
    assert asked.remarks[0] == asked_sharding(spec(path)).remarks[0]
    assert asked.remarks[1].startswith(f"spec.deepspeed: was not read; {path}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"stage: 3", "is no JSON: line 1, column 1: Expecting value"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"{}" + b" " * LARGEST, f"is no DeepSpeed configuration: it has more than {LARGEST} bytes"),
        (
            b'{"pipeline": {"stages": 2}}',
            (
                "pipeline.stages: pipeline parallelism has no equivalent here, is 2; take it out, ZeRO is"
                " there"
            ),
        ),
    ],
)
def test_a_file_that_is_wrong_is_an_error_with_its_path(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "zero_3.json"
    path.write_bytes(content)

    with pytest.raises(FineTuneError) as raised:
        asked_here(spec(str(path)))

    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert raised.value.problems == (f"spec.deepspeed: {path}: {problem}",)
