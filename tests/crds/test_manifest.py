"""Files that a person gives: FineTuneJobs and bare LLMForge YAML, read, refused, and written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tests.crds.wrong_specs import RIGHT

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import Manifest, read_manifest, read_spec
from finetune_api.yaml_text import parse

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: my-job
  namespace: team-a
  labels: {team: a}
spec:
  model_id: m
  train_path: t.jsonl
  lora_config: {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def read(file: Path, text: str) -> Manifest:
    file.write_text(text, encoding="utf-8")
    return read_manifest(file)


def problems_of(file: Path, text: str | bytes) -> list[str]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FineTuneError) as raised:
        read_manifest(file)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    return [problem.replace(str(file), file.name) for problem in raised.value.problems]


def test_a_finetunejob_keeps_its_name_and_place(file: Path) -> None:
    manifest = read(file, JOB)

    assert manifest.document["metadata"] == {"name": "my-job", "namespace": "team-a", "labels": {"team": "a"}}
    assert manifest.spec.model_id == "m"
    assert manifest.warnings == ()


GENERATED = JOB.replace("  name: my-job\n", "  generateName: my-job-\n")


def test_a_name_may_be_left_to_the_api_server(file: Path) -> None:
    manifest = read(file, GENERATED)

    assert manifest.metadata.name == "my-job"
    assert manifest.document["metadata"] == {
        "generateName": "my-job-",
        "namespace": "team-a",
        "labels": {"team": "a"},
    }
    assert read(file, manifest.to_yaml()) == manifest


def test_beside_a_name_a_prefix_means_nothing(file: Path) -> None:
    both = read(file, JOB.replace("  name: my-job\n", "  name: my-job\n  generateName: Other_\n"))

    assert both == read(file, JOB)


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        (
            "My_Job-",
            "must be lower-case letters, digits, `-` and `.`, with a letter or digit first, is 'My_Job-'",
        ),
        ("job.", "must be lower-case letters, digits, `-` and `.`, with a letter or digit first, is 'job.'"),
        ("8", "must be a text, is 8; put it in quotes"),
        ("x" * 254, "must have at most 253 characters"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_prefix_of_a_name_is_told(file: Path, prefix: str, problem: str) -> None:
    assert problems_of(file, GENERATED.replace("my-job-", prefix)) == [f"metadata.generateName: {problem}"]


@pytest.mark.parametrize("name", ["generateName: ''", "name: ''", "name:"])
def test_an_empty_name_is_none(file: Path, name: str) -> None:
    [problem] = problems_of(file, JOB.replace("name: my-job", name))

    assert problem.startswith("metadata.name: ")


QUOTED = {
    "num_devices: '8'": ("spec.num_devices", "8"),
    "learning_rate: '1e-4'": ("spec.learning_rate", "1e-4"),
    "min_update_steps: '1_000'": ("spec.min_update_steps", "1_000"),
    "trainer_resources: {memory: '150323855360'}": ("spec.trainer_resources.memory", "150323855360"),
    "worker_resources: {'accelerator_type:A10G': '0.001'}": (
        "spec.worker_resources[accelerator_type:A10G]",
        "0.001",
    ),
    "run_policy: {backoff_limit: '0'}": ("spec.run_policy.backoff_limit", "0"),
    "lora_config: {r: '8'}": ("spec.lora_config.r", "8"),
}
"""Numbers in quotes: in what field, and what is in the quotes."""


@pytest.mark.parametrize(("text", "told"), QUOTED.items(), ids=QUOTED)
def test_a_number_in_quotes_is_llmforges_and_not_a_finetunejobs(
    file: Path, text: str, told: tuple[str, str]
) -> None:
    assert read(file, RIGHT + text).warnings == read(file, RIGHT + text.replace("'", "")).warnings
    job = JOB.replace("  lora_config: {}\n", f"  {text}\n")

    [problem] = problems_of(file, job)

    field, given = told
    assert problem.startswith(f"{field}: must be a ")
    assert problem.endswith(f"number, is '{given}'; take it out of the quotes")


def test_a_text_that_is_no_number_is_told_once(file: Path) -> None:
    job = JOB.replace("  lora_config: {}", "  num_devices: many\n  num_epochs: '2'")

    assert problems_of(file, job) == [
        "spec.num_devices: must be a whole number, is 'many'",
        "spec.num_epochs: must be a whole number, is '2'; take it out of the quotes",
    ]


def test_a_finetunejob_that_kubectl_shows_is_read_again(file: Path) -> None:
    shown = JOB.replace(
        "  name: my-job",
        "  name: my-job\n  uid: 5f0c\n  generation: 2\n  creationTimestamp: 2026-05-04T12:00:00Z\n",
    )

    assert read(file, shown + "status: {phase: Running}\n").spec == read(file, JOB).spec


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3.yaml", "llama-3"),
        ("8xA100_80G.yml", "8xa100-80g"),
        ("My Job (final).yaml", "my-job-final"),
        ("___.yaml", "finetune"),
        ("x" * 80 + ".yaml", "x" * 63),
        ("é.yaml", "finetune"),
    ],
)
def test_a_bare_llmforge_yaml_is_called_as_its_file(tmp_path: Path, name: str, expected: str) -> None:
    assert read(tmp_path / name, RIGHT).metadata.name == expected


def test_remarks_on_keys_and_on_fields_come_together(file: Path) -> None:
    manifest = read(file, f"{RIGHT}lora_config: {{}}\noutput_dir: /mnt\ntrain_path: t.jsonl\n")

    assert [warning.replace(str(file), file.name) for warning in manifest.warnings] == [
        "job.yaml:5: train_path is given twice with the same value",
        "spec.output_dir has no effect: storage.path decides where runs are written",
    ]


@pytest.mark.parametrize("text", [RIGHT + "lora_config: {}", JOB.rstrip()])
def test_a_field_without_effect_may_be_given_twice_with_different_values(file: Path, text: str) -> None:
    *_, indented = text.splitlines()
    line = indented.replace("lora_config: {}", "dataset_size_scaling_factor: ")

    first, second = read(file, f"{text}\n{line}1000\n{line}1000000\n").warnings

    assert first.endswith(
        ": dataset_size_scaling_factor is given twice with different values; neither has an effect"
    )
    assert second == "spec.dataset_size_scaling_factor has no effect: data sets have no size limit here"


def test_no_limit_for_data_sets_is_written_as_a_number_that_json_has(file: Path) -> None:
    manifest = read(file, f"{RIGHT}lora_config: {{}}\ndataset_size_scaling_factor: .inf\n")

    assert json.dumps(manifest.document["spec"], allow_nan=False)
    assert read(file, manifest.to_yaml()).spec == manifest.spec


@pytest.mark.parametrize(
    "text", [JOB + "  model_tag: mine\n", f"{RIGHT}lora_config: {{}}\nmodel_tag: mine\n"]
)
def test_an_early_name_is_remarked_and_todays_is_written(file: Path, text: str) -> None:
    manifest = read(file, text)

    assert manifest.warnings == ("spec.model_tag is taken as custom_model_tag, its name today; write that",)
    assert manifest.to_yaml().endswith("  lora_config: {}\n  custom_model_tag: mine\n")


def test_a_byte_order_mark_does_no_harm(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + RIGHT.encode())

    assert read_manifest(file).spec.model_id == "m"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError) as raised:
        read_manifest(tmp_path / "absent.yaml")

    assert raised.value.problems == (f"{tmp_path}/absent.yaml: No such file or directory",)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError) as raised:
        read_manifest(tmp_path)

    assert raised.value.problems == (f"{tmp_path}: Is a directory",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "job.yaml: is empty"),
        (b"model_id: \xff\n", "job.yaml: is not UTF-8 text"),
        (RIGHT.encode("utf-16"), "job.yaml: is not UTF-8 text"),
        (b"- model_id: m\n", "job.yaml: must be a map of fields, is a list"),
        (b"model_id: [m\n", "job.yaml:2:1: expected ',' or ']', but got '<stream end>'"),
        (
            JOB.encode() + b"---\n" + JOB.encode(),
            "job.yaml:12:1: a second document begins here; give each a file of its own",
        ),
        (
            b"model_id: m\nmodel_id: n\n",
            "job.yaml:2: model_id is given twice with different values; keep one",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem_with_its_place(
    file: Path, content: bytes, problem: str
) -> None:
    assert problems_of(file, content) == [problem]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "finetune.dev/v1alpha1",
            "finetune.dev/v1",
            "apiVersion: must be finetune.dev/v1alpha1, is finetune.dev/v1",
        ),
        ("apiVersion: finetune.dev/v1alpha1\n", "", "apiVersion: must be finetune.dev/v1alpha1, is missing"),
        ("kind: FineTuneJob", "kind: RayJob", "kind: must be FineTuneJob, is RayJob"),
        ("kind: FineTuneJob\n", "", "kind: must be FineTuneJob, is missing"),
        ("  name: my-job\n", "", "metadata.name: is required"),
        ("name: my-job", "name: 8", "metadata.name: must be a text, is 8; put it in quotes"),
        (
            "name: my-job",
            "name: My_Job",
            (
                "metadata.name: must be lower-case letters, digits, `-` and `.`, with a letter or digit at"
                " both ends, is 'My_Job'"
            ),
        ),
        (
            "name: my-job",
            "name: job..1",
            (
                "metadata.name: must be lower-case letters, digits, `-` and `.`, with a letter or digit at"
                " both ends, is 'job..1'"
            ),
        ),
        ("name: my-job", f"name: {'x' * 254}", "metadata.name: must have at most 253 characters"),
        (
            "namespace: team-a",
            "namespace: team.a",
            (
                "metadata.namespace: must be lower-case letters, digits and `-`, with a letter or digit at"
                " both ends, is 'team.a'"
            ),
        ),
        (
            "labels: {team: a}",
            "labels: {team: 1}",
            "metadata.labels.team: must be a text, is 1; put it in quotes",
        ),
        ("labels: {team: a}", "labels: [team]", "metadata.labels: must be a map of fields, is a list"),
        (
            "labels: {team: a}",
            "label: {team: a}",
            "metadata.label: is not a known field; did you mean labels?",
        ),
        ("name: my-job", "nmae: my-job", "metadata.nmae: is not a known field; did you mean name?"),
        (
            "spec:",
            "specs:",
            "specs: is not a field of a FineTuneJob, which has apiVersion, kind, metadata and spec",
        ),
        ("  lora_config: {}\n", "lora_config: {}\n", "lora_config: is a field of spec; indent it below spec"),
        ("  lora_config: {}", "  lora_config: {r: 0}", "spec.lora_config.r: must be at least 1, is 0"),
    ],
)
def test_a_wrong_frame_is_told_by_its_key(file: Path, old: str, new: str, problem: str) -> None:
    assert problem in problems_of(file, JOB.replace(old, new))


def test_a_frame_that_is_wrong_all_over_is_told_at_once(file: Path) -> None:
    assert problems_of(file, "kind: RayJob\nmetadata: []\nspec: {num_devices: 0}\nreplicas: 2\n") == [
        "apiVersion: must be finetune.dev/v1alpha1, is missing",
        "kind: must be FineTuneJob, is RayJob",
        "replicas: is not a field of a FineTuneJob, which has apiVersion, kind, metadata and spec",
        "metadata.name: is required",
        "spec.model_id: is required",
        "spec.train_path: is required",
        "spec.num_devices: must be at least 1, is 0",
    ]


@pytest.mark.parametrize("spec", ["", "[]", "text"])
def test_a_finetunejob_needs_a_spec(file: Path, spec: str) -> None:
    text = f"apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: j}}\nspec: {spec}\n"

    assert problems_of(file, text) == ["spec: is required, a map of fields"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_the_same_when_it_is_written_and_read_again(example: Path, file: Path) -> None:
    manifest = read_manifest(example)
    again = read(file, manifest.to_yaml())

    assert (again.metadata, again.spec) == (manifest.metadata, manifest.spec)
    assert again.spec.model_fields_set == manifest.spec.model_fields_set
    assert again.to_yaml() == manifest.to_yaml()


def test_numbers_are_written_as_numbers_and_null_is_not_written(file: Path) -> None:
    text = """
