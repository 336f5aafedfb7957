"""What Kubernetes asks of a CRD's schema, and how it checks objects against it; without CEL.

Sources: `apiserver/schema/validation.go` and `apis/apiextensions/validation/validation.go` of
k8s.io/apiextensions-apiserver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

INT_OR_STRING = "x-kubernetes-int-or-string"
OPEN = "x-kubernetes-preserve-unknown-fields"
VALIDATIONS = "x-kubernetes-validations"

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
KEYS = {
    "type",
    "format",
    "description",
    "default",
    "enum",
    "pattern",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "maximum",
    "minimum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    *(INT_OR_STRING, OPEN, VALIDATIONS),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"),
}
"""Keys of JSONSchemaProps that a structural schema may have, without `anyOf` and others that combine."""
RESERVED = {
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
}
"""Words that CEL does not take for the name of a field."""


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """A schema and all below it, with their paths: `.spec.cluster.env[]`, `.spec.worker_resources{}`."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def structural_problems(schema: Schema) -> Iterator[str]:
    """Why the API server would refuse one node of a schema."""
    yield from (f"has {key}" for key in schema.keys() - KEYS)
    if "type" not in schema and INT_OR_STRING not in schema and OPEN not in schema:
        yield "has no type"
    if schema.get("type", "object") not in TYPES:
        yield f"has the type {schema['type']}"
    if schema.get("type") == "array" and "items" not in schema:
        yield "is a list of nothing"
    if {"properties", "additionalProperties"} <= schema.keys():
        yield "is both an object and a map"
    for key in ("properties", "additionalProperties", "required"):
        if key in schema and schema.get("type") != "object":
            yield f"has {key} and is no object"
    if not set(schema.get("required", ())) <= schema.get("properties", {}).keys():
        yield "requires a field that it does not have"
    for bound in ("Maximum", "Minimum"):
        if schema.get(f"exclusive{bound}", True) is not True or (
            f"exclusive{bound}" in schema and bound.lower() not in schema
        ):
            yield f"has an exclusive{bound} without a {bound.lower()}"
    if "default" in schema:
        yield from (f"has a default that {problem}" for problem in refusals(schema, schema["default"]))
    yield from _rule_problems(schema)


def _rule_problems(schema: Schema) -> Iterator[str]:
    for rule in schema.get(VALIDATIONS, ()):
        if not rule["rule"].strip() or not rule["message"].strip() or "\n" in rule["message"]:
            yield "has a rule without a text of one line"
        if "\\" in re.sub(r"r'[^']*'", "", rule["rule"]):
            yield "has a rule with an escape that CEL does not know"
        if rule.keys() - {"rule", "message", "messageExpression", "fieldPath", "optionalOldSelf"}:
            yield "has a rule with unknown keys"
        if "fieldPath" in rule and rule["fieldPath"] not in dict(walk(schema)):
            yield f"has a rule for {rule['fieldPath']}, which is not there"


def is_bounded(schema: Schema) -> bool:
    """Whether a text, list or map has a greatest size, without which CEL costs cannot be estimated."""
    match schema.get("type"):
        case "string":
            return "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time"
        case "array":
            return "maxItems" in schema
        case "object":
            return "properties" in schema or "maxProperties" in schema
        case _:
            return INT_OR_STRING not in schema or "maxLength" in schema


def refusals(schema: Schema, value: object, path: str = "") -> Iterator[str]:
    """Why the API server would refuse a value, `path: reason` each; unknown fields too, as by kubectl."""
    if INT_OR_STRING in schema:
        if not isinstance(value, int | str) or isinstance(value, bool):
            yield f"{path}: is neither a whole number nor a text"
        return
    if "enum" in schema and not any(
        value == choice and type(value) is type(choice) for choice in schema["enum"]
    ):
        yield f"{path}: is none of {schema['enum']}"
    if "type" not in schema:
        return
    if not isinstance(value, TYPES[schema["type"]]) or (
        isinstance(value, bool) and schema["type"] != "boolean"
    ):
        yield f"{path}: is not of type {schema['type']}"
        return
    yield from _out_of_bounds(schema, value, path)
    if isinstance(value, dict):
        yield from (
            f"{path}.{name}: is required" for name in schema.get("required", ()) if value.get(name) is None
        )
        for name, part in value.items():
            below = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if below is None and OPEN not in schema:
                yield f"{path}.{name}: is unknown"
            elif below is not None and part is not None:
                yield from refusals(below, part, f"{path}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from refusals(schema["items"], part, f"{path}[{index}]")


def _out_of_bounds(schema: Schema, value: object, path: str) -> Iterator[str]:
    if isinstance(value, int | float):
        if "minimum" in schema and (
            value < schema["minimum"] or (schema.get("exclusiveMinimum") and value == schema["minimum"])
        ):
            yield f"{path}: is too small"
        if "maximum" in schema and (
            value > schema["maximum"] or (schema.get("exclusiveMaximum") and value == schema["maximum"])
        ):
            yield f"{path}: is too large"
    for kind, size in ((str, "Length"), (list, "Items"), (dict, "Properties")):
        if isinstance(value, kind) and not schema.get(f"min{size}", 0) <= len(value) <= schema.get(
            f"max{size}", len(value)
        ):
            yield f"{path}: is too short or too long"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{path}: does not match {schema['pattern']}"
