"""A path stands for the files in a directory, those of a pattern, or what the hub has made of a data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.paths import child
from finetune_trainer.storage.inputs import digest, input_size, inputs_at
from finetune_trainer.storage.open import open_storage

# Directories and patterns, wherever they are


@pytest.fixture
def filled(storage_path: str) -> str:
    storage = open_storage(storage_path)
    for name in ("b.jsonl", "a.parquet", "c.csv", "notes.txt", ".d.jsonl", "_e.json", "deep/f.jsonl"):
        storage.write_text(name, name)
    return storage_path


def test_a_directory_stands_for_the_files_of_rows_in_it(filled: str) -> None:
    inputs = inputs_at(filled)

    assert inputs.names == ("a.parquet", "b.jsonl", "c.csv")
    assert inputs.files == tuple(child(filled, name) for name in inputs.names)
    assert input_size(filled) == sum(map(len, inputs.names))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("*.jsonl", ("b.jsonl",)), ("[ac]*", ("a.parquet", "c.csv")), ("*/*.jsonl", ("deep/f.jsonl",))],
)
def test_a_pattern_stands_for_the_files_whose_names_fit(
    filled: str, pattern: str, names: tuple[str, ...]
) -> None:
    inputs = inputs_at(child(filled, pattern))

    assert inputs.names == names
    assert inputs.files == tuple(child(filled, name) for name in names)
    assert len(digest(child(filled, pattern))) == 64


def test_a_file_stands_for_itself(filled: str) -> None:
    inputs = inputs_at(child(filled, "b.jsonl"))

    assert (inputs.files, inputs.names) == ((child(filled, "b.jsonl"),), None)


def test_where_nothing_fits_it_is_said(filled: str) -> None:
    with pytest.raises(FineTuneError, match="no such file") as raised:
        inputs_at(child(filled, "*.xml"))
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    open_storage(filled).write_text("none/notes.txt", "")
    with pytest.raises(FineTuneError, match="is a directory without files of rows"):
        inputs_at(child(filled, "none"))


def test_all_levels_are_plain_paths_alone(tmp_path: Path, object_path: str) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "a.jsonl").write_text("")

    assert inputs_at(f"{tmp_path}/**/*.jsonl").names == ("one/two/a.jsonl",)
    with pytest.raises(FineTuneError, match="is understood in plain paths only"):
        inputs_at(child(object_path, "**/a.jsonl"))


def test_a_relative_pattern_is_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)

    assert inputs_at("*.jsonl").files == ("a.jsonl",)
    assert inputs_at(f"file://{tmp_path}/*.jsonl").files == (f"file://{tmp_path}/a.jsonl",)


# The hub


class Hub(BaseHTTPRequestHandler):
    """Has the Parquet of three data sets, as far as the hub's client asks for it."""

    content: ClassVar[bytes]
    FILES: ClassVar[dict[str, list[str]]] = {
        "owner/one": [
            "default/train/0000.parquet",
            "default/train/0001.parquet",
            "default/test/0000.parquet",
        ],
        "owner/many": ["en/train/0000.parquet", "de/train/0000.parquet", "de/validation/0000.parquet"],
        "owner/large": ["default/partial-train/0000.parquet"],
        "owner/single": ["plain_text/test/0000.parquet", ".gitattributes"],
    }
    REVISION = "refs/convert/parquet"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/api").removeprefix("/datasets/")
        repository, name = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
        if repository == "owner/gated":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repository == "owner/unconverted":
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif repository not in self.FILES:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif name == f"tree/{self.REVISION}":
            tree = [
                {"type": "file", "path": file, "size": len(self.content), "oid": "0" * 40}
                for file in self.FILES[repository]
            ]
            self._answer(200, json.dumps(tree).encode())
        else:
            file = name.removeprefix(f"resolve/{self.REVISION}/")
            assert file in self.FILES[repository]
            etag = sha1(file.encode()).hexdigest()
            self._answer(200, self.content, {"ETag": f'"{etag}"', "X-Repo-Commit": "c" * 40})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's spelling)
        pass


