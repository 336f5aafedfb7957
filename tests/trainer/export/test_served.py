from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.export.serving import adapter_in, job_in, model_in

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.export.served import Served, check_seen_by_a_cluster, served, service_name

FORMAT: JsonValue = {
    "prompt_format": dict.fromkeys(("system", "user", "assistant"), "{instruction}"),
}


def failure_of(run: Path, **options: str) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised:
        served(str(run), **options)
    return raised.value


def some_model(**fields: object) -> Served:
    defaults = {
        "name": "m",
        "path": "/m",
        "base": None,
        "max_rank": None,
        "dtype": None,
        "context_length": None,
        "own_format": False,
    }
    return Served(**{**defaults, **fields})  # type: ignore[arg-type]


def test_an_adapter_in_a_run_is_served_as_its_job_says(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "epoch-1")
    job_in(tmp_path, dtype="bf16", context_length=2048, generation_config=FORMAT)

    assert served(str(adapter)) == Served(
        name="my-job",
        path=str(adapter),
        base="org/base",
        max_rank=8,
        dtype="bfloat16",
        context_length=2048,
        own_format=True,
    )


def test_what_the_job_leaves_open_is_left_to_the_model(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "epoch-1")
    job_in(tmp_path)

    found = served(str(adapter))

    assert (found.dtype, found.context_length, found.own_format) == (None, None, False)


def test_a_model_that_is_in_no_run_is_called_like_its_directory(tmp_path: Path) -> None:
    found = served(str(model_in(tmp_path / "merged")))

    assert found == some_model(name="merged", path=str(tmp_path / "merged"))


@pytest.mark.parametrize(
    ("spec", "given", "name"),
    [({}, None, "my-job"), ({"custom_model_tag": "our-model"}, None, "our-model"), ({}, "mine", "mine")],
)
def test_the_name_is_the_given_one_or_the_tag_or_the_jobs(
    tmp_path: Path, spec: dict[str, JsonValue], given: str | None, name: str
) -> None:
    adapter = adapter_in(tmp_path / "epoch-1")
    job_in(tmp_path, **spec)

    assert served(str(adapter), name=given).name == name


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (64, 64), (257, 320), (512, 512)])
def test_the_greatest_rank_is_one_that_vllm_takes(tmp_path: Path, rank: int, allowed: int) -> None:
    assert served(str(adapter_in(tmp_path / "a", r=rank))).max_rank == allowed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [5]),
        ("target_parameters", ["mlp.weight"]),
        ("init_lora_weights", "pissa"),
        ("target_modules", ["q_proj", "embed_tokens"]),
    ],
)
def test_an_adapter_that_vllm_would_serve_as_another_model_is_to_be_merged(
    tmp_path: Path, field: str, value: JsonValue
) -> None:
    adapter = adapter_in(tmp_path / "a", **{field: value})

    failed = failure_of(adapter)

    assert failed.failure_class is FailureClass.INVALID_SPEC
    assert str(failed).startswith(f"{adapter}/adapter_config.json: vLLM does not load this adapter as it was")
    assert f"({field}: " in str(failed)
    assert "finetune merge" in str(failed)


def test_a_rank_that_vllm_does_not_take_is_told(tmp_path: Path) -> None:
    assert "rank 512 at most, this one has 600" in str(failure_of(adapter_in(tmp_path / "a", r=600)))


def test_an_adapter_of_a_base_in_4_bits_is_remarked(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "a")
    (adapter / "quantization_config.json").write_text("{}")

    [remark] = served(str(adapter)).remarks

    assert remark.startswith("the adapter was trained on a base in 4 bits and is served on the full one")


def test_a_damaged_adapter_is_named_with_its_field(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "a", r="many")

    assert str(failure_of(adapter)).startswith(f"{adapter}/adapter_config.json: r: ")


def test_a_damaged_job_is_named(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "epoch-1")
    (tmp_path / "job.yaml").write_text("spec: 3")

    assert str(failure_of(adapter)).startswith(f"{tmp_path}/job.yaml: is not what a run writes")


@pytest.mark.parametrize(
    ("name", "service"),
    [("my-job", "my-job"), ("Our Model_2", "our-model-2"), ("-x.", "x"), ("a" * 60, "a" * 50)],
)
def test_a_service_is_called_like_the_model_as_far_as_kubernetes_lets(name: str, service: str) -> None:
    assert service_name(some_model(name=name)) == service


def test_a_name_of_which_no_service_can_be_made_is_told() -> None:
    with pytest.raises(FineTuneError, match="give one with --name"):
        service_name(some_model(name="模型"))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/runs/epoch-1", "is on this machine, where no cluster sees it"),
        ("file:///runs/epoch-1", "is on this machine, where no cluster sees it"),
        ("hf://org/tuned", "cannot be served from there"),
        ("ftp://host/model", "is no address of a model"),
    ],
)
def test_a_checkpoint_that_a_cluster_does_not_see_is_to_be_uploaded(path: str, said: str) -> None:
    with pytest.raises(FineTuneError) as raised:
        check_seen_by_a_cluster(some_model(path=path), "s3", "pvc")

    assert str(raised.value) == (
        f"{path}: {said}; upload it, with `finetune push` or a copy, and say with --at where it is:"
        " s3://BUCKET/path, pvc://CLAIM/path"
    )
