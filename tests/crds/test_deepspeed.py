"""What a DeepSpeed file asks for, and what it is here."""

from __future__ import annotations

import json
import re

import pytest
from tests.crds.reading import spec_of

from finetune_api.deepspeed import PUBLISHED, Asked, DeepSpeedConfig, asked_sharding, read_deepspeed_config

SEVERAL = "num_devices: 8\n"
PUBLISHED_TEXT = """
{
  "fp16": {"enabled": false},
  "bf16": {"enabled": true},
  "zero_optimization": {
    "stage": 3,
    "offload_optimizer": {"device": "cpu", "pin_memory": true},
    "offload_param": {"device": "cpu", "pin_memory": true},
    "overlap_comm": true,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_max_live_parameters": 1e9,
    "gather_16bit_weights_on_model_save": true
  },
  "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto",
  "steps_per_print": 10,
  "train_batch_size": "auto",
  "train_micro_batch_size_per_gpu": "auto",
  "wall_clock_breakdown": false
}
"""
"""A file of the form of Anyscale's."""


def zero(**options: object) -> DeepSpeedConfig:
    return read_deepspeed_config(json.dumps({"zero_optimization": options}))


def asked(text: str, file: DeepSpeedConfig | None = None) -> Asked:
    return asked_sharding(spec_of(SEVERAL + text), file)


def named(name: str) -> Asked:
    return asked(f"deepspeed: {{config_path: deepspeed_configs/{name}.json}}")


def choice(asked: Asked) -> tuple[str, bool, bool | None, bool]:
    return asked.kind, asked.reshard, asked.cpu_offload, asked.within_nodes


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("zero_2", ("fsdp", False, False, False)),
        ("zero_3", ("fsdp", True, False, False)),
        ("zero_3_hpz", ("fsdp", True, False, True)),
        ("zero_3_offload_optim", ("fsdp", True, True, False)),
        ("zero_3_offload_optim+param", ("fsdp", True, True, False)),
        ("zero_3_llama_2_7b", ("fsdp", True, True, False)),
        ("zero_3_llama_2_13b", ("fsdp", True, True, False)),
        ("zero_3_llama_2_70b", ("fsdp", True, True, False)),
        ("zero_3_llama_2_70b_nvme_offload", ("fsdp", True, True, False)),
        ("zero_3_mistral_7b", ("fsdp", True, True, False)),
    ],
)
def test_a_published_file_is_known_by_its_name(name: str, taken: tuple[object, ...]) -> None:
    assert choice(named(name)) == taken
    assert name in PUBLISHED


@pytest.mark.parametrize(
    ("name", "optimizer", "parameters"),
    [
        ("zero_3", "none", "none"),
        ("zero_3_offload_optim", "cpu", "none"),
        ("zero_3_llama_2_13b", "cpu", "cpu"),
        ("zero_3_llama_2_70b", "cpu", "none"),
        ("zero_3_llama_2_70b_nvme_offload", "nvme", "none"),
    ],
)
def test_what_a_published_file_holds_is_in_its_row(name: str, optimizer: str, parameters: str) -> None:
    row = PUBLISHED[name].zero_optimization

    assert row.stage == 3
    assert row.offloaded.get("optimizer's state", "none") == optimizer
    assert row.offloaded.get("parameters", "none") == parameters


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, ("ddp", True, False, False)),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, ("ddp", True, False, False)),
        ({"stage": 1}, ("ddp", True, False, False)),
        ({"stage": 1, "offload_optimizer": {"device": "cpu"}}, ("fsdp", False, True, False)),
        ({"stage": 2}, ("fsdp", False, False, False)),
        ({"stage": 2, "cpu_offload": True}, ("fsdp", False, True, False)),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, ("fsdp", False, False, False)),
        ({"stage": 2, "zero_hpz_partition_size": 8}, ("fsdp", False, False, False)),
        ({"stage": 3, "offload_optimizer": {"device": "none"}}, ("fsdp", True, False, False)),
        ({"stage": 3, "offload_optimizer": {}, "offload_param": None}, ("fsdp", True, False, False)),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, ("fsdp", True, True, False)),
        ({"stage": 3, "cpu_offload_params": True}, ("fsdp", True, True, False)),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, ("fsdp", True, True, False)),
        ({"stage": 3, "zero_hpz_partition_size": 1}, ("fsdp", True, False, False)),
        ({"stage": 3, "zero_hpz_partition_size": 4}, ("fsdp", True, False, True)),
        ({"stage": 3, "mics_shard_size": 8}, ("fsdp", True, False, True)),
        ({"stage": 3, "sub_group_size": 1e9, "overlap_comm": True}, ("fsdp", True, False, False)),
    ],
)
def test_a_file_that_was_read_is_taken_at_its_word(
    options: dict[str, object], taken: tuple[object, ...]
) -> None:
    assert choice(asked("deepspeed: {config_path: zero_2.json}", zero(**options))) == taken


