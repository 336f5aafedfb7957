"""A local model hub, with the part of the Hugging Face hub's protocol that downloads models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """Holds one model, `someone/model`, with the revisions `main` and `v1`.

    `someone/gated` answers that access must be asked for, `someone/forbidden` with 403, `someone/busy`
    with 503, and all other names are not found.
    """

    model: ClassVar[Path]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        repository, _, rest = path.removeprefix("/api/models").removeprefix("/").partition("model/")
        if path.startswith("/api/models/someone/gated"):
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/someone/forbidden"):
            self._send(403, b"")
        elif path.startswith("/api/models/someone/busy"):
            self._send(503, b"")
        elif repository != "someone/":
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif rest in ("revision/main", "revision/v1"):
            self._send(200, json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": []}).encode())
        elif rest == f"tree/{COMMIT}":
            files = [file for file in sorted(self.model.iterdir()) if file.is_file()]
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file)}
                for file in files
            ]
            self._send(200, json.dumps(tree).encode())
        elif rest.startswith(f"resolve/{COMMIT}/"):
            file = self.model / rest.rpartition("/")[2]
            self._send(200, file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        pass


def _digest(file: Path) -> str:
    return sha1(file.read_bytes()).hexdigest()


@contextmanager
def hub_with(model: Path) -> Iterator[str]:
    """Serves `model` as `someone/model` during the `with` block, and yields the hub's address."""
    handler = type("Hub", (_Hub,), {"model": model})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
