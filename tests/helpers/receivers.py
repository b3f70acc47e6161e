"""A web server and a mail server of the tests' own, on loopback: what reaches them is kept."""

import contextlib
import http.server
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Received", "mail_server", "web_server"]


@dataclass
class Received:
    """What came in, and what to answer: the last answer goes on for ever."""

    port: int = 0
    answers: list[int] = field(default_factory=lambda: [200])
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)

    def answer(self) -> int:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextlib.contextmanager
def _serving(server: socketserver.TCPServer, received: Received) -> Iterator[Received]:
    received.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def web_server(*answers: int) -> Iterator[Received]:
    """Answers POSTs with these status codes."""
    received = Received(answers=list(answers) or [200])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            received.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(received.answer())
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, _serving(server, received):
        yield received


class _MailHandler(socketserver.StreamRequestHandler):
    server: "_MailServer"

    """One connection. It answers QUIT as no server should: the mail has been taken all the same."""

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    def handle(self) -> None:
        self._say("220 tests")
        while line := self.rfile.readline().decode().strip():
            verb = line.partition(" ")[0].upper()
            replies = {
                "EHLO": self._hello,
                "STARTTLS": self._start_tls,
                "AUTH": lambda: self._login(line),
                "RCPT": lambda: self._recipient(line),
                "DATA": self._data,
            }
            replies.get(verb, lambda: self._say("250 ok"))()
            if verb == "QUIT":
                return

    @property
    def _received(self) -> Received:
        return self.server.received

    def _hello(self) -> None:
        plain = not isinstance(self.request, ssl.SSLSocket)
        starttls = ["250-STARTTLS"] if self.server.certificate and plain else []
        self._say("250-tests", *starttls, "250-AUTH PLAIN", "250 8BITMIME")

    def _start_tls(self) -> None:
        self._say("220 go on")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert self.server.certificate is not None
        context.load_cert_chain(self.server.certificate)
        self.request = context.wrap_socket(self.request, server_side=True)
        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)

    def _login(self, line: str) -> None:
        self._received.logins.append(line)
        self._say("235 welcome")

    def _recipient(self, line: str) -> None:
        self._received.recipients.append(line.partition("<")[2].rstrip(">"))
        self._say("250 ok")

    def _data(self) -> None:
        self._say("354 go on")
        lines = []
        while (part := self.rfile.readline().decode()) != ".\r\n":
            lines.append(part)
        code = self._received.answer()
        if code == 250:
            self._received.mails.append("".join(lines))
        self._say(f"{code} said")

    def finish(self) -> None:
        super().finish()
        self.request.close()  # after STARTTLS another one than the server knows of


class _MailServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    received: Received
    certificate: Path | None

    def handle_error(self, *_: Any) -> None:
        """A client that does not trust the certificate hangs up."""


@contextlib.contextmanager
def mail_server(*answers: int, certificate: Path | None = None) -> Iterator[Received]:
    """Takes mails, answering DATA with these codes; with a certificate (and key, one file) it knows STARTTLS."""
    received = Received(answers=list(answers) or [250])
    with _MailServer(("127.0.0.1", 0), _MailHandler) as server:
        server.received, server.certificate = received, certificate
        with _serving(server, received):
            yield received
