from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import ClassVar

import pytest
import torch
from pyarrow import fs
from safetensors.torch import save_file
from tests.trainer.conftest import allow, deny

from finetune_api import paths
from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.storage import objects
from finetune_trainer.storage.inputs import digest
from finetune_trainer.storage.local import LocalStorage
from finetune_trainer.storage.objects import connect
from finetune_trainer.storage.open import local_path, open_input, open_storage

ROWS = b'{"messages": []}\n{"messages": [1]}\n'


def lines_of(path: str) -> list[bytes]:
    with open_input(path) as stream:
        return list(stream)


def failure_of(path: str) -> FineTuneError:
    with pytest.raises(FineTuneError) as raised, open_input(path) as stream:
        stream.read()
    return raised.value


# Inputs


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_an_input_is_read_from_this_machine(tmp_path: Path, form: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(ROWS)

    assert lines_of(form.format(tmp_path / "train.jsonl")) == ROWS.splitlines(keepends=True)


def test_a_file_url_may_have_escapes(tmp_path: Path) -> None:
    (tmp_path / "my rows.jsonl").write_bytes(ROWS)

    assert lines_of(f"file://{tmp_path}/my%20rows.jsonl") == ROWS.splitlines(keepends=True)


ODD = ["100%.jsonl", "a#b.jsonl", "a?b.jsonl", "a%20b.jsonl", "größe.jsonl"]


@pytest.mark.parametrize("name", ODD)
def test_every_name_can_be_written_as_a_file_url_and_as_a_plain_path(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(ROWS)

    assert local_path(file.as_uri()) == local_path(str(file)) == file
    assert local_path(f"file://localhost{file.as_uri().removeprefix('file://')}") == file
    assert lines_of(file.as_uri()) == ROWS.splitlines(keepends=True)
    assert open_storage(file.as_uri()).path == str(file)


def test_a_file_url_of_another_machine_is_refused() -> None:
    with pytest.raises(FineTuneError, match="must be file:///PATH, with three slashes") as raised:
        open_storage("file://rows/train.jsonl")

    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    assert str(failure_of("file://rows/train.jsonl")) == str(raised.value)


def test_a_digest_is_of_what_is_in_the_file(storage_path: str) -> None:
    storage = open_storage(storage_path)
    path = storage_path.replace("/runs", "/runs/train.jsonl")
    storage.write_text("train.jsonl", "one")
    before = digest(path)

    storage.write_text("train.jsonl", "two")

    assert before == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert digest(path) != before


def test_an_input_is_read_from_an_object_store(object_path: str) -> None:
    storage = open_storage(object_path)
    storage.write_text("train.jsonl", ROWS.decode())

    assert lines_of(object_path.replace("/runs", "/runs/train.jsonl")) == ROWS.splitlines(keepends=True)


@pytest.mark.parametrize("name", ["absent.jsonl", "train.jsonl/absent.jsonl"])
def test_an_input_that_is_missing_is_invalid_data(storage_path: str, name: str) -> None:
    open_storage(storage_path).write_text("train.jsonl", "")
    path = storage_path.replace("/runs", f"/runs/{name}")

    failure = failure_of(path)

    assert failure.failure_class == FailureClass.INVALID_DATA
    assert str(failure) == f"{path}: no such file; give the path of a file that exists"


def test_a_bucket_that_is_missing_is_invalid_data(s3_bucket: str) -> None:
    assert failure_of(f"s3://not-{s3_bucket}/train.jsonl").failure_class == FailureClass.INVALID_DATA


def test_a_directory_is_no_input(tmp_path: Path) -> None:
    failure = failure_of(str(tmp_path))

    assert failure.failure_class == FailureClass.INVALID_DATA
    assert str(failure) == f"{tmp_path}: is a directory; give the path of a file"


def test_an_input_that_the_credentials_do_not_open_is_denied(s3_bucket: str) -> None:
    open_storage(f"s3://{s3_bucket}").write_text("train.jsonl", "")
    deny(s3_bucket)

    failure = failure_of(f"s3://{s3_bucket}/train.jsonl")

    assert failure.failure_class == FailureClass.ACCESS_DENIED
    assert str(failure).startswith(f"s3://{s3_bucket}/train.jsonl: ")


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/train.jsonl",
        "gs://anonymous@bucket/train.jsonl?endpoint_override=127.0.0.1:1&scheme=http",
    ],
)
def test_a_server_that_does_not_answer_is_given_up_on_soon(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setattr(objects, "GCS_RETRY_SECONDS", 1)
    start = time.monotonic()

    failure = failure_of(path)

    assert failure.failure_class == FailureClass.STORAGE_ERROR
    assert str(failure).startswith(f"{path}: ")
    assert time.monotonic() - start < 30


def test_an_error_while_reading_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(ROWS)

    with (
        pytest.raises(FineTuneError, match=r"train\.jsonl: Input/output error"),
        open_input(f"{tmp_path}/train.jsonl"),
    ):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("pvc://claim/train.jsonl", "is mounted on a cluster only"),
        ("configmap://rows/train.jsonl", "is mounted on a cluster only"),
        ("s3://bucket/my rows.jsonl", "Cannot parse URI"),
        ("s3://bucket/rows?colour=red", "Unexpected query parameter"),
        ("s3:///train.jsonl", "has no bucket"),
        ("hf://datasets/train.jsonl", "must be hf://datasets/OWNER/NAME["),
        ("hf://datasets/owner/name/../train.jsonl", "cannot contain"),
    ],
)
def test_a_path_that_cannot_be_is_an_invalid_spec(path: str, reason: str) -> None:
    failure = failure_of(path)

    assert failure.failure_class == FailureClass.INVALID_SPEC
    assert str(failure).startswith(f"{path}: ")
    assert reason in str(failure)


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod in which a claim and a config map are mounted."""
    monkeypatch.setattr(paths, "MOUNTS", PurePosixPath(tmp_path))
    for directory in ("claims/data", "config-maps/rows"):
        (tmp_path / directory).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("pvc://data/train.jsonl", "claims/data/train.jsonl"),
        ("pvc://data/../train.jsonl", "claims/data/train.jsonl"),
        ("configmap://rows/train.jsonl", "config-maps/rows/train.jsonl"),
    ],
)
def test_an_input_is_read_from_a_mount(mounts: Path, path: str, file: str) -> None:
    (mounts / file).write_bytes(ROWS)

    assert lines_of(path) == ROWS.splitlines(keepends=True)


@pytest.mark.parametrize("path", ["pvc://data/absent.jsonl", "configmap://rows/absent.jsonl"])
@pytest.mark.usefixtures("mounts")
def test_an_input_that_is_not_in_its_mount_is_named_as_the_user_did(path: str) -> None:
    failure = failure_of(path)

    assert failure.failure_class == FailureClass.INVALID_DATA
    assert str(failure) == f"{path}: no such file; give the path of a file that exists"


@pytest.mark.usefixtures("mounts")
def test_another_claim_than_the_mounted_one_cannot_be_used() -> None:
    assert failure_of("pvc://other/train.jsonl").failure_class == FailureClass.INVALID_SPEC


def test_credentials_in_a_path_are_refused_and_not_repeated() -> None:
    failure = failure_of("s3://AKIA:hunter2@bucket/train.jsonl")

    assert failure.failure_class == FailureClass.INVALID_SPEC
    assert str(failure).startswith("s3://bucket/train.jsonl: credentials do not belong in a path")
    assert "hunter2" not in str(failure)


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one data set as the hub does."""

    ANSWERS: ClassVar[dict[str, tuple[int, dict[str, str]]]] = {
        "/datasets/owner/rows/resolve/main/train.jsonl": (200, {"ETag": '"main"', "X-Repo-Commit": "a" * 40}),
        "/datasets/owner/rows/resolve/v2/train.jsonl": (200, {"ETag": '"v2"', "X-Repo-Commit": "b" * 40}),
        "/datasets/owner/rows/resolve/main/absent.jsonl": (404, {"X-Error-Code": "EntryNotFound"}),
        "/datasets/owner/rows/resolve/v3/train.jsonl": (404, {"X-Error-Code": "RevisionNotFound"}),
        "/datasets/owner/absent/resolve/main/train.jsonl": (404, {"X-Error-Code": "RepoNotFound"}),
        "/datasets/owner/gated/resolve/main/train.jsonl": (403, {"X-Error-Code": "GatedRepo"}),
        "/datasets/owner/closed/resolve/main/train.jsonl": (403, {}),
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        status, headers = self.ANSWERS[self.path]
        body = f"{self.path}\n".encode() if status == 200 else b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's spelling)
        pass


HUB_PATHS = [
    "owner/rows/train.jsonl",
    "owner/rows@v2/train.jsonl",
    "owner/rows/absent.jsonl",
    "owner/rows@v3/train.jsonl",
    "owner/absent/train.jsonl",
    "owner/gated/train.jsonl",
    "owner/closed/train.jsonl",
]
READ_ALL = """
import json, sys
from finetune_api.failure import FineTuneError
from finetune_trainer.storage.open import open_input

for path in sys.argv[1:]:
    try:
        with open_input(f"hf://datasets/{path}") as stream:
            print(json.dumps([path, "read", stream.read().decode()]))
    except FineTuneError as error:
        print(json.dumps([path, error.failure_class, str(error)]))
"""


def read_from_hub(environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    """For each of HUB_PATHS: `("read", content)`, or the class and the message of the failure."""
    # In a process of its own, because the hub's client reads its environment when it is imported.
    command = [sys.executable, "-c", READ_ALL, *HUB_PATHS]
    process = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return {path: (outcome, text) for path, outcome, text in map(json.loads, process.stdout.splitlines())}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def hub(hub_cache: str) -> dict[str, tuple[str, str]]:
    """The results of reading from a hub that answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever).start()
        outcomes = read_from_hub(
            {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": hub_cache,
                "HF_HUB_OFFLINE": "0",
            }
        )
        server.shutdown()
    return outcomes


@pytest.mark.parametrize(
    ("path", "revision"), [("owner/rows/train.jsonl", "main"), ("owner/rows@v2/train.jsonl", "v2")]
)
def test_an_input_is_read_from_the_hub(hub: dict[str, tuple[str, str]], path: str, revision: str) -> None:
    assert hub[path] == ("read", f"/datasets/owner/rows/resolve/{revision}/train.jsonl\n")


@pytest.mark.parametrize(
    ("path", "failure_class", "reason"),
    [
        ("owner/rows/absent.jsonl", FailureClass.INVALID_DATA, "no such file"),
        ("owner/rows@v3/train.jsonl", FailureClass.INVALID_DATA, "no such file"),
        (
            "owner/absent/train.jsonl",
            FailureClass.INVALID_DATA,
            "no such data set; if it is private, HF_TOKEN must be set",
        ),
        ("owner/gated/train.jsonl", FailureClass.ACCESS_DENIED, "access must be granted on the hub first"),
        ("owner/closed/train.jsonl", FailureClass.ACCESS_DENIED, "HF_TOKEN must be one that may read it"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: dict[str, tuple[str, str]], path: str, failure_class: FailureClass, reason: str
) -> None:
    outcome, text = hub[path]

    assert outcome == failure_class
    assert text.startswith(f"hf://datasets/{path}: ")
    assert reason in text


def test_without_a_network_the_hub_is_what_was_read_from_it_before(
    hub: dict[str, tuple[str, str]], hub_cache: str
) -> None:
    offline = read_from_hub({"HF_HOME": hub_cache, "HF_HUB_OFFLINE": "1"})

    assert offline["owner/rows/train.jsonl"] == hub["owner/rows/train.jsonl"]
    outcome, text = offline["owner/gated/train.jsonl"]
    assert outcome == FailureClass.STORAGE_ERROR
    assert text.startswith("hf://datasets/owner/gated/train.jsonl: cannot reach the hub")


# Object stores


@pytest.mark.parametrize(
    ("path", "region"),
    [("s3://bucket/key", "eu-central-1"), ("s3://bucket/key?region=ap-south-1", "ap-south-1")],
    ids=["environment", "path"],
)
def test_the_region_of_a_bucket_is_told_and_not_looked_up(
    monkeypatch: pytest.MonkeyPatch, path: str, region: str
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")

    filesystem, key = connect(path)

    assert isinstance(filesystem, fs.S3FileSystem)
    assert (filesystem.region, key) == (region, "bucket/key")


def test_what_is_appended_in_an_object_store_is_stored_at_a_flush(object_path: str) -> None:
    open_storage(object_path).write_text("metrics.jsonl", "1\n")
    storage = open_storage(object_path)
    storage.append_text("metrics.jsonl", "2\n")
    before = open_storage(object_path).read_text("metrics.jsonl")

    storage.flush()

    assert (before, open_storage(object_path).read_text("metrics.jsonl")) == ("1\n", "1\n2\n")


def test_what_is_appended_in_an_object_store_is_stored_when_the_time_is_up(
    object_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(object_path)
    storage.append_text("metrics.jsonl", "1\n")
    monkeypatch.setattr(objects, "FLUSH_SECONDS", 0)

    storage.append_text("metrics.jsonl", "2\n")

    assert open_storage(object_path).read_text("metrics.jsonl") == "1\n2\n"


def test_appending_goes_on_while_an_object_store_fails(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(f"s3://{s3_bucket}/runs")
    monkeypatch.setattr(objects, "FLUSH_SECONDS", 0)
    storage.append_text("metrics.jsonl", "1\n")
    deny(s3_bucket)

    with caplog.at_level(logging.WARNING):
        storage.append_text("metrics.jsonl", "2\n")

    assert f"s3://{s3_bucket}/runs/metrics.jsonl" in caplog.text
    assert storage.read_text("metrics.jsonl") == "1\n2\n"
    with pytest.raises(FineTuneError, match=r"runs/metrics\.jsonl.*ACCESS_DENIED"):
        storage.flush()


def test_what_is_appended_first_while_an_object_store_fails_is_stored_later(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(f"s3://{s3_bucket}/runs").write_text("metrics.jsonl", "1\n")
    storage = open_storage(f"s3://{s3_bucket}/runs")
    monkeypatch.setattr(objects, "FLUSH_SECONDS", 0)
    deny(s3_bucket)
    storage.append_text("metrics.jsonl", "2\n")
    allow(s3_bucket)

    storage.append_text("metrics.jsonl", "3\n")

    assert open_storage(f"s3://{s3_bucket}/runs").read_text("metrics.jsonl") == "1\n2\n3\n"


# Every storage


@pytest.mark.parametrize("name", ["job.yaml", "rows.jsonl.gz"])
def test_a_text_is_read_as_it_was_written_last(storage_path: str, name: str) -> None:
    storage = open_storage(storage_path)
    storage.write_text(name, "first")
    storage.write_text(name, "zweitäns")

    assert storage.read_text(name) == "zweitäns"
    assert open_storage(storage_path).read_text(name) == "zweitäns"


def test_there_is_no_text_in_a_file_that_is_not_there(storage_path: str) -> None:
    assert open_storage(storage_path).read_text("job.yaml") is None


def test_appended_text_follows_what_was_there(storage_path: str) -> None:
    storage = open_storage(storage_path)
    storage.write_text("metrics.jsonl", "1\n")
    storage.append_text("metrics.jsonl", "2\n")
    storage.append_text("metrics.jsonl", "3\n")

    assert storage.read_text("metrics.jsonl") == "1\n2\n3\n"


def test_text_written_in_between_is_what_is_appended_to(storage_path: str) -> None:
    storage = open_storage(storage_path)
    storage.write_text("metrics.jsonl", "1\n")
    storage.append_text("metrics.jsonl", "2\n")
    storage.write_text("metrics.jsonl", "9\n")
    storage.append_text("metrics.jsonl", "10\n")
    storage.flush()

    assert open_storage(storage_path).read_text("metrics.jsonl") == "9\n10\n"


def test_a_directory_is_where_its_parent_says_it_is(storage_path: str) -> None:
    storage = open_storage(storage_path)
    storage.child("default").child("job").write_text("job.yaml", "text")

    assert storage.read_text("default/job/job.yaml") == "text"
    assert open_storage(storage.child("default").child("job").path).read_text("job.yaml") == "text"


def test_published_files_are_the_staged_ones(storage_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "CHUNK_BYTES", 50_000)
    storage = open_storage(storage_path)
    large = bytes(range(250)) * 401
    with storage.staging("epoch-0") as staging:
        (staging / "state").mkdir()
        (staging / "state" / "optimizer.pt").write_bytes(b"state")
        (staging / "model.safetensors").write_bytes(large)
        storage.publish(staging, "epoch-0", last="model.safetensors")

    assert storage.files() == {"epoch-0/state/optimizer.pt": 5, "epoch-0/model.safetensors": len(large)}
    assert not staging.exists()
    with storage.child("epoch-0").local_copy() as copy:
        assert (copy / "state" / "optimizer.pt").read_bytes() == b"state"
        assert (copy / "model.safetensors").read_bytes() == large


def test_a_download_replaces_the_files_that_are_there(storage_path: str, tmp_path: Path) -> None:
    storage = open_storage(storage_path)
    storage.write_text("config.json", "new")
    storage.write_text("state/step", "7")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "config.json").write_text("the old one")

    storage.write_text("optimizer.pt", "not asked for")
    storage.download(["config.json", "state/step"], tmp_path / "cache")

    assert set(LocalStorage(tmp_path / "cache").files()) == {"config.json", "state/step"}
    assert (tmp_path / "cache" / "config.json").read_text() == "new"
    assert (tmp_path / "cache" / "state" / "step").read_text() == "7"
    assert not list((tmp_path / "cache").rglob(".*"))


def test_staged_files_that_are_not_published_leave_nothing(storage_path: str) -> None:
    storage = open_storage(storage_path)
    with storage.staging("epoch-0") as staging:
        (staging / "model.safetensors").write_bytes(b"half")

    assert not staging.exists()
    assert storage.files() == {}


def test_a_deleted_directory_takes_its_files_with_it_and_no_others(storage_path: str) -> None:
    storage = open_storage(storage_path)
    for name in ("epoch-1/model", "epoch-1/state/step", "epoch-10/model", "job.yaml"):
        storage.write_text(name, "x")

    storage.delete("epoch-1")

    assert storage.files() == {"epoch-10/model": 1, "job.yaml": 1}


def test_a_file_is_deleted_alone(storage_path: str) -> None:
    storage = open_storage(storage_path)
    storage.write_text("epoch-1/model", "x")
    storage.write_text("epoch-1/complete.json", "x")

    storage.delete("epoch-1/complete.json")

    assert storage.files() == {"epoch-1/model": 1}


def test_files_are_listed_and_read_while_a_writer_publishes_and_deletes(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_text("epoch-0/complete.json", "x")

    def write() -> None:
        for _ in range(500):
            with storage.staging("epoch-1") as staging:
                (staging / "state").mkdir()
                for name in ("complete.json", "state/step"):
                    (staging / name).write_text("x")
                storage.publish(staging, "epoch-1", last="complete.json")
            storage.delete("epoch-1")

    writer = Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert storage.files()["epoch-0/complete.json"] == 1
        assert storage.read_text("epoch-1/complete.json") in ("x", None)

    assert storage.files() == {"epoch-0/complete.json": 1}


LIST_AS_NOBODY = """
import os, sys
from finetune_trainer.storage.open import open_storage

storage = open_storage(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)
print(storage.files())
"""


def test_a_directory_that_may_not_be_looked_into_is_passed_over() -> None:
    # Not below tmp_path, which is its owner's alone.
    with tempfile.TemporaryDirectory() as directory:
        storage = open_storage(directory)
        for name in ("lost+found/file", "epoch-0/complete.json"):
            storage.write_text(name, "x")
        Path(directory).chmod(0o755)
        Path(directory, "lost+found").chmod(0)

        listed = subprocess.run(
            [sys.executable, "-c", LIST_AS_NOBODY, directory], capture_output=True, text=True, check=True
        )

    assert listed.stdout == "{'epoch-0/complete.json': 1}\n"


def test_deleting_what_is_not_there_is_fine(storage_path: str) -> None:
    storage = open_storage(storage_path)

    storage.delete("epoch-1")
    storage.delete("epoch-1/complete.json")

    assert storage.files() == {}


def test_a_claim_is_shown_as_the_user_wrote_it_and_written_where_it_is_mounted(mounts: Path) -> None:
    storage = open_storage("pvc://data/runs/").child("default/qwen-3f2a")
    storage.write_text("job.yaml", "kind: FineTuneJob")

    assert storage.path == "pvc://data/runs/default/qwen-3f2a"
    assert storage.child("epoch-0").path == "pvc://data/runs/default/qwen-3f2a/epoch-0"
    assert (mounts / "claims/data/runs/default/qwen-3f2a/job.yaml").read_text() == "kind: FineTuneJob"
    assert open_storage(storage.path).read_text("job.yaml") == "kind: FineTuneJob"


@pytest.mark.usefixtures("mounts")
def test_a_whole_claim_can_be_storage() -> None:
    assert open_storage("pvc://data").child("default").path == "pvc://data/default"
    assert open_storage("pvc://data/").child("default").path == "pvc://data/default"


def test_where_a_claim_is_not_mounted_it_is_no_storage() -> None:
    with pytest.raises(
        FineTuneError,
        match=r"^pvc://claim/runs: pvc:// cannot be used here \(it is mounted on a cluster only\)",
    ):
        open_storage("pvc://claim/runs")


def test_a_relative_path_is_shown_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert open_storage("finetune-runs").path == str(tmp_path / "finetune-runs")


# Storage that fails


def test_a_text_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_text("checkpoints.json", "old")

    with (
        full_disk(),
        pytest.raises(FineTuneError, match=rf"^{tmp_path}/checkpoints\.json: File too large$") as raised,
    ):
        storage.write_text("checkpoints.json", "x" * 100_000)

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR
    assert storage.read_text("checkpoints.json") == "old"


def test_a_download_that_does_not_fit_leaves_the_old_file(
    object_path: str, tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    storage = open_storage(object_path)
    storage.write_text("model.safetensors", "x" * 100_000)
    (tmp_path / "model.safetensors").write_text("old")

    with (
        full_disk(),
        pytest.raises(FineTuneError, match=r"/runs/model\.safetensors.*: .*File too large") as raised,
    ):
        storage.download(["model.safetensors"], tmp_path)

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"model.safetensors": "old"}


def write_plainly(file: Path) -> None:
    file.write_bytes(bytes(100_000))


def write_tensors(file: Path) -> None:
    save_file({"weight": torch.zeros(100_000)}, file)


def write_state(file: Path) -> None:
    with file.open("wb") as stream:
        torch.save({"moment": torch.zeros(100_000)}, stream)


@pytest.mark.parametrize("write", [write_plainly, write_tensors, write_state])
def test_a_file_that_cannot_be_staged_is_a_storage_error_with_the_reason(
    storage_path: str, write: Callable[[Path], None], full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    storage = open_storage(storage_path)

    with full_disk(), pytest.raises(FineTuneError) as raised, storage.staging("epoch-0") as staging:
        write(staging / "file")

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR
    assert str(raised.value) == f"{staging}: File too large"
    assert not staging.exists()


def test_other_errors_while_staging_stay_what_they_are(storage_path: str) -> None:
    with pytest.raises(RuntimeError, match=r"^CUDA error$"), open_storage(storage_path).staging("epoch-0"):
        raise RuntimeError("CUDA error")


@pytest.mark.parametrize(
    "act",
    [
        lambda storage: storage.write_text("job.yaml", "text"),
        lambda storage: storage.append_text("metrics.jsonl", "1\n"),
        lambda storage: storage.staging("epoch-0").__enter__(),
    ],
    ids=["write", "append", "stage"],
)
def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, act: Callable[[object], None]) -> None:
    (tmp_path / "file").write_text("a file is no directory")

    with pytest.raises(FineTuneError, match=rf"^{tmp_path}/file.*: (Not a directory|File exists)$") as raised:
        act(open_storage(f"{tmp_path}/file/runs"))

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR


def test_a_bucket_that_is_missing_is_a_storage_error(s3_bucket: str) -> None:
    with pytest.raises(FineTuneError, match=rf"^s3://not-{s3_bucket}/job\.yaml: .*NO_SUCH_BUCKET") as raised:
        open_storage(f"s3://not-{s3_bucket}").write_text("job.yaml", "text")

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR


def test_a_bucket_that_the_credentials_do_not_open_is_denied(s3_bucket: str) -> None:
    deny(s3_bucket)

    with pytest.raises(FineTuneError, match=rf"^s3://{s3_bucket}/job\.yaml: .*ACCESS_DENIED") as raised:
        open_storage(f"s3://{s3_bucket}").write_text("job.yaml", "text")

    assert raised.value.failure_class == FailureClass.ACCESS_DENIED
