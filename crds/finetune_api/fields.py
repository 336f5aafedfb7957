"""Field types that several models share: lenient numbers, paths, and unions that LLMForge allows."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Strict,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from finetune_api.explain import models_in

VALIDATIONS = "x-kubernetes-validations"
"""Where a schema keeps its CEL rules: what the API server checks besides types and ranges."""
OPEN = "x-kubernetes-preserve-unknown-fields"
"""Marks a schema that says nothing of what is below it."""

_BUCKETS = {"s3://BUCKET/path": r"s3://[^/]+(/.*)?", "gs://BUCKET/path": r"gs://[^/]+(/.*)?"}
_DATA_SET = {"hf://datasets/OWNER/NAME/FILE": r"hf://datasets/.+"}
_MODEL = {"hf://OWNER/NAME": r"hf://[^/]+(/[^/]+)?"}
_CLAIM = {"pvc://CLAIM/path": r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?"}
_CONFIG_MAP = {"configmap://NAME/KEY": r"configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+"}
_FILE = {"file:///path": r"file://.+"}


def scheme(path: str) -> str:
    """The scheme of a path (`s3` of `s3://bucket/key`), empty for a plain path."""
    head, separator, _ = path.partition("://")
    return head if separator else ""


class _PathForms:
    """The forms that a path may have, as a check for pydantic and as a CEL rule for the API server."""

    def __init__(self, forms: dict[str, str]) -> None:
        self._pattern = f"^({'|'.join(forms.values())})$"
        *most, last = forms
        self._message = f"must be a plain path, {', '.join(most)} or {last}"
        rule = f"!self.contains('://') || self.matches(r'{self._pattern}')"
        self.schema = {VALIDATIONS: [{"rule": rule, "message": self._message}]}

    def check(self, path: str) -> str:
        if "://" in path and not re.fullmatch(self._pattern, path):
            raise PydanticCustomError("path_form", self._message)
        return path


_DATA_FORMS = _PathForms(_BUCKETS | _DATA_SET | _CLAIM | _CONFIG_MAP | _FILE)
_MODEL_FORMS = _PathForms(_BUCKETS | _MODEL | _CLAIM | _FILE)
_STORAGE_FORMS = _PathForms(_BUCKETS | _CLAIM | _FILE)


def _number(value: object) -> object:
    # pydantic reads true as 1; a person who writes `num_devices: true` has made a mistake.
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


def _whole_or_decimal(value: object) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return "whole" if whole or (isinstance(value, str) and value.replace("_", "").isdigit()) else "decimal"


Integer = Annotated[int, BeforeValidator(_number)]
"""An integer, also written as `"8"` or `150_323_855_360`."""

Number = Annotated[float, BeforeValidator(_number)]
"""A number, also written as `1e-4`, which YAML 1.1 reads as text."""

Amount = Annotated[
    Annotated[int, Tag("whole")] | Annotated[Number, Tag("decimal")], Discriminator(_whole_or_decimal)
]
"""A number that stays an integer when it is one: bytes of memory."""

Flag = Annotated[bool, Strict()]
"""true or false, and nothing that merely resembles it."""

DataPath = Annotated[
    str,
    Field(min_length=1, max_length=4096, json_schema_extra=_DATA_FORMS.schema),
    AfterValidator(_DATA_FORMS.check),
]
"""A file of rows."""

ModelPath = Annotated[
    str,
    Field(min_length=1, max_length=4096, json_schema_extra=_MODEL_FORMS.schema),
    AfterValidator(_MODEL_FORMS.check),
]
"""A model's or an adapter's directory, or its name on the hub."""

StoragePath = Annotated[
    str,
    Field(min_length=1, max_length=4096, json_schema_extra=_STORAGE_FORMS.schema),
    AfterValidator(_STORAGE_FORMS.check),
]
"""Where runs are written."""

ShortText = Annotated[str, Field(min_length=1, max_length=256)]
LongText = Annotated[str, Field(min_length=1, max_length=4096)]
JsonObject = Annotated[dict[str, JsonValue], Field(max_length=256)]
"""An object whose keys are not typed here."""
UnreadBlock = Annotated[JsonObject, Field(json_schema_extra={OPEN: True})]
"""Settings that nothing reads. Open as a whole, since CEL does not see a map of open values."""
UnbuiltBlock = UnreadBlock
"""Settings of something that is not built yet: refused, whatever they are."""


def _without_null(value: object) -> object:
    """A value without the keys of maps whose value is null, however deep; items of lists stay."""
    match value:
        case dict():
            return {key: _without_null(part) for key, part in value.items() if part is not None}
        case list():
            return [_without_null(part) for part in value]
        case _:
            return value


class SpecModel(BaseModel):
    """Base of all spec models.

    Unknown keys are errors, a field that is null counts as absent, and the docstring after a field is its
    description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absence(cls, document: object) -> object:
        # The API server does the same. `checkpoint_every_n_epochs: null` is LLMForge's own way to write its
        # default.
        if not isinstance(document, dict):
            return document
        return {
            key: _without_null(value)
            if key in cls.model_fields and not any(models_in(cls.model_fields[key].annotation))
            else value
            for key, value in document.items()
            if value is not None or key not in cls.model_fields
        }


class HubRepository(SpecModel):
    """A model on the Hugging Face hub."""

    repo_id: ShortText
    """`organisation/name`."""


def kind_of_value(value: object) -> str | None:
    """The kind of a value, by which `one_of` chooses the member of a union; None for kinds no union has."""
    match value:
        case bool():
            return "flag"
        case int():
            return "number"
        case str():
            return "text"
        case list() | tuple():
            return "list"
        case dict() | BaseModel():
            return "object"
        case _:
            return None


def one_of(words: str) -> Discriminator:
    """Chooses the member of a union by the value's kind; other kinds are the error `must be {words}`."""
    return Discriminator(kind_of_value, custom_error_type="kind", custom_error_message=f"must be {words}")


CheckpointPath = Annotated[
    Annotated[ModelPath, Tag("text")] | Annotated[HubRepository, Tag("object")],
    one_of("a path or {repo_id: organisation/name}"),
]
"""A path, or `{repo_id: organisation/name}`, as LLMForge takes both."""

TextList = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=4096)]
TextOrList = Annotated[
    Annotated[LongText, Tag("text")] | Annotated[TextList, Tag("list")], one_of("a text or a list of texts")
]
