"""Contradictions between fields, and the warnings about fields without effect."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from tests.crds.reading import problems_of, spec_of
from tests.crds.wrong_specs import CONTRADICTIONS, WRONG_ACCELERATORS

from finetune_api.consistency import WITHOUT_EFFECT, decides_nothing, early_names, warnings
from finetune_api.explain import models_in
from finetune_api.rules import RENAMED, RULES, Rule
from finetune_api.spec import FineTuneJobSpec

UNDERSTOOD = "what is understood there is accelerator_type:TYPE, anyscale/accelerator_shape:NxTYPE, memory"


def warnings_of(text: str) -> list[str]:
    return list(warnings(spec_of(f"lora_config: {{}}\n{text}")))


@pytest.mark.parametrize(("text", "problem"), CONTRADICTIONS, ids=lambda text: text[:60])
def test_a_contradiction_is_a_problem_that_names_the_field_and_the_way_out(text: str, problem: str) -> None:
    assert problems_of(text) == (problem,)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.field} {rule.problem[:20]}")
def test_every_rule_is_among_the_contradictions(rule: Rule) -> None:
    assert f"spec.{rule.field}: {rule.problem}" in [problem for _, problem in CONTRADICTIONS]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.field} {rule.problem[:20]}")
def test_a_rule_names_a_field_that_there_is_in_both_its_languages(rule: Rule) -> None:
    *path, field = rule.field.split(".")
    model: type[BaseModel] = FineTuneJobSpec
    for name in path:
        [model] = models_in(model.model_fields[name].annotation)

    assert field in model.model_fields
    assert rule.field == ".".join(filter(None, [rule.block, rule.below_self]))
    assert f"self.{rule.below_self}" in rule.cel


@pytest.mark.parametrize(
    "text",
    [
        "min_num_update_steps: 5",
        "max_steps: 5\nnum_epochs: 3",
        "early_stopping_patience: 2\neval_path: v",
        "no_gradient_checkpoint: false",
        "checkpoint_every_n_epochs: 1\nmax_num_checkpoints: 3",
        "task: instruction_tuning",
        "packing: false\nparallelism: ddp",
        "quantization: nf4\nlora_config: {init_lora_weights: gaussian, use_dora: true}",
        "output: {push_to_hub: someone/tuned}",
        "output: {push_to_hub: someone/tuned-1.5_b, merge: true, public: true}\nlora_config: {}",
        "parallelism: fsdp\ncpu_offload: true",
        "parallelism: ddp\ncpu_offload: false",
        "sample_prompts: 2\nvalid_path: v",
        "sample_prompts: 2\neval_path: v",
        "sample_prompts: 2\nvalid_fraction: 0.1",
        "lora_config: {}\ninitial_adapter_model_ckpt_path: s3://bucket/adapter",
        "logger: {provider: wandb, provider_config: {project: p, tags: [a]}}",
        "logger: {provider: mlflow, provider_config: {tracking_uri: file:///runs}}",
    ],
)
def test_either_spelling_and_what_is_built_is_right(text: str) -> None:
    assert isinstance(spec_of(text), FineTuneJobSpec)


@pytest.mark.parametrize(("resources", "problem"), WRONG_ACCELERATORS)
def test_accelerators_are_named_once_and_asked_for_by_at_most_one(resources: str, problem: str) -> None:
    assert problems_of(f"worker_resources: {resources}") == (f"spec.worker_resources: {problem}",)


def test_all_that_is_wrong_with_accelerators_is_told() -> None:
    [problem] = problems_of("worker_resources: {'accelerator_type:': 2}")

    assert problem.startswith("spec.worker_resources: must name a type")
    assert problem.endswith("accelerator_type: is 2")


@pytest.mark.parametrize(
    ("resources", "types"),
    [
        ("{}", []),
        ("{memory: 1}", []),
        ("{'accelerator_type:A10G': 0.001}", ["A10G"]),
        ("{'accelerator_type:A100-80G': 1}", ["A100-80G"]),
        ("{'anyscale/accelerator_shape:4xA10G': 0.001}", ["A10G"]),
        ("{'anyscale/accelerator_shape:8xA100-80G': 1, 'accelerator_type:A100-80G': 1}", ["A100-80G"]),
    ],
)
def test_a_type_and_a_shape_name_the_accelerator(resources: str, types: list[str]) -> None:
    assert spec_of(f"worker_resources: {resources}").accelerator_types == types


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "liger_kernel: {kwargs: {rope: true, fused_linear_cross_entropy: true, cross_entropy: false}}",
            (
                "spec.liger_kernel.kwargs.fused_linear_cross_entropy has no effect: the loss is computed here"
                " of the positions that count, some at a time, without the scores of all"
            ),
        ),
        (
            "torch_compile: {}\nliger_kernel: {kwargs: {cross_entropy: true}}",
            (
                "spec.liger_kernel has no effect: spec.torch_compile makes kernels of its own, and Liger's"
                " are not exact when they are compiled"
            ),
        ),
        (
            "output_dir: /mnt/local_storage",
            "spec.output_dir has no effect: storage.path decides where runs are written",
        ),
        (
            "preference_tuning_config: {logprob_processor_scaling_config: {concurrency: 4}}",
            (
                "spec.preference_tuning_config.logprob_processor_scaling_config has no effect: the"
                " log-probabilities of the model as it was are computed once, by the workers that train"
            ),
        ),
        (
            "num_data_blocks_per_device: 16",
            (
                "spec.num_data_blocks_per_device has no effect: rows are tokenized once and held in memory,"
                " not streamed in blocks"
            ),
        ),
        (
            "dataset_size_scaling_factor: 1000",
            "spec.dataset_size_scaling_factor has no effect: data sets have no size limit here",
        ),
        (
            "forward_checkpoint_config: {tag: mine, remote_uri: s3://bucket/adapters}",
            (
                "spec.forward_checkpoint_config has no effect: storage.path decides where checkpoints are"
                " written, custom_model_tag what trackers call the run"
            ),
        ),
        (
            "webhook_config: {model_tag: mine, ft_type: lora}",
            (
                "spec.webhook_config has no effect: nothing is registered with Anyscale; the status says"
                " where the checkpoints are"
            ),
        ),
        (
            "num_devices: 2\ndeepspeed: {config_path: zero_3.json}",
            "spec.deepspeed: zero_3.json is ZeRO stage 3; here that is parallelism: fsdp",
        ),
        (
            "worker_resources: {my_pool: 1}",
            f"spec.worker_resources[my_pool] has no effect: {UNDERSTOOD}, CPU",
        ),
        (
            "worker_resources: {p9.48xlarge: 1}",
            f"spec.worker_resources[p9.48xlarge] has no effect: {UNDERSTOOD}, CPU",
        ),
        (
            "trainer_resources: {custom: 1}",
            f"spec.trainer_resources[custom] has no effect: {UNDERSTOOD}",
        ),
        (
            "num_epochs: 3\nmin_update_steps: 100",
            "spec.min_update_steps has no effect: num_epochs is set, and decides how long the run is",
        ),
        (
            "num_epochs: 3\nmin_num_update_steps: 100",
            "spec.min_num_update_steps has no effect: num_epochs is set, and decides how long the run is",
        ),
        (
            "num_epochs: 3\nmax_steps: 100",
            "spec.num_epochs has no effect: max_steps is set, and decides how long the run is",
        ),
        ("eval_first: true", "spec.eval_first has no effect: there is no valid_path to evaluate on"),
        (
            "sample_max_tokens: 8",
            "spec.sample_max_tokens has no effect: there are no sample_prompts to answer",
        ),
        ("eval_steps: 10", "spec.eval_steps has no effect: there is no valid_path to evaluate on"),
    ],
)
def test_a_field_that_changes_nothing_is_a_warning_that_says_what_happens_instead(
    text: str, warning: str
) -> None:
    assert warnings_of(text) == [warning]


@pytest.mark.parametrize(
    "place",
    [
        *WITHOUT_EFFECT,
        "preference_tuning_config.logprob_processor_scaling_config.concurrency",
    ],
)
def test_what_has_no_effect_decides_nothing_in_either_kind_of_file(place: str) -> None:
    keys = tuple(place.split("."))

    assert decides_nothing(keys)
    assert decides_nothing(("spec", *keys))


@pytest.mark.parametrize(
    "place",
    [
        "",
        "spec",
        "num_epochs",
        "lora_config.r",
        "liger_kernel.kwargs.rope",
        "preference_tuning_config.beta",
        "metadata.output_dir",
    ],
)
def test_what_has_an_effect_decides_something(place: str) -> None:
    assert not decides_nothing(tuple(place.split(".")) if place else ())


def test_an_early_name_is_a_warning_that_says_what_to_write_today() -> None:
    assert list(early_names({"model_id": "m", "model_tag": "mine", "eval_path": "v"})) == [
        "spec.eval_path is taken as valid_path, its name today; write that",
        "spec.model_tag is taken as custom_model_tag, its name today; write that",
    ]


def test_an_early_name_that_is_null_is_not_worth_a_word() -> None:
    assert list(early_names(dict.fromkeys(RENAMED))) == []


def test_there_is_no_warning_without_a_reason() -> None:
    assert (
        warnings_of(
            "valid_path: v\neval_first: true\nmin_update_steps: 5\nworker_resources: {memory: 5, CPU: 2,"
            " 'accelerator_type:L4': 1}"
        )
        == []
    )


def test_a_field_without_effect_that_is_null_is_not_worth_a_word() -> None:
    assert warnings_of("\n".join(f"{field}: null" for field in WITHOUT_EFFECT)) == []


def test_training_every_parameter_is_said_because_a_forgotten_block_has_burnt_people() -> None:
    [warning] = warnings(spec_of(""))

    assert (
        warning
        == "spec.lora_config is absent: every parameter of the model is trained; add `lora_config: {}` for"
        " LoRA"
    )
