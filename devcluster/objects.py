"""Reading what kubectl returns."""

from __future__ import annotations

from pydantic import JsonValue


def at(resource: dict[str, JsonValue] | None, *path: str) -> JsonValue:
    """What a resource holds at a path; None where there is nothing."""
    found: JsonValue = resource
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
