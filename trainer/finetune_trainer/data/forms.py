"""Tells the form of a row by its keys, and gives its values by the names of the form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.row_forms import FORMS, TEXT, Form
from finetune_trainer.data.objects import RowError, keys_of

IMAGES = ("image", "images")


@dataclass(frozen=True, slots=True)
class Fields:
    """What a row says, by the names of its form's keys."""

    form: Form
    values: Mapping[str, object]
    """Without those that are null."""
    columns: Mapping[str, str]
    """What the row itself calls each of them."""
    ignored: list[str]
    """Other keys of the row."""


def fields_of(document: dict[str, object], columns: Mapping[str, str]) -> Fields:
    """The form of a row and its values. `columns` are the row's own names of keys, for those that have one.

    Raises RowError where it has no form that is known, several, or images.
    """
    named = renamed(document, columns)
    images = [key for key in IMAGES if named.get(key) not in (None, "", [])]
    if images:
        raise RowError(*(f"{key}: images are not supported; leave such rows out" for key in images))
    form = _form(named, document, columns)
    own = {key: columns.get(key, key) for key in form.keys if named.get(key) is not None}
    # A column stays ignored under its own name, also where another one was given its name.
    ignored = [key for key in document if key not in own.values() and key not in form_keys(form, columns)]
    return Fields(form, {key: named[key] for key in own}, own, ignored)


def form_keys(form: Form, columns: Mapping[str, str]) -> set[str]:
    """What rows call the keys of a form."""
    return {columns.get(key, key) for key in form.keys}


def renamed(document: dict[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """A row by the names of forms' keys; one that is given to another column is not itself."""
    taken = set(columns.values())
    named = {key: value for key, value in document.items() if key not in columns and key not in taken}
    return named | {key: document[column] for key, column in columns.items() if column in document}


def _form(named: dict[str, object], document: dict[str, object], columns: Mapping[str, str]) -> Form:
    asked = [form for form in FORMS if any(key in columns for key in form.needed)]
    if asked:
        form = asked[0]
        missing = [key for key in form.needed if named.get(key) is None]
        if missing:
            raise RowError(*(_missing(key, document, columns) for key in missing))
        return form
    found = [form for form in FORMS if all(named.get(key) is not None for key in form.needed)]
    # Data sets of conversations and instructions often have them written out besides, as `text`.
    found = [form for form in found if form is not TEXT] or found
    if len(found) == 1:
        return found[0]
    if not found:
        # `messages: null` and the like are told by what reads them.
        present = [form for form in FORMS if all(key in named for key in form.needed)]
        if len(present) == 1:
            raise RowError(
                *(f"{key}: is null; give it a value" for key in present[0].needed if named[key] is None)
            )
        known = ", ".join(map(str, FORMS[1:-1]))
        raise RowError(
            f"messages: is missing; the row has {keys_of(document)}, and known besides are {known} or"
            f" {FORMS[-1]}; where yours have other names, give them in spec.data_columns"
        )
    has = "; ".join(str(form) for form in found)
    first = found[0]
    example = ", ".join(f"{key}: {key}" for key in first.needed)
    raise RowError(
        f"has the keys of several forms ({has}), and one of them is to be read; name its columns in"
        f" spec.data_columns, as {{{example}}}"
    )


def _missing(key: str, document: dict[str, object], columns: Mapping[str, str]) -> str:
    column = columns.get(key, key)
    asked = f" (spec.data_columns.{key})" if key in columns else ""
    state = "is null" if column in document else "is missing"
    return f"{column}: {state}{asked}; the row has {keys_of(document)}"
