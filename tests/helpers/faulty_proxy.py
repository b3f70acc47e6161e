"""A proxy in front of a real HTTP server that breaks the requests it is told to break, as networks and servers do."""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["FAULTS", "Fault", "FaultyProxy", "faulty_proxy"]

Fault = Literal["500", "503", "reset", "slow", "half a put", "half an answer"]
FAULTS: tuple[Fault, ...] = ("500", "503", "reset", "slow", "half a put", "half an answer")
_CODES = {"500": "InternalError", "503": "SlowDown"}
_SLOW_S = 0.4
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


class FaultyProxy:
    """Breaks nothing until it is told to."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.url = ""
        self.broken = 0
        """Requests that were broken so far."""
        self._lock = threading.Lock()
        self._plan: tuple[Fault, float] | None = None

    def breaks(self, fault: Fault, *, times: float = float("inf")) -> None:
        """Break so many of the requests to come: of half a put, those that put; of half an answer, those that get."""
        with self._lock:
            self._plan, self.broken = (fault, times), 0

    def heals(self) -> None:
        """Break nothing any more."""
        with self._lock:
            self._plan = None

    def next_fault(self, method: str) -> Fault | None:
        with self._lock:
            if self._plan is None or self.broken >= self._plan[1]:
                return None
            fault = self._plan[0]
            if method != {"half a put": "PUT", "half an answer": "GET"}.get(fault, method):
                return None
            self.broken += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def do_GET(self) -> None:
        num_bytes = int(self.headers.get("Content-Length") or 0)
        fault = self.proxy.next_fault(self.command)
        if fault == "half a put":
            self._put_half(self.rfile.read(num_bytes // 2))
            return
        body = self.rfile.read(num_bytes)
        if fault == "reset":
            self._reset()
        elif fault is not None and fault in _CODES:
            self._answer(int(fault), {}, f"<Error><Code>{_CODES[fault]}</Code></Error>".encode())
        else:
            self._forward(body, fault)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

    def _put_half(self, body: bytes) -> None:
        """The server gets the head and half of the body, and then nothing more, as from a client that died."""
        host, port = self.proxy.upstream.hostname, self.proxy.upstream.port
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items() if name.lower() != "expect")
        with socket.create_connection((host, port), timeout=10) as server:
            server.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            time.sleep(0.05)
        self._reset()

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection(str(self.proxy.upstream.hostname), self.proxy.upstream.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the signature covers them, the host's name included
                if name.lower() not in _HOP_BY_HOP | {"expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
        if fault == "slow":
            time.sleep(_SLOW_S)
        if self.command == "HEAD":
            headers.setdefault("Content-Length", "0")
        else:
            headers = {n: v for n, v in headers.items() if n.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        if fault == "half an answer":
            self._answer(answer.status, headers, content[: len(content) // 2])
            self._reset()
        else:
            self._answer(answer.status, headers, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _reset(self) -> None:
        """End the connection so that the other side hears "connection reset by peer"."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as the base class names it
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what this is about."""


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy on loopback until the block ends.

    Args:
        upstream: Address of the real server.

    Yields:
        The proxy, which breaks nothing yet.
    """
    proxy = FaultyProxy(upstream)
    server = _Server(("127.0.0.1", 0), type("_BoundHandler", (_Handler,), {"proxy": proxy}))
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
