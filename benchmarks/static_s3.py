"""A small server that speaks as much S3 as reading needs, over a folder of this machine.

Buckets are the folder's folders. It knows HEAD and GET of objects, with ranges, and
ListObjectsV2; it checks no signature. Bodies go from the page cache to the socket
(sendfile), so a client's own cost shows. Answers can be made to wait, as a network and a
store make them. It prints its port, and ends with its stdin.

    python benchmarks/static_s3.py FOLDER [WAIT_MS]
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_MISSING = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"


class StaticS3(ThreadingHTTPServer):
    """Serves a folder's folders as buckets on a free port of loopback."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        self.folder, self.wait_s = folder, wait_s
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: StaticS3

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        time.sleep(self.server.wait_s)
        self._object(with_body=False)

    def do_GET(self) -> None:
        time.sleep(self.server.wait_s)
        address = urlsplit(self.path)
        query = parse_qs(address.query, keep_blank_values=True)
        if "list-type" in query:
            self._list(unquote(address.path).strip("/"), query)
        else:
            self._object(with_body=True)

    def _object(self, *, with_body: bool) -> None:
        path = self.server.folder / unquote(urlsplit(self.path).path).strip("/")
        if not path.is_file():
            bucket = path.is_dir() and path.parent == self.server.folder
            self._send(200 if bucket else 404, {}, _MISSING * with_body)
            return
        size, tag, changed = _facts(path)
        first, stop = 0, size
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        headers = {"ETag": tag, "Last-Modified": formatdate(changed, usegmt=True)}
        if asked:
            low, _, high = asked.partition("-")
            first = int(low) if low else max(0, size - int(high))
            stop = min(int(high) + 1, size) if low and high else size
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{size}"
        headers["Content-Length"] = str(stop - first)
        headers["Content-Type"] = "binary/octet-stream"
        self._send(206 if asked else 200, headers, b"")
        if with_body:
            self.wfile.flush()
            with path.open("rb") as file:
                while first < stop:
                    out = self.connection.fileno()
                    first += os.sendfile(out, file.fileno(), first, stop - first)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        most = int(query.get("max-keys", ["100000"])[0])
        entries, common = list[str](), dict[str, None]()
        for key, path in _objects(self.server.folder / bucket):
            if not key.startswith(prefix):
                continue
            head, mark, _ = key[len(prefix) :].partition(delimiter or "\0")
            if mark and delimiter:
                common[prefix + head + mark] = None
                continue
            size, tag, changed = _facts(path)
            when = formatdate(changed, usegmt=True)
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>"
                f"<ETag>{escape(tag)}</ETag><LastModified>{when}</LastModified>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        entries = entries[:most]
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in common
        )
        body = (
            "<?xml version='1.0'?><ListBucketResult>"
            f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(entries) + len(common)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{''.join(entries)}{folders}"
            "</ListBucketResult>"
        )
        self._send(200, {"Content-Type": "application/xml"}, body.encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _facts(path: Path) -> tuple[int, str, float]:
    stat = path.stat()
    return stat.st_size, f'"{stat.st_mtime_ns:x}-{stat.st_ino:x}"', stat.st_mtime


def _objects(bucket: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(bucket.rglob("*")):
        if path.is_file():
            yield path.relative_to(bucket).as_posix(), path


def main() -> int:
    """Serve until stdin ends."""
    server = StaticS3(Path(sys.argv[1]), float((*sys.argv, "0")[2]) / 1000)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    server.shutdown()
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
