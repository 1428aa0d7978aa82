"""Servers on loopback that speak S3's HTTP: moto's, a proxy that harms what passes, and one that answers as told."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "hidden-from-every-log",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
    "NO_PROXY": "127.0.0.1",
}
FOREIGN = ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
FOREIGN += ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE")


def set_variables(monkeypatch) -> None:
    """Has AWS's own variables name dummy credentials and a Region, and nothing of this machine's."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def is_get_of_object(self) -> bool:
        return self.method == "GET" and "list-type" not in self.query


@dataclass
class Server:
    """A running server: its address, and what it was asked."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)

    def gets(self) -> list[Request]:
        return [request for request in self.requests if request.is_get_of_object]


Answer = tuple[int, dict[str, str], bytes]


@contextlib.contextmanager
def running(answer: Callable[[int, Request, bytes], Answer | None]) -> Iterator[Server]:
    """Gives a server whose answers come from a function of the request's number from 1, the request and its body.

    A body shorter than its Content-Length breaks the connection off; None drops the connection without an answer.
    """
    server, numbers = Server(), itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            path, _, query = self.path.partition("?")
            asked = Request(
                self.command,
                urllib.parse.unquote(path),
                dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
                {name.lower(): value for name, value in self.headers.items()},
            )
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append(asked)
            answered = answer(next(numbers), asked, body)
            self.close_connection = True
            if answered is None:
                return
            status, headers, content = answered
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
                self.close_connection = len(content) < int(headers.get("Content-Length", len(content)))
            else:
                self.close_connection = False

        def log_message(self, *args: object) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_one)

    class Threads(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Threads(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        server.url = f"http://127.0.0.1:{listening.server_port}"
        try:
            yield server
        finally:
            listening.shutdown()


def forwarded(target: str, request: Request, body: bytes) -> Answer:
    """Returns what another server answers."""
    host = urllib.parse.urlsplit(target).netloc
    connection = http.client.HTTPConnection(host, timeout=60)
    query = urllib.parse.urlencode(request.query)
    with contextlib.closing(connection):
        path = urllib.parse.quote(request.path) + (f"?{query}" if query else "")
        connection.request(request.method, path, body or None, {**request.headers, "connection": "close"})
        got = connection.getresponse()
        headers = {name: value for name, value in got.getheaders() if name.lower() not in HOP_BY_HOP}
        return got.status, headers, got.read()


HOP_BY_HOP = {"connection", "transfer-encoding", "server", "date"}


def refusal(status: int, code: str, message: str = "told so", extra: str = "") -> Answer:
    """Returns an error as S3 words it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return status, {"Content-Type": "application/xml"}, text.encode()


NO_MORE = "<IsTruncated>false</IsTruncated>"


def page(keys: list[tuple[str, int, str]], token: str | None = None) -> Answer:
    """Returns a page of a listing: (key, size, etag) each."""
    contents = "".join(
        f"<Contents><Key>{escape(urllib.parse.quote(key))}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents>"
        for key, size, etag in keys
    )
    more = (
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else NO_MORE
    )
    text = (
        "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
        f"<EncodingType>url</EncodingType>{more}{contents}</ListBucketResult>"
    )
    return 200, {"Content-Type": "application/xml"}, text.encode()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def every_third_fails(number, request, answer):
    """503, 500 and a body cut short in turn; an empty body cannot be, so its connection drops."""
    if number % 3:
        return answer
    kind = number // 3 % 3
    if kind < 2:
        return refusal(*[(503, "SlowDown"), (500, "InternalError")][kind])
    status, headers, body = answer
    headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
    return (status, {**headers, "Content-Length": str(len(body))}, body[: len(body) // 2]) if body else None