learning_rate: '1e-4'
num_devices: '8'
trainer_resources: {memory: 150_323_855_360}
context_length: null
custom_model_tag: '1e5'
"""
    written = read(file, RIGHT + text).to_yaml()

    assert yaml.safe_load(written)["spec"] == {
        "model_id": "m",
        "train_path": "t.jsonl",
        "learning_rate": 0.0001,
        "num_devices": 8,
        "trainer_resources": {"memory": 150_323_855_360},
        "custom_model_tag": "1e5",
    }
    assert "custom_model_tag: '1e5'\n" in written


def test_only_what_was_set_is_written(file: Path) -> None:
    assert (
        read(file, f"{RIGHT}lora_config: {{}}\n").to_yaml()
        == "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata:\n  name: job\nspec:\n"
        "  model_id: m\n  train_path: t.jsonl\n  lora_config: {}\n"
    )


texts = st.text(min_size=1, max_size=20).filter(lambda text: "://" not in text)
plain: st.SearchStrategy[JsonValue] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
)
maps: st.SearchStrategy[JsonValue] = st.dictionaries(
    st.text(max_size=10), plain | st.lists(plain, max_size=3), max_size=3
)
fields: dict[str, st.SearchStrategy[Any]] = {
    "context_length": st.integers(8, 2**24),
    "learning_rate": st.floats(1e-12, 1),
    "num_devices": st.integers(1, 4096),
    "num_epochs": st.integers(1, 100_000),
    "task": st.sampled_from(["causal_lm", "instruction_tuning"]),
    "lr_scheduler_type": st.sampled_from(["cosine", "linear", "constant"]),
    "padding": st.sampled_from(["longest", "max_length"]),
    "gradient_checkpointing": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
    "suspend": st.booleans(),
    "custom_model_tag": texts,
    "valid_path": texts,
    "initial_base_model_ckpt_path": texts | st.fixed_dictionaries({"repo_id": texts}),
    "worker_resources": st.dictionaries(
        st.sampled_from(["memory", "CPU"]), st.integers(1, 2**53) | st.floats(0.5, 64)
    ),
    "generation_config": st.fixed_dictionaries(
        {}, optional={"stopping_sequences": st.lists(texts, max_size=3)}
    ),
    "lora_config": st.fixed_dictionaries(
        {},
        optional={
            "r": st.integers(1, 65536),
            "lora_dropout": st.floats(0, 0.9),
            "target_modules": texts | st.lists(texts, max_size=4),
            "exclude_modules": texts | st.lists(texts, max_size=4),
            "init_lora_weights": st.booleans() | st.sampled_from(["gaussian", "pissa", "olora"]),
            "trainable_token_indices": (
                st.lists(st.integers(0, 1000))
                | st.dictionaries(texts, st.lists(st.integers(0, 1000), max_size=3), max_size=2)
            ),
            "velora_config": maps,
        },
    ),
    "liger_kernel": st.fixed_dictionaries(
        {},
        optional={"enabled": st.booleans(), "kwargs": st.dictionaries(texts, st.booleans(), max_size=2)},
    ),
    "run_policy": st.fixed_dictionaries({}, optional={"backoff_limit": st.integers(0, 100)}),
    "cluster": st.fixed_dictionaries(
        {},
        optional={
            "env": st.lists(maps, max_size=2),
            "affinity": maps,
            "labels": st.dictionaries(
                st.from_regex(r"([a-z]{1,3}\.[a-z]{2}/)?[A-Za-z]{1,9}", fullmatch=True),
                st.from_regex(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,9}[A-Za-z0-9])?)?", fullmatch=True),
                max_size=2,
            ),
            "worker": st.fixed_dictionaries(
                {
                    "resources": st.fixed_dictionaries(
                        {"limits": st.dictionaries(texts, st.integers(0, 99) | st.just("500m"), max_size=2)}
                    )
                }
            ),
        },
    ),
}
specs = st.fixed_dictionaries({"model_id": texts, "train_path": texts}, optional=fields)


def without_null(value: JsonValue) -> JsonValue:
    """Without the keys of maps that are null, which is how absence is written."""
    match value:
        case dict():
            return {key: without_null(part) for key, part in value.items() if part is not None}
        case list():
            return [without_null(part) for part in value]
        case _:
            return value


@given(document=specs)
def test_every_spec_is_the_same_when_it_is_written_and_read_again(document: dict[str, JsonValue]) -> None:
    spec = read_spec(document)
    manifest = Manifest.model_validate({"metadata": {"name": "job"}, "spec": spec})
    written, _ = parse(manifest.to_yaml(), "job.yaml")

    assert written["spec"] == without_null(document)
    assert read_spec(document) == spec
