"""A local API server that takes the merge patches of one config map over HTTPS."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from devcluster.certificates import Authority
from finetune_api.assignment import RECORD_KEY
from finetune_api.status import ProgressRecord
from finetune_trainer.report.config_map import ConfigMap


@dataclass(frozen=True)
class Request:
    """A merge patch that the server received."""

    path: str
    headers: dict[str, str]
    body: dict[str, dict[str, str]]

    @property
    def record(self) -> ProgressRecord:
        return ProgressRecord.model_validate_json(self.body["data"][RECORD_KEY])


@dataclass
class RecordsServer:
    """The requests that the server has received, and the answers that it will give."""

    config_map: ConfigMap
    """The config map at this server."""
    requests: list[Request] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    """The status and body of the next answers. When none is left, the answer is 200."""
    on_record: Callable[[ProgressRecord], None] = lambda _record: None
    """Called with each record before it is answered."""

    @property
    def records(self) -> list[ProgressRecord]:
        return [request.record for request in self.requests]


@contextmanager
def records_server(directory: Path) -> Iterator[RecordsServer]:
    """Serves during the `with` block. The files of the pod's service account are written to `directory`."""
    authority = Authority(directory)
    pair = authority.issue("server", common_name="api-server", hosts=["127.0.0.1"])
    (directory / "token").write_text("a token\n")
    (directory / "namespace").write_text("somewhere")

    class Handler(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, dict(self.headers), body)
            state.requests.append(request)
            state.on_record(request.record)
            status, text = state.answers.pop(0) if state.answers else (200, "{}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments: object) -> None:
            """Prints no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    state = RecordsServer(ConfigMap("records", "127.0.0.1", server.server_port, directory))
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
