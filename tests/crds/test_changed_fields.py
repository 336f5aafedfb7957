"""Changes of single fields, as the command line has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue

from finetune_api.changed_fields import ChangedField, changed_field, with_changes
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_manifest

BARE = "model_id: m\ntrain_path: t.jsonl\nlora_config: {r: 8}\n"
OBJECT = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tune}
spec:
  model_id: m
  train_path: t.jsonl
  lora_config: {r: 8}
"""


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("spec.learning_rate=2e-4", ("learning_rate",), 2e-4),
        ("spec.learning_rate=2.0E-4", ("learning_rate",), 2e-4),
        ("spec.num_epochs=1_000", ("num_epochs",), 1000),
        ("spec.lora_config.r=16", ("lora_config", "r"), 16),
        ("spec.eval_first=yes", ("eval_first",), True),
        ("spec.custom_model_tag=a=b", ("custom_model_tag",), "a=b"),
        ("spec.custom_model_tag='5'", ("custom_model_tag",), "5"),
        ("spec.lora_config.target_modules=[q, v]", ("lora_config", "target_modules"), ["q", "v"]),
        ('spec.lora_config={"r": 16, "use_dora": true}', ("lora_config",), {"r": 16, "use_dora": True}),
        ("spec.valid_path=", ("valid_path",), None),
        ("spec.valid_path=null", ("valid_path",), None),
        (
            "spec.worker_resources[accelerator_type:A10G]=0.001",
            ("worker_resources", "accelerator_type:A10G"),
            0.001,
        ),
        ("spec.cluster.env[0].value=x", ("cluster", "env", "0", "value"), "x"),
    ],
)
def test_a_value_is_yaml_as_in_a_manifest(text: str, keys: tuple[str, ...], value: JsonValue) -> None:
    assert changed_field(text) == ChangedField(keys, value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "learning_rate=1e-4",
            "must be spec.FIELD=VALUE, is 'learning_rate=1e-4'; did you mean spec.learning_rate=1e-4?",
        ),
        (
            "lora_config.r=8",
            "must be spec.FIELD=VALUE, is 'lora_config.r=8'; did you mean spec.lora_config.r=8?",
        ),
        ("spec.learning_rate", "must be spec.FIELD=VALUE, is 'spec.learning_rate'"),
        ("spec=5", "must be spec.FIELD=VALUE, is 'spec=5'"),
        ("spec.=5", "must be spec.FIELD=VALUE, is 'spec.=5'"),
        ("spec.a b=5", "must be spec.FIELD=VALUE, is 'spec.a b=5'"),
        ("", "must be spec.FIELD=VALUE, is ''"),
        ("spec.lora_config={r: 8", "spec.lora_config:1:6: expected ',' or '}', but got '<stream end>'"),
        (
            "spec.lora_config={r: 8, r: 9}",
            "spec.lora_config:1: r is given twice with different values; keep one",
        ),
    ],
)
def test_a_text_of_another_form_is_told_with_what_would_be_right(text: str, problem: str) -> None:
    with pytest.raises(FineTuneError) as raised:
        changed_field(text)

    assert raised.value.problems == (problem,)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC


def changed(spec: dict[str, JsonValue], *texts: str) -> dict[str, JsonValue]:
    return with_changes(spec, [changed_field(text) for text in texts])


def test_the_last_change_of_a_field_counts_and_others_stay() -> None:
    spec: dict[str, JsonValue] = {"lora_config": {"r": 8, "bias": "all"}, "seed": 1}

    assert changed(spec, "spec.lora_config.r=16", "spec.lora_config.r=32", "spec.num_epochs=2") == {
        "lora_config": {"r": 32, "bias": "all"},
        "seed": 1,
        "num_epochs": 2,
    }
    assert spec == {"lora_config": {"r": 8, "bias": "all"}, "seed": 1}


def test_maps_on_the_way_are_made_and_items_of_lists_are_counted_from_0() -> None:
    spec: dict[str, JsonValue] = {"lora_config": None, "cluster": {"env": [{"name": "A"}, {"name": "B"}]}}

    assert changed(
        spec, "spec.lora_config.r=16", "spec.cluster.env[1].value=x", "spec.logger.provider=mlflow"
    ) == {
        "lora_config": {"r": 16},
        "cluster": {"env": [{"name": "A"}, {"name": "B", "value": "x"}]},
        "logger": {"provider": "mlflow"},
    }


def test_what_an_anchor_shares_changes_in_one_place() -> None:
    shared: dict[str, JsonValue] = {"requests": {"cpu": 1}}

    assert changed({"a": shared, "b": shared}, "spec.a.requests.cpu=2") == {
        "a": {"requests": {"cpu": 2}},
        "b": {"requests": {"cpu": 1}},
    }


def test_every_change_that_has_no_place_is_told() -> None:
    with pytest.raises(FineTuneError) as raised:
        changed(
            {"seed": 1, "cluster": {"env": []}},
            "spec.seed.x=1",
            "spec.cluster.env[0].name=A",
            "spec.cluster.env.x=A",
        )

    assert raised.value.problems == (
        "spec.seed.x: spec.seed is 1, which has no fields",
        "spec.cluster.env[0].name: spec.cluster.env is a list of 0, which has no 0",
        "spec.cluster.env.x: spec.cluster.env is a list of 0, which has no x",
    )


@pytest.mark.parametrize("text", [BARE, OBJECT])
def test_a_manifest_is_checked_with_its_changes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    changes = [changed_field(each) for each in ("spec.lora_config.r=16", "spec.learning_rate=2e-4")]

    manifest = read_manifest(file, changes)

    assert manifest.spec == read_manifest(file).spec.model_copy(
        update={"lora_config": manifest.spec.lora_config, "learning_rate": 2e-4}
    )
    assert manifest.document["spec"] == {
        "model_id": "m",
        "train_path": "t.jsonl",
        "lora_config": {"r": 16},
        "learning_rate": 2e-4,
    }


@pytest.mark.parametrize("text", [BARE, OBJECT])
def test_errors_name_the_field_that_was_changed(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    wrong = ("spec.learning_rate=fast", "spec.lora_config.rank=4", "spec.eval_path=v", "spec.valid_path=v")

    with pytest.raises(FineTuneError) as raised:
        read_manifest(file, [changed_field(each) for each in wrong])

    assert sorted(raised.value.problems) == [
        "spec.eval_path: means the same as spec.valid_path, which is set as well; keep one of them",
        "spec.learning_rate: must be a number, is 'fast'",
        "spec.lora_config.rank: is not a known field; did you mean spec.lora_config.r?",
    ]
