"""Reads what a person wrote: a FineTuneJob manifest, or a bare LLMForge training YAML. Every mistake is reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, ScalarNode

from finetune_api.consistency import contradictions, warnings
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec

API_VERSION = "finetune.dev/v1alpha1"
KIND = "FineTuneJob"

_DNS_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"


class Metadata(BaseModel):
    """The parts of a Kubernetes object's metadata that matter here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{_DNS_SUBDOMAIN}$")]
    namespace: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Manifest(BaseModel):
    """A FineTuneJob as read, with what the reader had to remark."""

    model_config = ConfigDict(frozen=True)

    metadata: Metadata
    spec: FineTuneJobSpec
    warnings: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, JsonValue]:
        """The FineTuneJob as a Kubernetes object with the fields that were set, numbers written as numbers."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": self.metadata.model_dump(exclude_none=True),
            "spec": self.spec.model_dump(mode="json", exclude_unset=True),
        }

    def to_yaml(self) -> str:
        """The same as a manifest for `kubectl apply`."""
        return yaml.safe_dump(self.document, sort_keys=False, allow_unicode=True, width=120)


def read_manifest(path: Path) -> Manifest:
    """Reads a FineTuneJob or a bare LLMForge YAML; the latter gets its name from the file's.

    Raises FineTuneError (InvalidSpec) with every mistake: of YAML with its line, of the spec with its field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {reason}") from error
    document, remarks = _parse(text, str(path))
    if "kind" in document or "apiVersion" in document:
        return _read_object(document, remarks)
    return _manifest(Metadata(name=_name_from(path)), document, remarks, [])


def read_spec(document: Mapping[str, JsonValue]) -> FineTuneJobSpec:
    """A validated spec. Raises FineTuneError (InvalidSpec) with every problem, each as `spec.field: what is wrong`."""
    try:
        spec = FineTuneJobSpec.model_validate(document)
    except ValidationError as error:
        problems = [_explain(detail, FineTuneJobSpec, document) for detail in error.errors(include_url=False)]
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems, *_contradictions_of_the_rest(error, document)) from error
    problems = [f"spec.{field}: {problem}" for field, problem in contradictions(spec)]
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return spec


def _read_object(document: dict[str, JsonValue], remarks: list[str]) -> Manifest:
    problems = []
    for key, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(key) != expected:
            problems.append(f"{key}: must be {expected}, is {document.get(key)!r}")
    problems += [
        f"{key}: is not a field of a {KIND}; it has apiVersion, kind, metadata and spec"
        for key in document.keys() - {"apiVersion", "kind", "metadata", "spec", "status"}
    ]
    raw_metadata = document.get("metadata")
    metadata = None
    try:
        metadata = Metadata.model_validate(raw_metadata if isinstance(raw_metadata, dict) else {})
    except ValidationError as error:
        problems += [f"metadata.{'.'.join(map(str, detail['loc']))}: {_reason(detail)}" for detail in error.errors(include_url=False)]
    return _manifest(metadata, document.get("spec"), remarks, problems)


def _manifest(metadata: Metadata | None, raw_spec: JsonValue, remarks: list[str], problems: list[str]) -> Manifest:
    if not isinstance(raw_spec, dict):
        problems.append(f"spec: must be a map of fields, is {_kind_of(raw_spec)}")
    else:
        try:
            spec = read_spec(raw_spec)
        except FineTuneError as error:
            problems += error.problems
    if problems or metadata is None:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return Manifest(metadata=metadata, spec=spec, warnings=(*remarks, *warnings(spec)))


