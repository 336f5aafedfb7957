"""Forms of names in Kubernetes: of objects, labels, annotations and resources, as the API server checks them.

Source: apimachinery's `validation.go`.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
"""A DNS subdomain, which names of objects are."""
WORD = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)"
"""What stands behind the slash of a label's name."""


class Form:
    """A validator of texts: a pattern, and what to say of a text that does not match it."""

    def __init__(self, pattern: str, words: str) -> None:
        self._pattern = pattern
        self._words = words

    def check(self, text: str) -> str:
        """The text. Raises PydanticCustomError where it has another form."""
        if not re.fullmatch(self._pattern, text):
            raise PydanticCustomError("form", "{words}", {"words": self._words})
        return text


_PREFIX = rf"({DOMAIN}/)?"
_LONGEST_KEY = 253 + 1 + 63

LabelKey = Annotated[
    str,
    Field(max_length=_LONGEST_KEY),
    AfterValidator(
        Form(rf"{_PREFIX}{WORD}", "must be a label's name, such as cloud.google.com/gke-accelerator").check
    ),
]
LabelValue = Annotated[
    str,
    Field(json_schema_extra={"maxLength": 63, "pattern": f"^{WORD}?$"}),
    AfterValidator(
        Form(
            f"{WORD}?",
            "must be a label's value: at most 63 letters, digits, `-`, `_` and `.`; numbers in quotes",
        ).check
    ),
]
AnnotationKey = Annotated[
    str,
    Field(max_length=_LONGEST_KEY),
    # Upper case passes, in the domain too.
    AfterValidator(
        Form(rf"(?i){_PREFIX}{WORD}", "must be an annotation's name, such as example.com/note").check
    ),
]
ResourceName = Annotated[
    str,
    Field(max_length=_LONGEST_KEY),
    AfterValidator(Form(rf"{DOMAIN}/{WORD}", "must be an extended resource, such as nvidia.com/gpu").check),
]
ObjectName = Annotated[
    str,
    Field(max_length=253),
    AfterValidator(
        Form(
            DOMAIN, "must be lower-case letters, digits, `-` and `.`, with a letter or digit at both ends"
        ).check
    ),
]
