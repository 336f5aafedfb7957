"""Storage for tests: a directory, local servers of S3 and GCS, and a disk that is full."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from uuid import uuid4

import boto3
import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with serving("moto.server", "-H", "127.0.0.1", "-p") as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def gs_port() -> Iterator[int]:
    with serving(
        "gcp_storage_emulator", "start", "--in-memory", "--quiet", "--host", "127.0.0.1", "--port"
    ) as port:
        yield port


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new bucket; the environment makes `s3://` lead to its server."""
    environment = {
        "AWS_ENDPOINT_URL_S3": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture
def gs_path(gs_port: int) -> str:
    """The path of a new bucket, with options that lead to its server. Put a key before the question mark."""
    bucket = f"bucket-{uuid4().hex}"
    request = urllib.request.Request(
        f"http://127.0.0.1:{gs_port}/storage/v1/b?project=test",
        data=json.dumps({"name": bucket}).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()
    return f"gs://anonymous@{bucket}?endpoint_override=127.0.0.1:{gs_port}&scheme=http&retry_limit_seconds=5"


@pytest.fixture(params=["local", "s3", "gs"])
def storage_path(request: pytest.FixtureRequest) -> str:
    """A directory that does not exist yet, in each kind of storage in turn."""
    return runs_in(request.param, request)


@pytest.fixture(params=["s3", "gs"])
def object_path(request: pytest.FixtureRequest) -> str:
    """A directory that does not exist yet, in each object store in turn."""
    return runs_in(request.param, request)


def runs_in(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "local":
        return f"{request.getfixturevalue('tmp_path')}/runs"
    if kind == "s3":
        return f"s3://{request.getfixturevalue('s3_bucket')}/runs"
    return str(request.getfixturevalue("gs_path")).replace("?", "/runs?")


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """In `with full_disk():` no file of this process can grow beyond 50 kB."""
    return no_space_left


@contextmanager
def no_space_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[int]:
    """Runs `python -m module arguments PORT` until the `with` block ends."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_it_answers(process, port)
        yield port
    finally:
        process.kill()
        process.wait()


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{process.args!r} does not answer"
            time.sleep(0.05)
        else:
            return


def deny(bucket: str) -> None:
    """From now on nobody may read or write objects of the bucket."""
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    boto3.client("s3", region_name="us-east-1").put_bucket_policy(Bucket=bucket, Policy=policy)


def allow(bucket: str) -> None:
    """Takes back what `deny` has done."""
    boto3.client("s3", region_name="us-east-1").delete_bucket_policy(Bucket=bucket)
