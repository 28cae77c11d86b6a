"""Servers on loopback: one that knows ranges, and one that stands before S3 and fails."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code>"
    b"<Message>Reduce your request rate</Message></Error>"
)
_DENIED = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>"
    b"<Message>Access Denied</Message></Error>"
)
_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what these tests are about."""


class RangeServer(_Server):
    """Serves a folder's files, whole and in ranges, and counts the requests.

    Attributes:
        log: (method, path, the Range header or "") of each request.
        with_tags: Whether answers have an ETag.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, list[tuple[str, str, str]]()
        self.with_tags = True
        super().__init__(("127.0.0.1", 0), _RangeHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        asked = self.headers.get("Range", "")
        self.server.log.append((self.command, self.path, asked))
        file = self.server.folder / path.lstrip("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        stat = file.stat()
        start, stop = 0, stat.st_size
        if asked:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            if low:
                start, stop = int(low), min(int(high or stop - 1) + 1, stop)
            else:
                start = max(0, stop - int(high))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header(
                "Content-Range", f"bytes {start}-{stop - 1}/{stat.st_size}"
            )
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if self.server.with_tags:
            name = f"{stat.st_mtime_ns} {stat.st_size} {stat.st_ino}".encode()
            self.send_header("ETag", f'"{hashlib.md5(name).hexdigest()}"')
        self.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
        self.end_headers()
        if not with_body:
            return
        self.wfile.flush()
        with file.open("rb") as source:
            if start < stop:
                self.connection.sendfile(source, start, stop - start)


class FaultProxy(_Server):
    """Stands before a server, counts the requests and makes some of them fail.

    Attributes:
        fault: "503", "403", "reset", "cut", "hang" or, for a body of a few bytes a
            second, "crawl"; "" for none.
        share: How many of the requests fail.
        only: The method of those that fail; "" for any.
        key: Requests signed with another access key than this are denied; "" denies none.
        lacking: A header, in small letters, that answers to GET have not.
        tag: The ETag of answers to GET; "" for the object's.
        log: (method, path, the Range header or "") of each request.
        faults: How many there were of each kind.
        hang: Set it to let hanging requests go.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault, self.share, self.only, self.key = "", 1.0, "", ""
        self.lacking, self.tag = "", ""
        self.log = list[tuple[str, str, str]]()
        self.faults = Counter[str]()
        self.hang = threading.Event()
        self._random = random.Random(0)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _ProxyHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reset(self) -> None:
        """Forget the log and have no more faults."""
        self.fault, self.share, self.only, self.key = "", 1.0, "", ""
        self.lacking, self.tag = "", ""
        self.log.clear()
        self.faults.clear()
        self._random.seed(0)

    def draw(self, method: str) -> str:
        """Return what is to befall a request."""
        with self._lock:
            if self.only not in ("", method) or not self.fault:
                return ""
            if self._random.random() >= self.share:
                return ""
            self.faults[self.fault] += 1
            return self.fault


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = self.headers.get("Range", "")
        self.server.log.append((self.command, self.path, asked))
        fault = self.server.draw(self.command)
        signed = self.headers.get("Authorization", "")
        if self.server.key and f"Credential={self.server.key}/" not in signed:
            fault = "403"
        if fault == "503":
            self._send(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        if fault == "403":
            self._send(403, {"Content-Type": "application/xml"}, _DENIED)
            return
        if fault == "reset":
            self._abort()
            return
        if fault == "hang":
            self.server.hang.wait(120)
            self._abort()
            return
        upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            upstream.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "keep-alive"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            content = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            if self.command == "GET":
                headers = {
                    k: (k.lower() == "etag" and self.server.tag) or v
                    for k, v in headers.items()
                    if k.lower() != self.server.lacking
                }
            cut = {"cut": len(content) // 2, "crawl": 0}.get(fault)
            self._send(answer.status, headers, content, cut, crawl=fault == "crawl")
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        cut: int | None = None,
        *,
        crawl: bool = False,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        for byte in body if crawl and self.command != "HEAD" else b"":
            self.wfile.write(bytes((byte,)))
            if self.server.hang.wait(0.2):
                break
        if cut is not None and self.command != "HEAD":
            self._abort()

    def _abort(self) -> None:
        self.wfile.flush()
        # With nothing to linger for, closing sends a reset.
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.close_connection = True


@contextmanager
def serving(server: _Server) -> Iterator[Any]:
    """Serve in a thread until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
