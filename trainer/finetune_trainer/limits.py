"""What this process may use of the machine, by the system and by its container's control group.

Sources: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst of Linux.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""A container sees its own control group there, of version 2 or 1."""
MEMORY = Path("/proc/meminfo")
_OF_MEMORY = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Of either version, a group's files of its limit, of what it uses and of statistics, and what these call the
memory of files that nobody reads."""


def usable_processors(groups: Path = GROUPS) -> int:
    """The processors that this process may use: those it may run on, and no more than its container gets."""
    processors = len(os.sched_getaffinity(0))
    try:
        # `200000 100000` is two.
        quota, period = (groups / "cpu.max").read_text().split()
        return max(1, min(processors, round(int(quota) / int(period))))
    except (OSError, ValueError):  # `max` is no limit
        return processors


def usable_memory(groups: Path = GROUPS) -> int:
    """Bytes of the host's memory that this process may use at most."""
    limits = [_number(groups / limit) for limit, *_ in _OF_MEMORY]
    all_of_it = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([all_of_it, *(limit for limit in limits if limit is not None)])


def free_memory(memory: Path = MEMORY, groups: Path = GROUPS) -> int | None:
    """Bytes that this process can still take of the host's memory; None if unknown.

    What a group keeps of files that nobody reads is free.
    """
    found = [_available(memory)]
    for limit, used, statistics, given_back in _OF_MEMORY:
        numbers = [_number(groups / limit), _number(groups / used)]
        if numbers[0] is not None and numbers[1] is not None:
            found.append(numbers[0] - numbers[1] + (_table(groups / statistics).get(given_back) or 0))
    known = [each for each in found if each is not None]
    return max(0, min(known)) if known else None


def _available(memory: Path) -> int | None:
    kibibytes = _table(memory).get("MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _table(file: Path) -> Mapping[str, int]:
    """The names and numbers at the beginning of a file's lines; empty where it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # `max` is no limit
        return None
