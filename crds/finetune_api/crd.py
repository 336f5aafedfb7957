"""Generates the CustomResourceDefinition of FineTuneJob from the models.

    python -m finetune_api.crd > crds/finetunejobs.yaml

The schema is structural, as the API server demands: pydantic's JSON Schema with references put in place, null
left out (in Kubernetes a field that is null is absent), and unions that cannot be typed left open, for the
operator to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, JsonValue

from finetune_api.consistency import effect
from finetune_api.fields import OPEN, VALIDATIONS
from finetune_api.manifest import GROUP, KIND, VERSION
from finetune_api.rules import RULES
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_api.yaml_text import dump

Schema = dict[str, Any]

PLURAL = "finetunejobs"
MUTABLE = ("suspend", "run_policy")
"""All else changes what is trained, and cannot change after creation."""
UNSEEN: dict[str, JsonValue] = {"observedGeneration": 0}
"""The status of a job that no operator has seen: generations begin at 1, so that kstatus, and with it Flux,
finds it in progress. Of one without any status it would say that all is done."""

_ANEW = "make a new FineTuneJob"
_NEITHER = f"fields can neither be added nor removed after creation; {_ANEW}"
_ONLY_THESE = f"only {' and '.join(MUTABLE)} can change after creation"
_IMMUTABLE = f"cannot change after creation; {_ANEW}"
_HEADER = "# Generated from the models by `python -m finetune_api.crd`; do not edit.\n"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_KEPT = (
    "type",
    "format",
    "description",
    "enum",
    "pattern",
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "required",
)
_BOUNDS = {
    "minimum": ("minimum", False),
    "ge": ("minimum", False),
    "exclusiveMinimum": ("minimum", True),
    "gt": ("minimum", True),
    "maximum": ("maximum", False),
    "le": ("maximum", False),
    "exclusiveMaximum": ("maximum", True),
    "lt": ("maximum", True),
}
"""pydantic's words for bounds: OpenAPI's word, and whether the bound itself is excluded."""
_COLUMNS = (
    ("PHASE", "string", ".status.phase"),
    ("DEVICES", "integer", ".spec.num_devices"),
    ("ACCELERATOR", "string", ".status.acceleratorType"),
    ("EPOCH", "string", ".status.progress.epochs"),
    ("LOSS", "number", ".status.progress.trainLoss"),
    ("EVAL-LOSS", "number", ".status.evaluation.loss"),
    ("AGE", "date", ".metadata.creationTimestamp"),
)
_WIDE_COLUMNS = (
    ("MODEL", "string", ".spec.model_id"),
    ("STEP", "integer", ".status.progress.step"),
    ("TOKENS/S", "number", ".status.progress.tokensPerSecond"),
    # Not a date: kubectl shows a date as the time that has passed since.
    ("ETA", "string", ".status.progress.estimatedCompletionTime"),
    ("BEST", "string", ".status.bestCheckpoint.name"),
    ("ATTEMPTS", "integer", ".status.attempts"),
)


def crd() -> dict[str, JsonValue]:
    """The CustomResourceDefinition of FineTuneJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [*_columns(_COLUMNS, 0), *_columns(_WIDE_COLUMNS, 1)],
                    "schema": {"openAPIV3Schema": _resource()},
                }
            ],
        },
    }


def crd_yaml() -> str:
    """The same as YAML."""
    return _HEADER + dump(crd())


def unchecked_fields() -> list[str]:
    """Immutable fields that CEL cannot see, because their schema is open.

    The API server refuses to change them only when neither `suspend` nor `run_policy` changes with them: the
    operator has to look.
    """
    return [
        name for name, field in _spec()["properties"].items() if name not in MUTABLE and not _visible(field)
    ]


def _columns(columns: tuple[tuple[str, str, str], ...], priority: int) -> Iterator[JsonValue]:
    for name, kind, path in columns:
        yield {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}


def _resource() -> Schema:
    text = {"type": "string", "maxLength": 253}
    return {
        "type": "object",
        "description": (
            "Fine-tunes a language model: an LLMForge training YAML under `spec`,"
            " the state of the run under `status`."
        ),
        "required": ["spec"],
        "properties": {
            "apiVersion": text,
            "kind": text,
            "metadata": {"type": "object"},
            "spec": _spec() | {VALIDATIONS: [_at_first(rule) for rule in _rules(None)]},
            "status": _model_schema(FineTuneJobStatus) | {"default": UNSEEN} | _AS_A_WHOLE,
        },
        VALIDATIONS: [_changes()],
    }


def _spec() -> Schema:
    schema = _model_schema(FineTuneJobSpec)
    for name, field in schema["properties"].items():
        field["description"] = f"{field.get('description', '')} {effect(name)}".strip()
        if rules := [*field.get(VALIDATIONS, []), *_rules(name)]:
            field[VALIDATIONS] = rules
        if name not in MUTABLE and _visible(field):
            _ask_at_first(field)
            field.setdefault(VALIDATIONS, []).append(_UNCHANGED)
    return schema


def _rules(block: str | None) -> Iterator[Schema]:
    """Those of the spec, or of one of its fields.

    A rule of the spec costs the API server more, wherever it is asked: it makes the schemas of all fields of
    an object anew for each one that a rule of the object names.
    """
    for rule in RULES:
        if rule.block == block:
            yield {"rule": rule.cel, "message": rule.problem, "fieldPath": f".{rule.below_self}"}