def test_a_file_is_read_whatever_else_is_in_it() -> None:
    assert read_deepspeed_config(PUBLISHED_TEXT) == PUBLISHED["zero_3_offload_optim+param"]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("my_zero_3", ("fsdp", True, None, False)),
        ("zero3_big", ("fsdp", True, None, False)),
        ("ds_z3_config", ("fsdp", True, None, False)),
        ("deepspeed-stage-2", ("fsdp", False, None, False)),
        ("ZeRO2", ("fsdp", False, None, False)),
        ("zero_1", ("ddp", True, False, False)),
        ("zero_30", ("auto", True, None, False)),
        ("quiz3", ("auto", True, None, False)),
        ("ds_config", ("auto", True, None, False)),
    ],
)
def test_of_another_name_the_stage_is_taken_and_offload_left_to_the_estimate(
    name: str, taken: tuple[object, ...]
) -> None:
    assert choice(named(name)) == taken


@pytest.mark.parametrize("path", ["zero_2", "s3://bucket/zero_3/zero_2.json", "/zero_3/zero_2.json"])
def test_the_name_is_the_last_part_of_the_path(path: str) -> None:
    assert choice(asked(f"deepspeed: {{config_path: '{path}'}}")) == ("fsdp", False, False, False)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", ("auto", True, False, False)),
        ("parallelism: ddp", ("ddp", True, False, False)),
        ("parallelism: fsdp", ("fsdp", True, False, False)),
        ("parallelism: fsdp\ncpu_offload: true", ("fsdp", True, True, False)),
        ("cpu_offload: false", ("auto", True, False, False)),
    ],
)
def test_without_a_file_the_fields_are_taken_without_a_word(text: str, taken: tuple[object, ...]) -> None:
    assert choice(asked(text)) == taken
    assert asked(text).remarks == ()


@pytest.mark.parametrize("devices", [1, 8])
def test_offload_makes_auto_fsdp_on_one_device_too(devices: int) -> None:
    asked = asked_sharding(spec_of(f"num_devices: {devices}\ncpu_offload: true"))

    assert choice(asked) == ("fsdp", True, True, False)
    assert asked.remarks == ("spec.cpu_offload: true goes with fsdp alone, so parallelism is fsdp",)


@pytest.mark.parametrize(
    ("text", "taken", "remark"),
    [
        (
            "parallelism: ddp\ndeepspeed: {config_path: zero_3_offload_optim.json}",
            ("ddp", True, False, False),
            "spec.parallelism: ddp wins over spec.deepspeed",
        ),
        (
            "parallelism: fsdp\ndeepspeed: {config_path: zero_1.json}",
            ("fsdp", True, False, False),
            "spec.parallelism: fsdp wins over spec.deepspeed",
        ),
        (
            "cpu_offload: false\ndeepspeed: {config_path: zero_3_mistral_7b.json}",
            ("fsdp", True, False, False),
            "spec.cpu_offload: false wins over spec.deepspeed",
        ),
        (
            "cpu_offload: true\ndeepspeed: {config_path: zero_3.json}",
            ("fsdp", True, True, False),
            "spec.cpu_offload: true wins over spec.deepspeed",
        ),
        (
            "cpu_offload: true\ndeepspeed: {config_path: zero_1.json}",
            ("fsdp", True, True, False),
            "spec.cpu_offload: true goes with fsdp alone, so parallelism is fsdp",
        ),
        (
            "parallelism: ddp\ndeepspeed: {config_path: zero_3_hpz.json}",
            ("ddp", True, False, False),
            "spec.parallelism: ddp wins over spec.deepspeed",
        ),
    ],
)
def test_a_field_wins_over_the_file_and_says_so(text: str, taken: tuple[object, ...], remark: str) -> None:
    assert choice(asked(text)) == taken
    assert remark in asked(text).remarks


