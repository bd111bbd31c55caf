"""The page over HTTP while runs go on: made anew when their files change, for this machine alone unless asked."""

import gzip
import hashlib
import html
import ipaddress
import socket
import socketserver
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dft_mm.errors import InputError
from dft_mm.report.examples import Examples, read_examples
from dft_mm.report.page import AddRows, encoded, render
from dft_mm.report.read import Found, read_paths, stamps

HOST, PORT = "127.0.0.1", 7870
_EVERY_MS = 3000
_SHARE = 10
"""Making the page takes at most one part in so many of a core: a training run needs its own."""


@dataclass(frozen=True)
class Version:
    body: bytes
    """The page, gzipped."""
    tag: str


class _Content(NamedTuple):
    found: Found
    examples: Examples
    results: object
    """What the examples were read from: they are read again only when that is another."""


class LivePage:
    """The page of some paths, nearly as new as their files. `version` may be called from several threads."""

    def __init__(self, paths: Sequence[Path], add: AddRows = lambda table: table) -> None:
        """Raises InputError for a path that is not there, or is damaged."""
        self._paths, self._add = paths, add
        self._making = threading.Lock()
        start = time.monotonic()
        self._stamps = stamps(paths)
        self._content: _Content | None = None
        self._content = self._read()
        self._page = self._make(self._content)
        self._version = _version(self._page)
        self._rest(start)

    def version(self) -> Version:
        """The newest that is made, at once; asking is what has the next one made, when that is due."""
        if time.monotonic() >= self._not_before and not self._making.locked():
            threading.Thread(target=self.refresh, daemon=True).start()
        return self._version

    def refresh(self) -> None:
        """Make the page anew, if files changed and no other thread does. Where that fails, the page says why and shows
        what was there before."""
        if not self._making.acquire(blocking=False):
            return
        start = time.monotonic()
        try:
            if (now := stamps(self._paths)) != self._stamps:
                self._stamps = now  # what cannot be read is tried again when it is another
                content = self._read()
                self._page = self._make(content)
                self._content = content
                self._version = _version(self._page)
        except InputError as error:
            self._version = _version(self._page, str(error))
        except Exception as error:  # another version's files, a storage that is gone: runs go on, and so does the page
            self._version = _version(self._page, f"{type(error).__name__}: {error}")
        finally:
            self._rest(start)
            self._making.release()

    def _rest(self, start: float) -> None:
        """Nothing is due for a while after work that began at `start`."""
        end = time.monotonic()
        self._not_before = end + _SHARE * (end - start)

    def _read(self) -> _Content:
        found = read_paths(self._paths, wait=True)
        folders = [each.folder for each in found.results]
        results = (folders, stamps(folders))
        if self._content and self._content.results == results:
            return _Content(found, self._content.examples, results)
        return _Content(found, read_examples(found.results), results)

    def _make(self, content: _Content) -> str:
        return render(content.found, content.examples, add=self._add, every_ms=_EVERY_MS)


def _version(page: str, problem: str = "") -> Version:
    """A page; `problem`: why it is not the newest. That is put into a page that is there, since it may be drawing one
    that failed."""
    if problem:
        page = page.replace("</footer>", f" Since then: {html.escape(problem)}</footer>")
    body = encoded(page)
    return Version(gzip.compress(body, 5), f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def serve(page: LivePage, host: str = HOST, port: int | None = None) -> ThreadingHTTPServer:
    """A server that is bound but does not answer yet; InputError when the address cannot be had.

    `port`: 7870 or, where that is taken, any free one, unless it is given.
    """
    for number in [PORT, 0] if port is None else [port]:
        try:
            return _Server(host, number, page)
        except OSError as error:
            problem = error
    raise InputError(f"--host {host}, --port {port or PORT}: cannot be served on ({problem}); give another")


def watch(page: LivePage, host: str = HOST, port: int | None = None) -> None:
    """Serve until a KeyboardInterrupt."""
    with serve(page, host, port) as server:
        print(f"{address_of(server)} shows the page; Ctrl-C ends it", flush=True)
        server.serve_forever()


def address_of(server: ThreadingHTTPServer) -> str:
    host, port = server.server_address[:2]
    return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, page: LivePage) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self.page = page
        self.names = {"localhost", host, address[0]} if ipaddress.ip_address(address[0]).is_loopback else None
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks a name server, which may take its time
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "dft-mm", ""
    timeout = 60

    def do_GET(self) -> None:
        # Another site's name may be made to lead here; such a page must not read this one.
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.names is not None and name not in self.server.names:
            self._answer(403, b"This page is for this machine alone; --host lets others have it.\n", "text/plain")
        elif urlsplit(self.path).path != "/":
            self._answer(404, b"There is one page here: /\n", "text/plain")
        else:
            version = self.server.page.version()
            known = self.headers.get("If-None-Match") == version.tag
            self._answer(304 if known else 200, b"" if known else version.body, "text/html; charset=utf-8", version.tag)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, kind: str, tag: str | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
        }.items():  # fmt: skip
            self.send_header(name, value)
        if tag:
            self.send_header("ETag", tag)
            self.send_header("Content-Encoding", "gzip")  # every browser reads it
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that asks every few seconds would fill the terminal."""