def _name_from(path: Path) -> str:
    """A legal object name from a file's name: `8xA100_80G.yaml` gives `8xa100-80g`."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    return name[:63].rstrip("-") or "finetune"


# YAML


def _parse(text: str, source: str) -> tuple[dict[str, JsonValue], list[str]]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, MappingNode):
            raise FineTuneError(FailureClass.INVALID_SPEC, f"{source}: must hold a {KIND} or an LLMForge YAML, holds nothing of the kind")
        errors, remarks = _duplicate_keys(node, source)
        if errors:
            raise FineTuneError(FailureClass.INVALID_SPEC, *errors)
        return cast("dict[str, JsonValue]", loader.construct_document(node)), remarks
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        several = "; give one document a file" if error.context and "single document" in error.context else ""
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: {error.problem}{several}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{source}: {error}") from error
    finally:
        loader.dispose()


def _duplicate_keys(node: Node, source: str) -> tuple[list[str], list[str]]:
    """Keys that are given twice: with two values an error, with the same one a remark (public LLMForge files have that)."""
    errors: list[str] = []
    remarks: list[str] = []
    todo = [node]
    visited: set[int] = set()
    while todo:
        current = todo.pop()
        if id(current) in visited:  # an anchor may be used many times, even inside itself
            continue
        visited.add(id(current))
        if not isinstance(current, MappingNode):
            todo += current.value if isinstance(current.value, list) else []
            continue
        seen: dict[str, Node] = {}
        for key, value in current.value:
            todo.append(value)
            if not isinstance(key, ScalarNode):
                continue
            if key.value not in seen:
                seen[key.value] = value
            elif yaml.serialize(seen[key.value]) == yaml.serialize(value):
                remarks.append(f"{source}:{key.start_mark.line + 1}: {key.value} is given twice with the same value")
            else:
                errors.append(f"{source}:{key.start_mark.line + 1}: {key.value} is given twice with different values; keep one")
    return errors, remarks


# Explanations of pydantic's errors


def _contradictions_of_the_rest(error: ValidationError, document: Mapping[str, JsonValue]) -> Iterable[str]:
    """Contradictions among the fields that are themselves right, so that a person sees all at once."""
    wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False) if detail["loc"]}
    rest = {key: value for key, value in document.items() if isinstance(key, str) and key not in wrong}
    spec = FineTuneJobSpec.model_validate({"model_id": "model", "train_path": "data", **rest})
    return [f"spec.{field}: {problem}" for field, problem in contradictions(spec)]


def _explain(detail: ErrorDetails, model: type[BaseModel], document: Mapping[str, JsonValue]) -> str:
    path, owner = _locate(detail["loc"], model, document)
    if detail["type"] == "extra_forbidden":
        return f"{path}: is not a known field{_nearest(str(detail['loc'][-1]), owner)}"
    return f"{path}: {_reason(detail)}"


def _locate(loc: tuple[int | str, ...], model: type[BaseModel], document: Mapping[str, JsonValue]) -> tuple[str, type[BaseModel]]:
    """The path of a pydantic error as a person writes it, and the model that owns its last key.

    pydantic puts the tags of unions and, for keys of maps, `[key]` into a location; neither is part of the document.
    """
    path = "spec"
    owner = model
    current: JsonValue = dict(document)
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(current, dict) and isinstance(part, str) and (part in current or (last and part in owner.model_fields)):
            field = owner.model_fields.get(part)
            path += f".{part}" if field or re.fullmatch(r"\w+", part) else f"[{part}]"
            current = current.get(part)
            if not last and field is not None:
                owner = _model_in(field.annotation) or owner
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            path += f"[{part}]"
            current = current[part]
    return path, owner


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _nearest(key: str, owner: type[BaseModel]) -> str:
    close = difflib.get_close_matches(key, owner.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _reason(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    given = detail["input"]
    match detail["type"]:
        case "missing":
            return "is required"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, is {given}"
        case "greater_than":
            return f"must be more than {context['gt']}, is {given}"
        case "less_than_equal":
            return f"must be at most {context['le']}, is {given}"
        case "less_than":
            return f"must be less than {context['lt']}, is {given}"
        case "literal_error":
            return f"must be {context['expected']}, is {given!r}"
        case "value_error":
            return str(context["error"])
        case "int_from_float" | "int_parsing" | "int_type":
            return f"must be a whole number, is {given!r}"
        case "float_parsing" | "float_type" | "finite_number":
            return f"must be a number, is {given!r}"
        case "bool_type":
            return f"must be true or false, is {given!r}"
        case "string_type":
            return f"must be a text, is {_kind_of(given)}"
        case "model_type" | "dict_type":
            return f"must be a map of fields, is {_kind_of(given)}"
        case "list_type":
            return f"must be a list, is {_kind_of(given)}"
        case _:
            return detail["msg"][0].lower() + detail["msg"][1:]


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "empty"
        case dict():
            return "a map"
        case list():
            return "a list"
        case _:
            return repr(value)
