"""Makes rows for a classifier: a sentence of the standard library's documentation, and what it is about.

    python -I -S examples/make_stdlib_topics.py > FILE

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

MODULES = {
    "asyncio": "asyncio asyncio.base_events asyncio.events asyncio.queues asyncio.streams asyncio.tasks",
    "dates": "calendar datetime",
    "decimal": "decimal",
    "email": "email.header email.message email.mime.text email.parser email.policy imaplib mailbox smtplib",
    "files": "glob os os.path pathlib shutil stat tempfile",
    "logging": "logging logging.config logging.handlers",
    "maths": "cmath fractions math random statistics",
    "network": "ipaddress selectors socket socketserver ssl",
    "processes": "multiprocessing.managers multiprocessing.pool multiprocessing.process subprocess threading",
    "tests": "doctest unittest unittest.case unittest.mock",
    "web": "ftplib html.parser http.client http.cookiejar http.server urllib.parse urllib.request",
    "xml": "xml.dom.minidom xml.etree.ElementTree xml.sax.handler xml.sax.xmlreader",
}
"""The classes, and the modules of each, which every Python from 3.11 on has."""

LABELS = tuple(f"[[{name}]]" for name in MODULES)
QUESTION = "Which part of the standard library is this about?"
CHARACTERS = range(25, 241)


def topic_rows() -> list[dict[str, list[dict[str, str]]]]:
    """Rows for the first paragraphs of the documented functions, classes and methods of `MODULES`, each once.

    The order is by a hash of the paragraph: the first rows are a fair sample, always the same one.
    """
    found: dict[str, str] = {}
    for name, modules in MODULES.items():
        for module in modules.split():
            for paragraph in _paragraphs(importlib.import_module(module)):
                found.setdefault(paragraph, name)
    ordered = sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    return [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTION} {paragraph}"},
                {"role": "assistant", "content": f"[[{name}]]"},
            ]
        }
        for paragraph, name in ordered
    ]


def _paragraphs(module: ModuleType) -> Iterator[str]:
    for member in vars(module).values():
        if getattr(member, "__module__", None) != module.__name__:
            continue
        for documented in (member, *(vars(member).values() if inspect.isclass(member) else ())):
            text = getattr(documented, "__doc__", None)
            if isinstance(text, str):
                paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
                if len(paragraph) in CHARACTERS and re.match(r"[A-Z][a-z]* \w", paragraph):
                    yield paragraph


if __name__ == "__main__":
    for row in topic_rows():
        print(json.dumps(row))
