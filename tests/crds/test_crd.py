"""The CustomResourceDefinition: what the API server takes, and what it will hold FineTuneJobs to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from pydantic import JsonValue
from tests.crds.structural_schema import (
    RESERVED,
    VALIDATIONS,
    Schema,
    is_bounded,
    refusals,
    structural_problems,
    walk,
)
from tests.crds.test_manifest import EXAMPLES, specs
from tests.crds.test_status import FULL
from tests.crds.wrong_specs import RIGHT, WRONG_ACCELERATORS, WRONG_FIELDS

from finetune_api.crd import MUTABLE, crd, crd_yaml, unchecked_fields
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.rules import RULES, Rule
from finetune_api.spec import FineTuneJobSpec
from finetune_api.yaml_text import parse

FILE = Path(__file__).parents[2] / "crds/finetunejobs.yaml"
CRD: Any = crd()
[VERSION] = CRD["spec"]["versions"]
ROOT: Schema = VERSION["schema"]["openAPIV3Schema"]
SPEC: Schema = ROOT["properties"]["spec"]
STATUS: Schema = ROOT["properties"]["status"]
NODES = dict(walk(ROOT))

AT_FIRST = "oldSelf.hasValue() || "
"""What a rule begins with that is not asked again of what has not changed since."""
LARGEST_ANNOTATION = 262_144
"""Bytes; `kubectl apply` keeps the whole object in one."""


def rules_at(schema: Schema, field: str) -> list[tuple[str, str]]:
    """Rule and message of every CEL rule for a field of an object."""
    return [
        (rule["rule"], rule["message"])
        for rule in schema[VALIDATIONS]
        if rule.get("fieldPath") == f".{field}"
    ]


def keys_of(problem: str) -> list[str]:
    """The keys of the path that a problem begins with; `spec.a[b]` and `spec.a.b` name the same field."""
    return re.split(r"[.\[]", problem.partition(": ")[0].replace("]", ""))


def test_the_committed_file_is_fresh() -> None:
    assert FILE.read_text(encoding="utf-8") == crd_yaml(), "run: make generate"


def test_the_module_writes_the_file() -> None:
    written = subprocess.run(
        [sys.executable, "-m", "finetune_api.crd"], capture_output=True, check=True, timeout=60
    )

    assert written.stdout == FILE.read_bytes()


def test_the_file_is_yaml_that_every_reader_takes_the_same_way() -> None:
    assert yaml.safe_load(crd_yaml()) == parse(crd_yaml(), "crd.yaml")[0] == CRD
    assert "&id" not in crd_yaml()


def test_kubectl_apply_can_keep_it_in_its_annotation() -> None:
    assert len(json.dumps(CRD)) < LARGEST_ANNOTATION


def test_the_resource_has_its_names() -> None:
    assert CRD["metadata"]["name"] == "finetunejobs.finetune.dev"
    assert (CRD["spec"]["group"], CRD["spec"]["scope"], VERSION["name"]) == (
        "finetune.dev",
        "Namespaced",
        "v1alpha1",
    )
    assert (CRD["spec"]["names"]["kind"], CRD["spec"]["names"]["shortNames"]) == ("FineTuneJob", ["ftj"])
    assert (VERSION["served"], VERSION["storage"], VERSION["subresources"]) == (True, True, {"status": {}})


def test_every_schema_is_structural() -> None:
    problems = {path: list(structural_problems(schema)) for path, schema in NODES.items()}

    assert {path: found for path, found in problems.items() if found} == {}


def test_every_text_list_and_map_has_a_greatest_size() -> None:
    assert [path for path, schema in NODES.items() if not is_bounded(schema)] == [".metadata"]


def test_every_field_is_described_on_one_line() -> None:
    fields = {
        path: schema
        for path, schema in NODES.items()
        if path.startswith((".spec", ".status")) and not path.endswith(("]", "}"))
    }

    assert [path for path, schema in fields.items() if not schema.get("description", "").strip()] == []
    assert [path for path, schema in fields.items() if "\n" in schema["description"]] == []


def test_no_field_that_a_rule_names_is_a_word_of_cel() -> None:
    assert SPEC["properties"].keys() & RESERVED == set()


def test_columns_show_the_state_and_wide_ones_the_rest() -> None:
    columns = {column["name"]: column for column in VERSION["additionalPrinterColumns"]}

    assert [name for name, column in columns.items() if not column.get("priority")] == [
        "PHASE",
        "DEVICES",
        "ACCELERATOR",
        "EPOCH",
        "LOSS",
        "EVAL-LOSS",
        "AGE",
    ]
    assert [name for name, column in columns.items() if column.get("priority")] == [
        "MODEL",
        "STEP",
        "TOKENS/S",
        "ETA",
        "BEST",
        "ATTEMPTS",
    ]


@pytest.mark.parametrize("column", VERSION["additionalPrinterColumns"], ids=lambda column: column["name"])
def test_a_column_shows_a_field_that_there_is_as_what_it_is(column: dict[str, str]) -> None:
    path = column["jsonPath"]

    if path != ".metadata.creationTimestamp":
        assert column["type"] == NODES[path]["type"]


def test_conditions_are_a_map_by_type() -> None:
    conditions = STATUS["properties"]["conditions"]

    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == (
        "map",
        ["type"],
    )
    assert set(conditions["items"]["required"]) == {
        "type",
        "status",
        "reason",
        "message",
        "lastTransitionTime",
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.field} {rule.problem[:20]}")
def test_the_api_server_says_the_same_words_of_the_same_field(rule: Rule) -> None:
    about = SPEC if rule.block is None else SPEC["properties"][rule.block]
    assert (f"{AT_FIRST}({rule.cel})", rule.problem) in rules_at(about, rule.below_self)


@pytest.mark.parametrize(
    "words", ["an accelerator's amount must be more than 0 and at most 1", "must name one accelerator type"]
)
def test_the_api_server_says_the_same_words_of_accelerators(words: str) -> None:
    assert any(
        rule["message"].startswith(words) for rule in SPEC["properties"]["worker_resources"][VALIDATIONS]
    )
    assert any(problem.startswith(words) for _, problem in WRONG_ACCELERATORS)


@pytest.mark.parametrize("path", [".spec.model_id", ".spec.valid_path", ".spec.storage.path"])
def test_the_api_server_says_the_same_words_of_paths(path: str) -> None:
    rule = NODES[path][VALIDATIONS][0]

    assert any(
        problem.startswith(f"{path.removeprefix('.')}: {rule['message']}, is ") for _, problem in WRONG_FIELDS
    )


@pytest.mark.parametrize(
    "field", sorted(set(FineTuneJobSpec.model_fields) - set(MUTABLE) - set(unchecked_fields()))
)
def test_a_field_cannot_change_after_creation(field: str) -> None:
    unchanged = {"rule": "self == oldSelf", "message": "cannot change after creation; make a new FineTuneJob"}
    assert unchanged in SPEC["properties"][field][VALIDATIONS]


def of_presence() -> Schema:
    """The rule that no field is added or removed."""
    [rule] = ROOT[VALIDATIONS]
    return dict(rule)


@pytest.mark.parametrize("field", ["valid_path", "lora_config", "learning_rate", "cluster"])
def test_a_field_cannot_be_added_or_removed_after_creation(field: str) -> None:
    assert f"has(self.spec.{field}) == has(oldSelf.spec.{field})" in of_presence()["rule"]
    assert f"' {field}'" in of_presence()["messageExpression"]


def test_specs_are_compared_only_where_the_status_says_nothing_new() -> None:
    """Whatever a rule names costs the API server, at every write of a status too."""
    told, compared = of_presence()["rule"].split(" || self.spec ==", 1)
    assert "self.status.progress.lastUpdateTime != oldSelf.status.progress.lastUpdateTime" in told
    assert "self.status.phase != oldSelf.status.phase" in told
    assert compared.startswith(" oldSelf.spec || (")
    shown = ROOT["properties"]["status"]["properties"]
    assert "lastUpdateTime" in shown["progress"]["properties"]
    assert "phase" in shown


def test_what_cannot_change_is_asked_about_only_when_it_is_made() -> None:
    """Else the API server asks it again at every write of a status."""
    rules = [
        rule
        for path, schema in NODES.items()
        if path.startswith(".spec") and not path.startswith(tuple(f".spec.{name}" for name in MUTABLE))
        # What is in a list has no former self.
        if "[]" not in path
        for rule in schema.get(VALIDATIONS, ())
        if rule["rule"] != "self == oldSelf"
    ]

    assert len(rules) > 50
    assert all(rule["rule"].startswith(AT_FIRST) and rule["optionalOldSelf"] for rule in rules)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.field} {rule.problem[:20]}")
def test_no_rule_that_is_asked_only_then_is_about_what_may_change(rule: Rule) -> None:
    assert rule.block not in MUTABLE
    assert not any(f"self.{name}" in rule.cel for name in MUTABLE)


def test_the_status_has_one_owner() -> None:
    assert STATUS["x-kubernetes-map-type"] == "atomic"


@pytest.mark.parametrize("field", MUTABLE)
def test_what_may_change_has_no_rule_against_it(field: str) -> None:
    assert rules_at(SPEC, field) == []


def test_a_change_of_an_open_field_is_seen_by_a_rule_for_the_whole_spec() -> None:
    rule = of_presence()
    changes = "self.spec.suspend != oldSelf.spec.suspend || self.spec.run_policy != oldSelf.spec.run_policy"
    assert f"({changes}) &&" in rule["rule"]
    assert rule["fieldPath"] == ".spec"
    assert rule["message"] == "only suspend and run_policy can change after creation"


def test_the_operator_is_told_what_cel_cannot_name() -> None:
    assert unchecked_fields() == [
        "initial_base_model_ckpt_path",
        "initial_adapter_model_ckpt_path",
        "train_path",
        "sample_prompts",
    ]


@pytest.mark.parametrize(
    "field",
    [
        "num_warmup_steps",
        "min_update_steps",
        "min_num_update_steps",
        "task",
        "gradient_checkpointing",
        "no_gradient_checkpoint",
        "context_length",
        "learning_rate",
        "num_epochs",
        "train_batch_size_per_device",
        "lora_config",
        "checkpoint_every_n_epochs",
        "storage",
        "cluster",
        "worker_resources",
    ],
)
def test_no_default_hides_whether_a_field_was_set(field: str) -> None:
    assert "default" not in SPEC["properties"][field]


def test_all_other_defaults_are_those_of_the_models() -> None:
    defaults = {name: field["default"] for name, field in SPEC["properties"].items() if "default" in field}

    assert defaults == {
        "padding": "longest",
        "packing": False,
        "num_devices": 1,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
        "num_checkpoints_to_keep": 1,
        "eval_first": False,
        "dtype": "auto",
        "export_dtype": "auto",
        "parallelism": "auto",
        "suspend": False,
        "run_policy": {},
    }


def test_defaults_below_an_object_fill_it_in() -> None:
    assert {
        name: field.get("default") for name, field in SPEC["properties"]["run_policy"]["properties"].items()
    } == {
        "backoff_limit": 3,
        "active_deadline_seconds": None,
        "starting_deadline_seconds": 1800,
        "prepare_first": None,
        "ttl_seconds_after_finished": None,
    }
    assert SPEC["properties"]["lora_config"]["properties"]["target_modules"]["default"] == "all-linear"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_accepted(example: Path) -> None:
    assert list(refusals(ROOT, read_manifest(example).document | {"metadata": {}})) == []


@given(document=specs)
def test_every_right_spec_is_accepted(document: dict[str, JsonValue]) -> None:
    manifest = Manifest.model_validate({"metadata": {"name": "job"}, "spec": document})

    assert list(refusals(SPEC, manifest.document["spec"])) == []


def test_a_full_status_is_accepted() -> None:
    assert list(refusals(STATUS, json.loads(FULL.model_dump_json(by_alias=True, exclude_none=True)))) == []


LEFT_TO_RULES = {
    "model_id: https://huggingface.co/m",
    "model_id: configmap://name/key",
    "valid_path: pvc://Claim/v.jsonl",
    "valid_path: configmap://rows",
    "resume_from: hf://owner/name",
    "storage: {path: hf://owner/name}",
    "deepspeed: {config_path: 'pvc://Claim/z.json'}",
    "cluster: {worker: {resources: {requests: {memory: 16 GB}}}}",
    "cluster: {worker: {resources: {limits: {cpu: -1}}}}",
}
"""What CEL refuses, which is not run here."""
LEFT_TO_THE_OPERATOR = {
    "initial_base_model_ckpt_path: 5",
    "initial_base_model_ckpt_path: [a]",
    "initial_base_model_ckpt_path: {}",
    "initial_base_model_ckpt_path: awsv2://x",
    "train_path: [a]",
    "train_path: 5",
    "train_path: S3://bucket/t.jsonl",
    "train_path: s3:///t.jsonl",
    "train_path: hf://owner/name/t.jsonl",
    "train_path: []",
    "train_path: [{path: a, weight: 0}]",
    "train_path: [{path: a, rows: 0}]",
    "train_path: [{path: a, share: 2}]",
    "sample_prompts: What?",
    "sample_prompts: 17",
    "sample_prompts: []",
    "sample_prompts: [a, 5]",
    "lora_config: {target_modules: 5}",
    "lora_config: {target_modules: [q_proj, 5]}",
    "lora_config: {target_modules: ''}",
    "lora_config: {layers_to_transform: all}",
    "lora_config: {layers_to_transform: [0, -1]}",
    "lora_config: {trainable_token_indices: 5}",
    "cluster: {affinity: {a: .inf}}",
    "learning_rate: .nan",
}
"""What a structural schema cannot say: unions, free maps, and what is no JSON."""


@pytest.mark.parametrize(("text", "problem"), WRONG_FIELDS, ids=lambda text: text[:60])
def test_a_wrong_field_is_refused_where_a_schema_can_say_so(text: str, problem: str) -> None:
    document, _ = parse(RIGHT, "right.yaml")
    wrong, _ = parse(text, "wrong.yaml")
    refused = list(refusals(SPEC, document | wrong, "spec"))

    assert bool(refused) is (text not in LEFT_TO_RULES | LEFT_TO_THE_OPERATOR)
    if refused:
        assert keys_of(refused[0]) == keys_of(problem)
