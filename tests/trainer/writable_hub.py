"""A model hub on this machine that takes uploads, with the part of the Hugging Face hub's protocol for them.

What is pushed there can be loaded from there, by its name. Files are kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

WRITER = "hf_a-token-that-may-write"
READER = "hf_a-token-that-may-only-read"
OWNER = "someone"
"""Who `WRITER` may write models of."""
TEAM = "a-team"
"""Of which `OWNER` is a member."""

Files = dict[str, bytes]


def _set() -> Event:
    event = Event()
    event.set()
    return event


@dataclass
class Repository:
    """A model with its branches, each the files and messages of its commits."""

    private: bool
    branches: dict[str, list[tuple[str, Files]]] = field(default_factory=lambda: {"main": [("initial", {})]})

    def files(self, revision: str = "main") -> Files:
        return self.branches[revision][-1][1]

    def messages(self, revision: str = "main") -> list[str]:
        return [message for message, _ in self.branches[revision]][1:]


@dataclass
class Hub:
    """What is on the hub, and what went over the wire."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """`METHOD /path` of every request."""
    fails_with: int | None = None
    """The status that every commit is answered with, and `words`."""
    words: str = "the hub is being repaired"
    goes_on: Event = field(default_factory=_set)
    """Commits wait for it."""


class _Refused(Exception):  # noqa: N818 - an answer, which is no error of the hub's
    def __init__(self, status: int, code: str = "", message: str = "", body: object = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        content = self._content()
        try:
            for pattern, answer in _ROUTES.items():
                method, _, shape = pattern.partition(" ")
                found = re.fullmatch(shape, path)
                if self.command in method.split("|") and found:
                    answer(self, content, **found.groupdict())
                    return
            raise _Refused(404, "EntryNotFound", "no such address")
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            body = {"error": refused.message} if refused.body is None else refused.body
            self._send(refused.status, body, {name: value for name, value in headers.items() if value})

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def _send(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        pass

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self._token not in (WRITER, READER)):
            raise _Refused(401 if not self._token else 404, "RepoNotFound", "Repository not found")
        return found

    def _files(self, name: str, revision: str) -> Files:
        """Of a branch, or of a commit, which is named by its place: `main-1`."""
        repository = self._repository(name)
        branch, _, place = revision.removeprefix("commit-").rpartition("-")
        if revision.startswith("commit-") and branch in repository.branches:
            return repository.branches[branch][int(place)][1]
        if revision not in repository.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.files(revision)

    def _commit(self, name: str, revision: str) -> str:
        if revision.startswith("commit-"):
            return revision
        return f"commit-{revision}-{len(self.hub.repositories[name].branches[revision]) - 1}"

    def _to_write(self, name: str) -> Repository:
        repository = self._repository(name)
        if self._token != WRITER or not name.startswith(f"{OWNER}/"):
            raise _Refused(403, message=f"Forbidden: you must use a write token to upload to {name}")
        return repository

    def who(self, content: bytes) -> None:
        del content
        if self._token not in (WRITER, READER):
            raise _Refused(401, message="Invalid user token.")
        role = "write" if self._token == WRITER else "read"
        about_token = {"auth": {"accessToken": {"role": role}}}
        self._send(200, {"name": OWNER, "type": "user", "orgs": [{"name": TEAM}], **about_token})

    def create(self, content: bytes) -> None:
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        if self._token != WRITER or asked["organization"] != OWNER:
            owner = asked["organization"]
            raise _Refused(403, message=f"You don't have the rights to create a model under {owner}")
        url = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.repositories:
            raise _Refused(409, message="You already created this model repo", body=url)
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self._send(200, url)

    def check_card(self, content: bytes) -> None:
        card = json.loads(content)["content"]
        _, _, rest = card.partition("---\n")
        base = (yaml.safe_load(rest.partition("\n---")[0]) or {}).get("base_model", "none")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)):
            said = f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
            raise _Refused(400, body={"errors": [{"message": said}], "warnings": []})
        self._send(200, {"errors": [], "warnings": []})

    def about(self, content: bytes, name: str, revision: str = "main") -> None:
        del content
        files = self._files(name, revision)
        self._send(
            200,
            {
                "id": name,
                "sha": self._commit(name, revision),
                "private": self.hub.repositories[name].private,
                "siblings": [{"rfilename": path} for path in files],
            },
        )

    def tree(self, content: bytes, name: str, revision: str, below: str) -> None:
        del content
        found = {path: data for path, data in self._files(name, revision).items() if path.startswith(below)}
        if below and not found:
            raise _Refused(404, "EntryNotFound", f"{below} does not exist")
        self._send(
            200,
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in found.items()
            ],
        )

    def branch(self, content: bytes, name: str, branch: str) -> None:
        del content
        repository = self._to_write(name)
        if branch in repository.branches:
            raise _Refused(409, message="Reference already exists")
        repository.branches[branch] = list(repository.branches["main"])
        self._send(200, {})

    def preupload(self, content: bytes, name: str, revision: str) -> None:
        there = self._files(name, revision)
        self._to_write(name)
        asked = [file["path"] for file in json.loads(content)["files"]]
        modes = [
            {
                "path": path,
                "uploadMode": "lfs" if _is_large(path) else "regular",
                "shouldIgnore": False,
                **({"oid": _oid(path, there[path])} if path in there else {}),
            }
            for path in asked
        ]
        self._send(200, {"files": modes})

    def batch(self, content: bytes, name: str) -> None:
        self._to_write(name)
        objects = [
            {**each}
            if each["oid"] in self.hub.large
            else {
                **each,
                "actions": {
                    "upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"},
                    "verify": {"href": f"{self.hub.address}/lfs-verify"},
                },
            }
            for each in json.loads(content)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, content: bytes, oid: str) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, message="not the file that was announced")
        self.hub.large[oid] = content
        self._send(200, {})

    def verify(self, content: bytes) -> None:
        asked = json.loads(content)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, message="not there")
        self._send(200, {})

    def commit(self, content: bytes, name: str, revision: str) -> None:
        self.hub.goes_on.wait(60)
        if self.hub.fails_with is not None:
            raise _Refused(self.hub.fails_with, message=self.hub.words)
        repository = self._to_write(name)
        files, message = dict(self._files(name, revision)), ""
        for line in content.splitlines():
            entry: dict[str, Any] = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, message=f"cannot do {entry['key']}")
        repository.branches[revision].append((message, files))
        commit = self._commit(name, revision)
        self._send(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def resolve(self, content: bytes, name: str, revision: str, path: str) -> None:
        del content
        files = self._files(name, revision)
        commit = {"X-Repo-Commit": self._commit(name, revision)}
        if path not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        self._send(200, files[path], {"ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"', **commit})


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _oid(path: str, content: bytes) -> str:
    """What clients compare a file of theirs with."""
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES: dict[str, Callable[..., None]] = {
    "GET /api/whoami-v2": _Handler.who,
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.check_card,
    f"GET /api/models/{_NAME}": _Handler.about,
    f"GET /api/models/{_NAME}/revision/(?P<revision>[^/]+)": _Handler.about,
    f"GET /api/models/{_NAME}/tree/(?P<revision>[^/]+)/?(?P<below>.*)": _Handler.tree,
    f"POST /api/models/{_NAME}/branch/(?P<branch>[^/]+)": _Handler.branch,
    f"POST /api/models/{_NAME}/preupload/(?P<revision>[^/]+)": _Handler.preupload,
    f"POST /api/models/{_NAME}/commit/(?P<revision>[^/]+)": _Handler.commit,
    r"POST /(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch": _Handler.batch,
    "PUT /lfs/(?P<oid>[0-9a-f]+)": _Handler.upload,
    "POST /lfs-verify": _Handler.verify,
    f"GET|HEAD /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": _Handler.resolve,
}


@contextmanager
def writable_hub(host: str = "127.0.0.1") -> Iterator[Hub]:
    """A hub at an address of this machine, during the `with` block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer((host, 0), handler) as server:
        hub.address = f"http://{host}:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        server.shutdown()


def hub_of_this_process(address: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Makes the hub at an address that of this process, and of those that it starts; their cache is below
    `directory`."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{directory}/no-token")
    environment = {
        "HF_ENDPOINT": address,
        "HF_TOKEN": WRITER,
        "HF_HOME": f"{directory}/home",
        "HF_HUB_DISABLE_XET": "1",
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