@pytest.mark.parametrize(
    "text",
    [
        "parallelism: fsdp\ndeepspeed: {config_path: zero_2.json}",
        "cpu_offload: true\ndeepspeed: {config_path: zero_3_offload_optim.json}",
        "cpu_offload: true\ndeepspeed: {config_path: my_zero_3.json}",
        "parallelism: ddp\ndeepspeed: {config_path: ds_config.json}",
    ],
)
def test_a_field_that_says_what_the_file_says_wins_over_nothing(text: str) -> None:
    assert [remark for remark in asked(text).remarks if "wins" in remark] == []


def test_a_stage_2_file_keeps_its_way_under_an_explicit_fsdp() -> None:
    both = asked("parallelism: fsdp\ndeepspeed: {config_path: zero_2.json}")

    assert choice(both) == ("fsdp", False, False, False)


def test_one_device_has_nobody_to_share_with() -> None:
    alone = asked_sharding(spec_of("deepspeed: {config_path: zero_3.json}"))

    assert choice(alone) == ("auto", True, False, False)
    assert alone.remarks[-1] == "spec.num_devices is 1, so there is nobody to share with"


def test_one_device_offloads_where_its_file_does() -> None:
    alone = asked_sharding(spec_of("deepspeed: {config_path: zero_3_offload_optim+param.json}"))

    assert choice(alone) == ("fsdp", True, True, False)


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        (
            "zero_1",
            (
                "spec.deepspeed: zero_1.json is, by its name, ZeRO stage 1; here that is parallelism: ddp,"
                " where each device has all of the model and of the optimizer's state"
            ),
        ),
        (
            "zero_2",
            (
                "spec.deepspeed: zero_2.json is ZeRO stage 2; here that is parallelism: fsdp that keeps"
                " weights gathered from forward to backward pass"
            ),
        ),
        ("zero_3", "spec.deepspeed: zero_3.json is ZeRO stage 3; here that is parallelism: fsdp"),
        (
            "zero_3_hpz",
            (
                "spec.deepspeed: zero_3_hpz.json is ZeRO stage 3 within each node; here that is"
                " parallelism: fsdp within each node, with a copy on each node"
            ),
        ),
        (
            "zero_3_mistral_7b",
            (
                "spec.deepspeed: zero_3_mistral_7b.json is ZeRO stage 3 with optimizer's state and"
                " parameters off the device; here that is parallelism: fsdp with cpu_offload: true, weights"
                " and optimizer's state in the host's memory"
            ),
        ),
        (
            "zero_3_llama_2_70b_nvme_offload",
            (
                "spec.deepspeed: zero_3_llama_2_70b_nvme_offload.json is ZeRO stage 3 with optimizer's"
                " state off the device; here that is parallelism: fsdp with cpu_offload: true, weights and"
                " optimizer's state in the host's memory, not on NVMe"
            ),
        ),
        (
            "my_zero_3",
            (
                "spec.deepspeed: my_zero_3.json is, by its name, ZeRO stage 3; here that is parallelism:"
                " fsdp; with cpu_offload where nothing else fits, since a name may not tell"
            ),
        ),
        (
            "ds_config",
            (
                "spec.deepspeed: ds_config.json is not one of the published files, and its name says no"
                " stage of ZeRO; parallelism and cpu_offload are what fits, unless spec says them"
            ),
        ),
    ],
)
def test_it_is_said_what_a_file_is_here(name: str, remark: str) -> None:
    assert named(name).remarks == (remark,)


def test_it_is_said_that_a_file_was_read() -> None:
    [remark] = asked("deepspeed: {config_path: zero_2.json}", zero(stage=3)).remarks

    assert remark == (
        "spec.deepspeed: zero_2.json was read, and is ZeRO stage 3; here that is parallelism: fsdp"
    )