PATHS = [
    "owner/one",
    "owner/one:test",
    "owner/one:validation",
    "owner/many",
    "owner/many:de/validation",
    "owner/large:train",
    "owner/large:partial-train",
    "owner/single",
    "owner/unconverted",
    "owner/absent",
    "owner/gated",
    "owner/one:a/b/c",
]
READ_ALL = """
import json, sys
from finetune_api.failure import FineTuneError
from finetune_trainer.data.reading import read_rows
from finetune_trainer.storage.inputs import digest, inputs_at

for path in sys.argv[1:]:
    try:
        whole = f"hf://datasets/{path}"
        rows = read_rows(whole, "instruction_tuning")
        print(json.dumps([path, "read", list(inputs_at(whole).names), len(rows)]))
    except FineTuneError as error:
        print(json.dumps([path, error.failure_class, str(error), 0]))
"""


def read_from_hub(environment: dict[str, str]) -> dict[str, tuple[str, object, int]]:
    # In a process of its own, because the hub's client reads its environment when it is imported.
    process = subprocess.run(
        [sys.executable, "-c", READ_ALL, *PATHS],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {path: (how, what, rows) for path, how, what, rows in map(json.loads, process.stdout.splitlines())}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def hub(
    hub_cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[str, object, int]]]:
    file = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    turns = [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong."}]
    parquet.write_table(pa.Table.from_pylist([{"messages": turns}] * 3), file)
    Hub.content = file.read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield read_from_hub({"HF_ENDPOINT": address, "HF_HOME": hub_cache, "HF_HUB_OFFLINE": "0"})
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "names", "rows"),
    [
        ("owner/one", ["default/train/0000.parquet", "default/train/0001.parquet"], 6),
        ("owner/one:test", ["default/test/0000.parquet"], 3),
        ("owner/many:de/validation", ["de/validation/0000.parquet"], 3),
        ("owner/large:partial-train", ["default/partial-train/0000.parquet"], 3),
        ("owner/single", ["plain_text/test/0000.parquet"], 3),
    ],
)
def test_a_data_set_is_read_as_the_parquet_that_the_hub_made_of_it(
    hub: dict[str, tuple[str, object, int]], path: str, names: list[str], rows: int
) -> None:
    assert hub[path] == ("read", names, rows)


@pytest.mark.parametrize(
    ("path", "failure_class", "what"),
    [
        ("owner/one:validation", "InvalidData", "has the splits test, train; give one, as hf://datasets/owner/one"),
        ("owner/many", "InvalidData", "has the configurations de, en; give one, as hf://datasets/owner/many:"),
        ("owner/large:train", "InvalidData", "first part of train only, which is partial-train; give"),
        ("owner/unconverted", "InvalidData", "has made no Parquet of it; give a file of it"),
        ("owner/absent", "InvalidData", "no such data set; if it is private, HF_TOKEN must be set"),
        ("owner/gated", "AccessDenied", "access must be granted on the hub first"),
        ("owner/one:a/b/c", "InvalidSpec", "must be hf://datasets/OWNER/NAME"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_have_is_explained(
    hub: dict[str, tuple[str, object, int]], path: str, failure_class: str, what: str
) -> None:
    how, words, _ = hub[path]

    assert how == failure_class
    assert str(words).startswith(f"hf://datasets/{path}: ")
    assert what in str(words)


def test_without_a_network_a_data_set_is_what_was_read_of_it_before(
    hub: dict[str, tuple[str, object, int]], hub_cache: str
) -> None:
    offline = read_from_hub({"HF_HOME": hub_cache, "HF_HUB_OFFLINE": "1"})

    assert offline["owner/one"] == hub["owner/one"]
    assert offline["owner/gated"][0] == "StorageError"
