"""`lora_config` is PEFT's LoraConfig, field by field."""

from __future__ import annotations

import dataclasses

import peft
import pytest
from tests.crds.reading import problems_of, spec_of

from finetune_api.lora import INITIALISATIONS, UNBUILT_INITIALISATIONS, LoraConfig
from finetune_api.yaml_text import parse


def peft_defaults() -> dict[str, object]:
    """The defaults of PEFT's fields, its sub-configurations as maps."""
    defaults = {}
    for field in dataclasses.fields(peft.LoraConfig):
        default: object = (
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        )
        defaults[field.name] = vars(default) if isinstance(default, peft.LoraRuntimeConfig) else default
    return defaults


def test_the_fields_are_those_of_peft() -> None:
    assert set(LoraConfig.model_fields) == set(peft_defaults())


@pytest.mark.parametrize("field", sorted(set(LoraConfig.model_fields) - {"target_modules"}))
def test_a_field_that_is_left_out_has_pefts_default(field: str) -> None:
    ours = LoraConfig().model_dump()[field]

    assert ours == peft_defaults()[field]
    assert type(ours) is type(peft_defaults()[field])


def test_all_linear_layers_are_targeted_unless_said_otherwise() -> None:
    assert peft_defaults()["target_modules"] is None
    assert LoraConfig().target_modules == "all-linear"


def test_an_empty_block_is_a_complete_configuration_that_peft_takes() -> None:
    config = peft.LoraConfig(**LoraConfig().model_dump())

    assert (config.r, config.lora_alpha, config.target_modules) == (8, 8, "all-linear")


@pytest.mark.parametrize(
    "text",
    [
        "r: 16\nlora_alpha: 32\nlora_dropout: 0.05\ntask_type: CAUSAL_LM\nbias: none\nmodules_to_save: []",
        "target_modules: [q_proj, v_proj]\nlayers_to_transform: [0, 1]\nlayers_pattern: layers",
        "target_modules: [q_proj]\nlayers_to_transform: 3\nlayers_pattern: [layers, blocks]",
        "target_modules: '.*_proj'\nexclude_modules: [lm_head]",
        "rank_pattern: {q_proj: 4}\nalpha_pattern: {q_proj: 8}",
        "layer_replication: [[0, 4], [2, 5]]",
        "trainable_token_indices: [1, 2]",
        "trainable_token_indices: {embed_tokens: [1, 2]}",
        "use_dora: true\nruntime_config: {ephemeral_gpu_offload: true}",
        "velora_config: {num_groups: 16}",
        "use_bdlora: {nblocks: 2}",
        "lora_bias: true\ninit_lora_weights: false",
        *(f"init_lora_weights: {name}" for name in INITIALISATIONS),
    ],
)
def test_what_is_right_here_is_right_for_peft(text: str) -> None:
    fields, _ = parse(text, "lora.yaml")
    lora = spec_of("lora_config:\n  " + text.replace("\n", "\n  ")).lora_config

    assert lora is not None
    assert peft.LoraConfig(**lora.model_dump(exclude_unset=True)).r == lora.r
    assert lora.model_dump(exclude_unset=True) == fields


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{layers_to_transform: 3}",
            "layers_to_transform: needs spec.lora_config.target_modules as a list of names, is all-linear",
        ),
        (
            "{target_modules: '.*q_proj', layers_to_transform: [0]}",
            "layers_to_transform: needs spec.lora_config.target_modules as a list of names, is .*q_proj",
        ),
        (
            "{target_modules: [q_proj], layers_pattern: layers}",
            "layers_pattern: needs spec.lora_config.layers_to_transform",
        ),
        (
            "{lora_bias: true, init_lora_weights: gaussian}",
            "lora_bias: needs spec.lora_config.init_lora_weights to be true or false",
        ),
        (
            "{lora_bias: true, use_dora: true}",
            "lora_bias: does not go with spec.lora_config.use_dora; keep one of them",
        ),
    ],
)
def test_what_peft_refuses_is_refused_with_the_names_of_the_fields(text: str, problem: str) -> None:
    fields, _ = parse(text, "lora.yaml")

    assert problems_of(f"lora_config: {text}") == (f"spec.lora_config.{problem}",)
    with pytest.raises(ValueError, match=r"layers|lora_bias"):
        peft.LoraConfig(**({"target_modules": "all-linear"} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "init_lora_weights: eva",
            "init_lora_weights: needs a pass over the data before training, which is not supported yet",
        ),
        (
            "init_lora_weights: corda",
            "init_lora_weights: needs a pass over the data before training, which is not supported yet",
        ),
        (
            "init_lora_weights: lora_ga",
            "init_lora_weights: needs a pass over the data before training, which is not supported yet",
        ),
        (
            "init_lora_weights: loftq",
            "init_lora_weights: quantizes the base model in a way of its own, which is not supported",
        ),
        (
            "loftq_config: {loftq_bits: 4}",
            "loftq_config: quantizes the base model in a way of its own, which is not supported",
        ),
    ],
)
def test_what_is_not_built_is_refused_with_the_reason(text: str, problem: str) -> None:
    assert problems_of(f"lora_config: {{{text}}}") == (f"spec.lora_config.{problem}; leave it out",)


@pytest.mark.parametrize("iterations", [1, 16])
def test_an_approximation_that_cannot_be_repeated_is_refused(iterations: int) -> None:
    [problem] = problems_of(f"lora_config: {{init_lora_weights: pissa_niter_{iterations}}}")

    assert (
        problem
        == f"spec.lora_config.init_lora_weights: {UNBUILT_INITIALISATIONS['pissa_niter_N']}; leave it out"
    )


@pytest.mark.parametrize(
    "text",
    [
        "use_qalora: false",
        "inference_mode: false",
        "megatron_core: megatron.core",
        "loftq_config: {}",
        "eva_config: null",
    ],
)
def test_pefts_own_default_may_be_written_down(text: str) -> None:
    assert spec_of(f"lora_config: {{{text}}}").lora_config == LoraConfig()
