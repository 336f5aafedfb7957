"""Makes chat rows from the docstrings of the standard library: what a function or class does, in a sentence.

    python -I -S examples/make_stdlib_rows.py > FILE

The switches keep other packages out, since some of them replace functions of the standard library. The same
version of Python gives the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from types import ModuleType

MODULES = (
    "argparse ast asyncio base64 binascii bisect builtins bz2 calendar cmath codecs collections configparser"
    " contextlib copy csv dataclasses datetime decimal difflib dis email enum fileinput fnmatch fractions"
    " ftplib functools gc getpass glob gzip hashlib heapq hmac html http imaplib importlib inspect io"
    " ipaddress itertools json keyword linecache locale logging lzma mailbox math mimetypes multiprocessing"
    " operator os os.path pathlib pickle pkgutil platform plistlib pprint queue random re sched secrets"
    " selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat statistics string"
    " struct subprocess sys sysconfig tarfile tempfile textwrap threading time timeit tokenize traceback"
    " tracemalloc types unicodedata unittest urllib.parse urllib.request uuid warnings weakref"
    " xml.etree.ElementTree zipfile zlib"
)
"""Modules that every Python from 3.11 on has and that do nothing but define things when they are imported."""

ANSWER_CHARACTERS = range(20, 161)
"""Lengths of an answer: long enough to say something, short enough to train on in seconds."""


def stdlib_rows() -> list[dict[str, list[dict[str, str]]]]:
    """Chat rows for the documented public functions and classes of `MODULES`, each answer once.

    The order is by a hash of the name: the first rows are a fair sample of all modules, always the same one,
    and what another version of Python adds or drops does not move the others.
    """
    answers: dict[str, str] = {}
    for name, answer in _documented():
        answers.setdefault(answer, name)
    named = sorted((hashlib.sha256(name.encode()).digest(), name, answer) for answer, name in answers.items())
    return [
        {
            "messages": [
                {"role": "user", "content": f"What does `{name}` do?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for _, name, answer in named
    ]


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring on one line, without markup.

    None when it is not prose, or longer or shorter than `ANSWER_CHARACTERS`.
    """
    paragraph = " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z\"'`(*])", paragraph)[0]
    sentence = re.sub(r":\w+:`~?([^`]+)`", r"\1", sentence).replace("``", "`").rstrip(":")
    if (
        not re.match(r"[A-Z][a-z]* \w", sentence)
        or "->" in sentence
        or "..." in sentence
        or len(sentence) not in ANSWER_CHARACTERS
    ):
        return None
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _documented() -> Iterator[tuple[str, str]]:
    """Names and answers, module by module."""
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        for name, member in sorted(vars(module).items()):
            if not _does_something(member) or not _is_offered(name, member, module):
                continue
            # A class without a docstring of its own shows its parent's.
            docstring = vars(member).get("__doc__") if inspect.isclass(member) else member.__doc__
            answer = first_sentence(docstring) if isinstance(docstring, str) else None
            if answer is not None:
                yield name if module_name == "builtins" else f"{module_name}.{name}", answer


def _does_something(member: object) -> bool:
    return inspect.isroutine(member) or (isinstance(member, type) and not issubclass(member, BaseException))


def _is_offered(name: str, member: object, module: ModuleType) -> bool:
    """Whether a member is the module's own and public, and not something that it has imported for itself."""
    if hasattr(module, "__all__"):
        return name in module.__all__
    return not name.startswith("_") and getattr(member, "__module__", None) in {
        module.__name__,
        f"_{module.__name__}",
    }


if __name__ == "__main__":
    for row in stdlib_rows():
        print(json.dumps(row))
