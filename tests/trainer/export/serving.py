"""Directories of checkpoints as a run leaves them, without weights: what servers are told needs none."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from pydantic import JsonValue
from tests.crds.structural_schema import Schema, refusals

Fields = dict[str, JsonValue]


def adapter_in(directory: Path, **fields: JsonValue) -> Path:
    """A checkpoint of a LoRA adapter, with the fields that PEFT writes for a plain one."""
    directory.mkdir(parents=True)
    plain: Fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": 8,
        "lora_alpha": 16,
        "bias": "none",
        "init_lora_weights": True,
        "use_dora": False,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {},
    }
    (directory / "adapter_config.json").write_text(json.dumps({**plain, **fields}))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def model_in(directory: Path) -> Path:
    """A whole model."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def job_in(run: Path, **spec: JsonValue) -> Path:
    """A run's job.yaml, of the job `my-job`."""
    document = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "my-job"},
        "spec": {"model_id": "org/base", "train_path": "rows.jsonl", **spec},
    }
    (run / "job.yaml").write_text("# default/my-job 0123456789\n" + yaml.safe_dump(document))
    return run


def refused(definition: Path, manifest: Fields) -> list[str]:
    """Why an API server with a CustomResourceDefinition would refuse a manifest; unknown fields too."""
    document = yaml.safe_load(definition.read_text())
    group, _, wanted = str(manifest["apiVersion"]).partition("/")
    assert (document["spec"]["group"], document["spec"]["names"]["kind"]) == (group, manifest["kind"])
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for version in document["spec"]["versions"]
        if version["name"] == wanted and version["served"]
    ]
    metadata: Schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    schema["properties"]["metadata"] = metadata
    return list(refusals(schema, manifest))
