"""Makes pairs of answers from chat rows: the row's own answer is preferred to that of the row after it.

    python -I -S examples/make_stdlib_rows.py | python examples/make_stdlib_pairs.py > FILE

So each answer is preferred once and rejected once, and nothing but the question tells which it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable


def pairs_of(rows: Iterable[str]) -> list[str]:
    """A line of JSON for each line of `make_stdlib_rows.py`. The last row is followed by the first."""
    conversations = [json.loads(row)["messages"] for row in rows]
    after = conversations[1:] + conversations[:1]
    return [
        json.dumps({"chosen": own, "rejected": [*own[:-1], other[-1]]}) + "\n"
        for own, other in zip(conversations, after, strict=True)
    ]


if __name__ == "__main__":
    sys.stdout.writelines(pairs_of(sys.stdin))