@pytest.mark.parametrize(
    ("document", "remarks"),
    [
        (
            {"gradient_clipping": 0.5},
            ["gradient_clipping of f.json has no effect: spec.max_grad_norm decides"],
        ),
        ({"gradient_clipping": 1}, []),
        ({"gradient_clipping": "auto", "gradient_accumulation_steps": "auto"}, []),
        ({"gradient_accumulation_steps": 2}, []),
        (
            {"gradient_accumulation_steps": 4},
            ["gradient_accumulation_steps of f.json has no effect: spec.gradient_accumulation_steps decides"],
        ),
        (
            {"train_micro_batch_size_per_gpu": 4},
            [
                (
                    "train_micro_batch_size_per_gpu of f.json has no effect: spec.train_batch_size_per_device"
                    " decides"
                )
            ],
        ),
        ({"train_micro_batch_size_per_gpu": 8}, []),
        ({"fp16": {"enabled": "auto"}}, []),
        (
            {"fp16": {"enabled": True}},
            ["fp16 of f.json has no effect: spec.dtype decides, and bf16 takes the place of fp16"],
        ),
        (
            {"optimizer": {"type": "Adam"}},
            ["optimizer of f.json has no effect: it is AdamW, and spec has learning_rate and weight_decay"],
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            ["scheduler of f.json has no effect: spec.lr_scheduler_type and num_warmup_steps decide"],
        ),
    ],
)
def test_what_the_spec_decides_otherwise_is_said(document: dict[str, object], remarks: list[str]) -> None:
    spec = "gradient_accumulation_steps: 2\ntrain_batch_size_per_device: 8\ndeepspeed: {config_path: f.json}"
    file = read_deepspeed_config(json.dumps(document))

    assert list(asked(spec, file).remarks[1:]) == remarks


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON: line 1, column 1: Expecting value"),
        (
            '{"a": 1,\n oops}',
            "is no JSON: line 2, column 2: Expecting property name enclosed in double quotes",
        ),
        ("[" * 100_000, "is no DeepSpeed configuration: it is nested too deeply"),
        ("[1]", "is no DeepSpeed configuration: it must be an object"),
        ('{"fp16": {}, "fp16": {}}', "fp16: is there twice; keep one"),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage: must be at most 3, is 4"),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}}',
            "zero_optimization.offload_param.device: must be 'none', 'cpu' or 'nvme', is 'disk'",
        ),
        ('{"zero_optimization": true}', "zero_optimization: must be a map of fields, is true"),
        (
            '{"zero_optimization": {"stage": "x"}, "gradient_clipping": "y"}',
            (
                "zero_optimization.stage: must be a whole number, is 'x'; gradient_clipping: must be a"
                " number, is 'y'"
            ),
        ),
        (
            '{"pipeline": {"stages": 4}, "tensor_parallel": {"autotp_size": 2}}',
            (
                "pipeline.stages: pipeline parallelism has no equivalent here, is 4; take it out, ZeRO is"
                " there; tensor_parallel.autotp_size: tensor parallelism has no equivalent here, is 2; take"
                " it out, ZeRO is there"
            ),
        ),
        (
            '{"sequence_parallel_size": 2}',
            (
                "sequence_parallel_size: sequence parallelism has no equivalent here, is 2; take it out,"
                " ZeRO is there"
            ),
        ),
    ],
)
def test_a_file_that_is_wrong_or_has_no_equivalent_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        read_deepspeed_config(text)


@pytest.mark.parametrize(
    "document",
    [
        {"pipeline": {"stages": 1}, "sequence_parallel_size": 1, "tensor_parallel": {"autotp_size": 1}},
        {"pipeline": {"stages": "auto"}},
        {"pipeline": None, "zero_optimization": {"offload_param": None}},
    ],
)
def test_what_asks_for_nothing_is_right(document: dict[str, object]) -> None:
    config = read_deepspeed_config(json.dumps(document))

    assert config.zero_optimization == DeepSpeedConfig().zero_optimization
