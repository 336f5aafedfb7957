"""Reads what a person wrote: a FineTuneJob manifest, or a bare LLMForge training YAML.

Every mistake is reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from finetune_api.changed_fields import ChangedField, with_changes
from finetune_api.consistency import contradictions, decides_nothing, early_names, warnings
from finetune_api.explain import explain
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.names import DOMAIN, AnnotationKey, LabelKey, LabelValue, ObjectName
from finetune_api.other_tools import HINTS
from finetune_api.rules import RENAMED
from finetune_api.spec import FineTuneJobSpec
from finetune_api.yaml_text import dump, parse

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LONGEST_PREFIX = 58
"""Characters of `generateName` that the API server uses: five random ones more are a label's 63."""
_MOST_ANNOTATIONS = 2**18
"""Bytes, by apimachinery's validation."""
_OTHER_METADATA = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
"""Fields of metav1.ObjectMeta that a manifest may have, and that do not matter here."""
_PARTS = ("apiVersion", "kind", "metadata", "spec", "status")


def _namespace(name: str) -> str:
    if not re.fullmatch(_LABEL, name):
        raise PydanticCustomError(
            "name", "must be lower-case letters, digits and `-`, with a letter or digit at both ends"
        )
    return name


def _name_prefix(prefix: str) -> str:
    # What follows is made by the server: a hyphen at the end is no end.
    if not re.fullmatch(DOMAIN, re.sub("(?<=.)-$", "a", prefix)):
        raise PydanticCustomError(
            "name", "must be lower-case letters, digits, `-` and `.`, with a letter or digit first"
        )
    return prefix


def _not_too_much(annotations: dict[str, str]) -> dict[str, str]:
    size = sum(len(text.encode()) for pair in annotations.items() for text in pair)
    if size > _MOST_ANNOTATIONS:
        raise PydanticCustomError(
            "size",
            "must have at most {most} bytes, names and values together, has {size}",
            {"most": _MOST_ANNOTATIONS, "size": size},
        )
    return annotations


class Metadata(BaseModel):
    """The parts of a Kubernetes object's metadata that matter here."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: Annotated[ObjectName, Field(min_length=1)]
    """Of an object with `generateName` alone, that without the hyphen: the API server adds the rest."""
    generate_name: Annotated[str, Field(max_length=253), AfterValidator(_name_prefix)] | None = Field(
        default=None, alias="generateName"
    )
    """What the name begins with that the API server makes; None where there is a name."""
    namespace: Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_namespace)] | None = None
    labels: dict[LabelKey, LabelValue] | None = None
    annotations: Annotated[dict[AnnotationKey, str], AfterValidator(_not_too_much)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, document: object) -> object:
        # As the API server has it: an empty name is none, and beside a name the prefix means nothing.
        if not isinstance(document, dict):
            return document
        document = {key: value for key, value in document.items() if key not in _OTHER_METADATA}
        prefix = document.get("generateName")
        if document.get("name") or not prefix:
            return {key: value for key, value in document.items() if key != "generateName"}
        stem = re.sub("[-.]+$", "", prefix[:_LONGEST_PREFIX]) if isinstance(prefix, str) else ""
        return {**document, "name": stem if re.fullmatch(DOMAIN, stem) else "unnamed"}

    @property
    def document(self) -> dict[str, JsonValue]:
        """The metadata as they were written."""
        made_by_the_server = {"name"} if self.generate_name is not None else set()
        return self.model_dump(exclude_none=True, by_alias=True, exclude=made_by_the_server)


class Manifest(BaseModel):
    """A FineTuneJob as it was read from a file, with the warnings about it."""

    model_config = ConfigDict(frozen=True)

    metadata: Metadata
    spec: FineTuneJobSpec
    warnings: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, JsonValue]:
        """The FineTuneJob as a Kubernetes object: only the fields that were set, numbers as numbers."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": self.metadata.document,
            "spec": self.spec.model_dump(mode="json", exclude_unset=True),
        }

    def to_yaml(self) -> str:
        """The same as a manifest for `kubectl apply`."""
        return dump(self.document)


