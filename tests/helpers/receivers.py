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


@contextlib.contextmanager
def mail_server(*answers: int, certificate: Path | None = None) -> Iterator[Received]:
    """Takes mails, answering DATA with these codes; with a certificate (and key, one file) it knows STARTTLS."""
    received = Received(answers=list(answers) or [250])

    class Handler(socketserver.StreamRequestHandler):
        def _say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            self._say("220 tests")
            while line := self.rfile.readline().decode().strip():
                verb = line.upper()
                if verb.startswith("EHLO"):
                    extras = ["STARTTLS"] if certificate and not isinstance(self.request, ssl.SSLSocket) else []
                    for extra in ("tests", *extras, "AUTH PLAIN"):
                        self._say(f"250-{extra}")
                    self._say("250 8BITMIME")
                elif verb == "STARTTLS":
                    assert certificate is not None
                    self._say("220 go on")
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(certificate)
                    self.request = context.wrap_socket(self.request, server_side=True)
                    self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)
                elif verb.startswith("AUTH"):
                    received.logins.append(line)
                    self._say("235 welcome")
                elif verb.startswith("RCPT"):
                    received.recipients.append(line.partition("<")[2].rstrip(">"))
                    self._say("250 ok")
                elif verb == "DATA":
                    self._say("354 go on")
                    mail = []
                    while (part := self.rfile.readline().decode()) != ".\r\n":
                        mail.append(part)
                    code = received.answer()
                    if code == 250:
                        received.mails.append("".join(mail))
                    self._say(f"{code} said")
                elif verb == "QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 ok")

        def finish(self) -> None:
            super().finish()
            self.request.close()  # after STARTTLS another one than the server knows of

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that does not trust the certificate hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server, _serving(server, received):
        yield received
