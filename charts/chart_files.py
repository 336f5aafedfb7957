"""Writes the files of the chart that come from others: the CRD, the schema of `config`, the values' defaults.

python charts/chart_files.py
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from finetune_api.crd import crd_yaml
from finetune_operator.settings.configuration import Configuration

CHART = Path(__file__).parent / "finetune-operator"
CRD = Path("files/finetunejobs.yaml")
VALUES = Path("values.yaml")
DEFAULTS = Path("files/values.yaml")
"""A copy of the values' defaults, which templates can read."""
VALUES_SCHEMA = Path("values.schema.json")
SAID_BY_OTHER_VALUES = ("trainer_image", "image_pull_policy", "watch_namespaces", "listen_port")
"""Fields of the configuration that are not in `config`."""
_SERVERS_RULES = "x-kubernetes-validations"
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def generated() -> dict[Path, str]:
    """The content of each generated file, by its path in the chart.

    Of the values' schema all but `config` is as it is there.
    """
    return {
        CRD: crd_yaml(),
        DEFAULTS: (CHART / VALUES).read_text(),
        VALUES_SCHEMA: values_schema((CHART / VALUES_SCHEMA).read_text()),
    }


def values_schema(text: str) -> str:
    """The schema of the values with that of the operator's configuration put in."""
    document = json.loads(text)
    configuration = Configuration.model_json_schema()
    definitions: dict[str, JsonValue] = configuration.pop("$defs")
    for name in SAID_BY_OTHER_VALUES:
        del configuration["properties"][name]
    del configuration["required"]
    configuration["title"] = "The operator's configuration: docs/configuration.md"
    document["properties"]["config"] = _plain(configuration)
    document["$defs"] = _plain(definitions)
    return json.dumps(document, indent=2) + "\n"


def _plain(schema: JsonValue) -> JsonValue:
    """The schema with bounds as JSON Schema names them.

    pydantic leaves its own names (`ge`, `lt`) where a number may be written as text. Descriptions are put on
    one line each.
    """
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        _BOUNDS.get(key, key): " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _plain(value)
        for key, value in schema.items()
        if key != _SERVERS_RULES
    }


if __name__ == "__main__":
    for path, content in generated().items():
        (CHART / path).write_text(content)