def _at_first(rule: Schema) -> Schema:
    """The rule, asked only where there was nothing before: not again at every write of a status."""
    return rule | {"rule": f"oldSelf.hasValue() || ({rule['rule']})", "optionalOldSelf": True}


def _ask_at_first(field: Schema) -> None:
    """Has all rules in a field that cannot change asked only where there was nothing before.

    What is in a list of the field has no former self that a rule could ask for.
    """
    if VALIDATIONS in field:
        field[VALIDATIONS] = [_at_first(rule) for rule in field[VALIDATIONS]]
    for inner in [*field.get("properties", {}).values(), field.get("additionalProperties")]:
        if isinstance(inner, dict):
            _ask_at_first(inner)


_AS_A_WHOLE = {"x-kubernetes-map-type": "atomic"}
"""The operator alone writes the status, and always all of it: who owns which of its fields is not kept."""
_UNCHANGED = {"rule": "self == oldSelf", "message": _IMMUTABLE}
"""Of a field that must not change. The API server asks it where the field was there and still is.

At the field it costs little, while a rule of the whole spec is dear (`_rules`).
"""


def _changes() -> Schema:
    """A rule of a whole job: no field of its spec is added or removed, and none changes that CEL cannot name.

    To compare two specs costs the API server more than all other rules. What writes a status cannot change
    the spec, and what writes a spec cannot change the status (Kubernetes' convention of the status
    subresource), so where a status says something new they are not compared. Of a spec that is the same it
    looks no further.
    """
    told = " || ".join(_differs(*place) for place in _MOVING)
    optional = [
        name
        for name, field in _spec()["properties"].items()
        if _UNCHANGED in field.get(VALIDATIONS, []) and "default" not in field
    ]
    same = {name: f"has(self.spec.{name}) == has(oldSelf.spec.{name})" for name in optional}
    there = " && ".join(same.values())
    changed = " + ".join(f"({is_same} ? '' : ' {name}')" for name, is_same in same.items())
    allowed = " || ".join(f"self.spec.{name} != oldSelf.spec.{name}" for name in MUTABLE)
    moved = f"has(self.status) && has(oldSelf.status) && ({told})"
    return {
        "rule": f"{moved} || self.spec == oldSelf.spec || (({allowed}) && {there})",
        "fieldPath": ".spec",
        "message": _ONLY_THESE,
        "messageExpression": f"{there} ? '{_ONLY_THESE}' : '{_NEITHER}:' + {changed}",
    }


_MOVING = (("progress", ".lastUpdateTime"), ("phase", ""))
"""What nearly every write of a status changes: a field that may be absent, and what is always in it."""


def _differs(field: str, inner: str) -> str:
    """That a field of the status is there of late, no more, or another.

    Not by optional fields (`self.?status`): of those the API server estimates no cost, and refuses the rule.
    """
    now, before = f"self.status.{field}", f"oldSelf.status.{field}"
    return f"(has({now}) && has({before}) ? {now}{inner} != {before}{inner} : has({now}) != has({before}))"


def _visible(schema: Schema) -> bool:
    """Whether a CEL rule can name a field.

    It can when the types are known all the way down a list or map; an object with open fields is fine.
    """
    inside = schema.get("items") or schema.get("additionalProperties")
    return ("type" in schema or _INT_OR_STRING in schema) and (inside is None or _visible(inside))


def _model_schema(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema()
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    schema = _typed(schema, definitions)
    structural: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if "description" in structural:
        structural["description"] = " ".join(structural["description"].split())
    if "const" in schema:
        structural["enum"] = [schema["const"]]
    for word, (bound, exclusive) in _BOUNDS.items():
        if word in schema:
            structural |= {bound: schema[word]} | ({_exclusive(bound): True} if exclusive else {})
    structural |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if "properties" in schema:
        structural["properties"] = {
            name: _structural(field, definitions) for name, field in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict) and OPEN not in schema:
        structural["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        structural["items"] = _structural(schema["items"], definitions)
    if schema.get("default") not in (None, {}, []):
        # The defaults of an object's own fields fill it in.
        structural["default"] = {} if "properties" in schema else schema["default"]
    if "type" not in structural and _INT_OR_STRING not in structural:
        structural[OPEN] = True
    return structural


def _exclusive(bound: str) -> str:
    return f"exclusive{bound.title()}"


def _typed(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """The schema with its reference put in place, and a union of one type and null as that type."""
    if "$ref" in schema:
        referred = definitions[schema["$ref"].rpartition("/")[2]]
        return _typed(referred | {key: value for key, value in schema.items() if key != "$ref"}, definitions)
    members = [member for member in schema.get("anyOf", []) if member.get("type") != "null"]
    if schema.get("oneOf") == [{"type": "integer"}, {"type": "number"}]:
        return schema | {"type": "number"}
    if len(members) == 1:
        return _typed(
            members[0] | {key: value for key, value in schema.items() if key != "anyOf"}, definitions
        )
    return schema


if __name__ == "__main__":
    print(crd_yaml(), end="")
