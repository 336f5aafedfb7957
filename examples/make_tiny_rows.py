"""Makes a small chat data set of rows of very different lengths out of the Python documentation.

python examples/make_tiny_rows.py FILE ROWS [--seed N]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from pydoc_data.topics import topics

SYSTEM_MESSAGE = "You explain the Python language."


def make_tiny_rows(path: Path, rows: int, seed: int = 0) -> Path:
    """Writes `rows` chat rows as JSON lines and returns the path.

    A row has one to three question-and-answer pairs, an answer 3 to 60 words, and every fourth row a system
    message. The same arguments give the same bytes under the same version of Python.
    """
    choice = random.Random(seed)
    lines = [
        json.dumps({"messages": _messages(choice, with_system=row % 4 == 3)}) + "\n" for row in range(rows)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _messages(choice: random.Random, *, with_system: bool) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": SYSTEM_MESSAGE}] if with_system else []
    for _ in range(choice.choice((1, 1, 1, 2, 3))):
        topic = choice.choice(sorted(topics))
        words = topics[topic].split()
        length = choice.randint(3, 60)
        start = choice.randrange(max(1, len(words) - length))
        messages.append({"role": "user", "content": f"Quote the documentation of {topic}."})
        messages.append({"role": "assistant", "content": " ".join(words[start : start + length])})
    return messages


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes a small chat data set.")
    parser.add_argument("file", type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_tiny_rows(arguments.file, arguments.rows, arguments.seed))