def read_manifest(path: Path, changes: Sequence[ChangedField] = ()) -> Manifest:
    """Reads a FineTuneJob or a bare LLMForge YAML; the latter gets its name from the file's.

    `changes` are made before anything is checked. Raises FineTuneError (InvalidSpec) with every mistake: of
    YAML with its line, of the spec with its field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: is not UTF-8 text") from error
    return parse_manifest(text, str(path), changes, name=_name_from(path))


def parse_manifest(text: str, source: str, changes: Sequence[ChangedField] = (), *, name: str) -> Manifest:
    """The same for the text of a manifest; `name` is what a bare YAML is called."""
    document, remarks = parse(text, source, decides_nothing)
    if not document.keys() & {"apiVersion", "kind", "metadata", "spec"}:
        document = with_changes(document, changes)
        spec = read_spec(document)
        return Manifest(
            metadata=Metadata(name=name),
            spec=spec,
            warnings=(*remarks, *early_names(document), *warnings(spec)),
        )
    written = document.get("spec")
    if isinstance(written, dict):
        document = {**document, "spec": with_changes(written, changes)}
    return _read_object(document, remarks)


def read_spec(document: Mapping[str, JsonValue]) -> FineTuneJobSpec:
    """A validated spec, in which fields with early names have today's.

    Raises FineTuneError (InvalidSpec) with every problem, each as `spec.field: what is wrong`.
    """
    try:
        spec = FineTuneJobSpec.model_validate(document)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False) if detail["loc"]}
        problems = explain(error, FineTuneJobSpec, document, "spec", HINTS, RENAMED) + _problems(
            _what_is_right(document, wrong)
        )
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems) from error
    problems = _problems(spec)
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    if not RENAMED.keys() & spec.model_fields_set:
        return spec
    # A null beside an early name must not win over it.
    return FineTuneJobSpec.model_validate(
        {RENAMED.get(key, key): value for key, value in document.items() if value is not None}
    )


def _problems(spec: FineTuneJobSpec) -> list[str]:
    return [f"spec.{field}: {problem}" for field, problem in contradictions(spec)]


def _what_is_right(document: Mapping[str, JsonValue], wrong: set[str]) -> FineTuneJobSpec:
    """The spec without its wrong fields, so that contradictions among the others are reported too.

    A wrong field that is required, or that others refer to, is replaced by a valid placeholder.
    """
    placeholders = {
        "model_id": "model",
        "train_path": "data",
        **({"lora_config": {}} if "lora_config" in wrong else {}),
    }
    return FineTuneJobSpec.model_validate(
        placeholders | {key: value for key, value in document.items() if key not in wrong}
    )


def _read_object(document: dict[str, JsonValue], remarks: list[str]) -> Manifest:
    problems = list(_frame_problems(document))
    raw_metadata = document.get("metadata")
    raw_spec = document.get("spec")
    try:
        metadata = Metadata.model_validate(raw_metadata if isinstance(raw_metadata, dict) else {})
    except ValidationError as error:
        problems += explain(
            error, Metadata, raw_metadata if isinstance(raw_metadata, dict) else {}, "metadata"
        )
    if isinstance(raw_spec, dict):
        try:
            spec = read_spec(raw_spec)
        except FineTuneError as error:
            problems += error.problems
        problems += _quoted_numbers(raw_spec, problems)
        remarks = [*remarks, *early_names(raw_spec)]
    else:
        problems.append("spec: is required, a map of fields")
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return Manifest(metadata=metadata, spec=spec, warnings=(*remarks, *warnings(spec)))


def _quoted_numbers(document: Mapping[str, JsonValue], told: Sequence[str]) -> list[str]:
    """Numbers that are written as texts, which the API server refuses; those that are told of are left out.

    LLMForge takes them, so a bare YAML of its kind may have them.
    """
    try:
        FineTuneJobSpec.model_validate(document, strict=True)
    except ValidationError as error:
        known = {problem.partition(": ")[0] for problem in told}
        details = error.errors(include_url=False)
        lines = explain(error, FineTuneJobSpec, document, "spec")
        return [
            f"{line}; take it out of the quotes"
            for line, detail in zip(lines, details, strict=True)
            if detail["type"] in ("int_type", "float_type")
            and isinstance(detail["input"], str)
            and line.partition(": ")[0] not in known
        ]
    return []


def _frame_problems(document: dict[str, JsonValue]) -> Iterator[str]:
    """What is wrong outside `metadata` and `spec`: apiVersion, kind, unknown keys."""
    for key, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = document.get(key)
        if found != expected:
            yield f"{key}: must be {expected}, is {'missing' if found is None else found}"
    for key in document:
        if key in FineTuneJobSpec.model_fields:
            yield f"{key}: is a field of spec; indent it below spec"
        elif key not in _PARTS:
            yield f"{key}: is not a field of a {KIND}, which has apiVersion, kind, metadata and spec"


def _name_from(path: Path) -> str:
    """A legal object name from a file's name: `8xA100_80G.yaml` gives `8xa100-80g`."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    return name[:63].rstrip("-") or "finetune"
