"""Servers on loopback that hand out models: any path with its answer, over HTTP or TLS, and Kaggle's own protocol."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import ssl
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What a path is answered with.

    Attributes:
        status: HTTP's.
        body: As it is sent.
        announced: Its Content-Length; more than there is breaks the answer off; -1 sends none.
        location: Where a redirection leads to.
    """

    status: int = 200
    body: bytes = b""
    announced: int | None = None
    location: str | None = None


class Server(http.server.ThreadingHTTPServer):
    """Answers each path as told; writes down what was asked. The path /silent is never answered."""

    daemon_threads = True

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.logins: list[str | None] = []
        self.over = threading.Event()
        self.scheme = "http"

    def url(self, path: str = "", scheme: str | None = None) -> str:
        return f"{scheme or self.scheme}://127.0.0.1:{self.server_port}{path}"

    @property
    def name(self) -> str:
        """Host and port, as a mirror calls them."""
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet: some tests are about broken connections."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        self.server.asked.append((parts.path, urllib.parse.parse_qs(parts.query)))
        self.server.logins.append(self.headers.get("Authorization"))
        self.send(parts.path, self.server.answers.get(parts.path, Answer(404, b"no such model")))

    def send(self, path: str, answer: Answer, kind: str = "application/octet-stream") -> None:
        if path == "/silent":
            self.server.over.wait(30)
            return
        self.send_response(answer.status)
        if answer.location:
            self.send_header("Location", answer.location)
        self.send_header("Content-Type", kind)
        if answer.announced != -1:
            self.send_header("Content-Length", str(len(answer.body) if answer.announced is None else answer.announced))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class KaggleHandler(Handler):
    """Stands for api.kaggle.com and the storage behind it, asked through a proxy: kagglehub has no other way there.

    The answer to a method, such as GetModelInstance, or to a file's path is the one told, else it succeeds.
    """

    files: Mapping[str, bytes] = {}
    version = 1

    def do_POST(self) -> None:
        method = self.path.rpartition("/")[2]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((method, request))
        if method in self.server.answers:
            self.send("/silent" if self.server.answers[method].status == 0 else "", self.server.answers[method])
        elif method == "GetModelInstance":
            self.send_json({"versionNumber": self.version})
        elif method == "ListModelInstanceVersionFiles":
            shown = [{"name": name} for name in self.files][: request["pageSize"]]
            self.send_json({"files": shown, "nextPageToken": "more" if len(shown) < len(self.files) else ""})
        elif request.get("path"):
            told = self.server.answers.get(request["path"])
            self.send("", told or Answer(200, self.files[request["path"]]))
        else:
            self.send("", Answer(200, packed(self.files)))

    def send_json(self, told: object) -> None:
        self.send("", Answer(200, json.dumps(told).encode()), "application/json")


@contextlib.contextmanager
def running(
    certificate: Path | None = None, handler: type[http.server.BaseHTTPRequestHandler] = Handler
) -> Iterator[Server]:
    """Gives a server; with a certificate's file (its key in the same file) it speaks TLS."""
    server = Server(handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def packed(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """Returns a .tar.gz of files, given by their names and content, or by their headers alone."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as opened:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = b"" if isinstance(content, tarfile.TarInfo) else content
            member.size = len(body)
            opened.addfile(member, io.BytesIO(body))
    return stream.getvalue()
