"""What a field of a spec may hold, and the message for one that is wrong."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError
from tests.crds.reading import all_models, problems_of, spec_of
from tests.crds.wrong_specs import WRONG_FIELDS

from finetune_api.failure import FineTuneError
from finetune_api.fields import HubRepository
from finetune_api.manifest import read_spec
from finetune_api.rules import RENAMED
from finetune_api.spec import FineTuneJobSpec


@pytest.mark.parametrize(("text", "problem"), WRONG_FIELDS, ids=lambda text: text[:60])
def test_a_wrong_field_is_one_problem_that_names_it_and_says_what_would_be_right(
    text: str, problem: str
) -> None:
    assert problems_of(text) == (problem,)


def test_all_problems_are_told_at_once() -> None:
    text = """
num_devices: 0
learning_rate: fast
loraconfig: {}
lora_config: {r: 0, target_modules: 5}
padding: shortest
task: classification
cluster: {env: {}}
"""

    assert sorted(problems_of(text)) == [
        "spec.cluster.env: must be a list, is a map",
        "spec.learning_rate: must be a number, is 'fast'",
        "spec.lora_config.r: must be at least 1, is 0",
        "spec.lora_config.target_modules: must be a text or a list of texts, is 5",
        "spec.loraconfig: is not a known field; did you mean lora_config?",
        "spec.num_devices: must be at least 1, is 0",
        "spec.padding: must be 'longest' or 'max_length', is 'shortest'",
        "spec.task: classification needs spec.classifier_config with its label_tokens",
    ]


def test_a_wrong_field_is_not_told_to_be_absent_too() -> None:
    assert problems_of("initial_adapter_model_ckpt_path: a\nlora_config: {r: 0}") == (
        "spec.lora_config.r: must be at least 1, is 0",
    )


def test_both_required_fields_are_told_to_be_missing() -> None:
    with pytest.raises(FineTuneError) as raised:
        read_spec({})

    assert raised.value.problems == ("spec.model_id: is required", "spec.train_path: is required")


def test_a_long_value_is_shown_in_part() -> None:
    [problem] = problems_of(f"dtype: {'x' * 500}")

    assert problem == f"spec.dtype: must be 'auto', 'bf16' or 'fp32', is '{'x' * 59}..."


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: '1e-4'", "learning_rate", 1e-4),
        ("learning_rate: 5E-6", "learning_rate", 5e-6),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("num_devices: '8'", "num_devices", 8),
        ("num_devices: 8.0", "num_devices", 8),
        ("min_update_steps: 1e3", "min_update_steps", 1000),
        ("min_update_steps: 1_000", "min_update_steps", 1000),
        ("min_update_steps: '1_000'", "min_update_steps", 1000),
        ("dataset_size_scaling_factor: 10_000", "dataset_size_scaling_factor", 10_000),
        ("dataset_size_scaling_factor: 0.5", "dataset_size_scaling_factor", 0.5),
        ("trainer_resources: {memory: 150_323_855_360}", "trainer_resources", {"memory": 150_323_855_360}),
        (
            "worker_resources: {'accelerator_type:A10G': '1e-3'}",
            "worker_resources",
            {"accelerator_type:A10G": 0.001},
        ),
    ],
)
def test_numbers_are_read_leniently(text: str, field: str, value: object) -> None:
    assert getattr(spec_of(text), field) == value
    assert type(getattr(spec_of(text), field)) is type(value)


def test_memory_stays_a_whole_number() -> None:
    resources = spec_of("worker_resources: {memory: 53_687_091_200}").worker_resources

    assert resources is not None
    assert repr(resources["memory"]) == "53687091200"


@pytest.mark.parametrize(
    "field", ["num_devices", "learning_rate", "dataset_size_scaling_factor", "seed", "num_epochs"]
)
@pytest.mark.parametrize("switch", ["true", "false", "yes"])
def test_a_switch_is_no_number(field: str, switch: str) -> None:
    shown = "false" if switch == "false" else "true"

    assert problems_of(f"{field}: {switch}") == (f"spec.{field}: must be a number, is {shown}",)


@pytest.mark.parametrize("text", ["yes", "on", "True", "true"])
def test_yaml_has_several_words_for_true(text: str) -> None:
    assert spec_of(f"eval_first: {text}").eval_first is True


@pytest.mark.parametrize("field", sorted(set(FineTuneJobSpec.model_fields) - {"model_id", "train_path"}))
def test_a_field_that_is_null_is_absent(field: str) -> None:
    spec = spec_of(f"{field}: null")

    assert spec == spec_of("")
    assert field not in spec.model_fields_set


def test_null_is_absence_below_the_top_too() -> None:
    assert spec_of("lora_config: {r: null, target_modules:}") == spec_of("lora_config: {}")


def test_a_repository_of_the_hub_may_stand_for_a_path() -> None:
    spec = spec_of(
        "initial_base_model_ckpt_path: {repo_id: org/name}\ninitial_adapter_model_ckpt_path:"
        " s3://b/a\nlora_config: {}"
    )

    assert spec.initial_base_model_ckpt_path == HubRepository(repo_id="org/name")
    assert spec.initial_adapter_model_ckpt_path == "s3://b/a"


@pytest.mark.parametrize(
    "path",
    [
        "rows.jsonl",
        "/data/rows.jsonl",
        "~/rows.jsonl",
        "s3://bucket/rows.jsonl",
        "gs://bucket/a/b.jsonl",
        "hf://datasets/owner/name/train.jsonl",
        "pvc://claim/rows.jsonl",
        "pvc://claim.with-dots/a b/rows.jsonl",
        "configmap://rows/train.jsonl",
        "file:///data/rows.jsonl",
    ],
)
def test_rows_come_from_paths_of_these_forms(path: str) -> None:
    assert spec_of(f"train_path: {path}").train_path == path


@pytest.mark.parametrize(
    "path",
    [
        "org/name",
        "./model",
        "s3://bucket/model",
        "gs://b",
        "hf://org/name",
        "hf://org/name@rev",
        "pvc://claim/m",
    ],
)
def test_models_come_from_paths_of_these_forms(path: str) -> None:
    assert spec_of(f"model_id: {path}").model_id == path


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("", "causal_lm"),
        ("task: causal_lm", "causal_lm"),
        ("task: instruction_tuning", "instruction_tuning"),
        ("task: preference_tuning", "preference_tuning"),
        ("preference_tuning_config: {beta: 0.01}", "preference_tuning"),
        ("classifier_config: {label_tokens: [a, b]}", "classification"),
    ],
)
def test_all_tokens_are_trained_unless_the_task_says_otherwise(text: str, task: str) -> None:
    assert spec_of(text).trained_task == task


@pytest.mark.parametrize(
    ("text", "recomputes"),
    [
        ("", None),
        ("gradient_checkpointing: true", True),
        ("gradient_checkpointing: false", False),
        ("no_gradient_checkpoint: true", False),
        ("no_gradient_checkpoint: false", True),
    ],
)
def test_gradient_checkpointing_has_an_inverted_older_spelling(text: str, recomputes: bool | None) -> None:
    assert spec_of(text).recomputes_activations is recomputes


@pytest.mark.parametrize(
    ("text", "steps"), [("", None), ("min_update_steps: 7", 7), ("min_num_update_steps: 7", 7)]
)
def test_the_least_number_of_steps_has_two_spellings(text: str, steps: int | None) -> None:
    assert spec_of(text).minimum_steps == steps


@pytest.mark.parametrize(("early", "today"), RENAMED.items())
def test_a_field_with_its_early_name_is_the_same_as_with_todays(early: str, today: str) -> None:
    assert spec_of(f"{early}: v") == spec_of(f"{today}: v") == spec_of(f"{early}: v\n{today}: null")


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("", None),
        ("checkpoint_every_n_epochs: 3", 3),
        ("checkpoint_and_evaluation_frequency: {unit: epochs, frequency: 3}", 3),
    ],
)
def test_the_interval_of_checkpoints_has_two_forms(text: str, epochs: int | None) -> None:
    assert spec_of(text).checkpoint_interval == epochs


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(spec_of(""), "seed", 1)  # noqa: B010 (mypy knows that it cannot be assigned)


@pytest.mark.parametrize("model", dict.fromkeys(all_models(FineTuneJobSpec)))
def test_every_field_is_described(model: type[BaseModel]) -> None:
    undescribed = {name for name, field in model.model_fields.items() if not field.description}

    assert undescribed <= {"vision_language_config"} | {
        "num_data_blocks_per_device",
        "dataset_size_scaling_factor",
    }
