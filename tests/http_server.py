"""A real web server on the loopback interface that answers each request as a test tells it to."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Answer:
    """How to answer one request: by default the whole body, or what Range asks for."""

    cut: int | None = None  # close the connection after so many bytes
    ranges: bool = True  # False: answer 200 with everything, whatever was asked
    status: int | None = None  # this status and no body
    stall: bool = False  # stay silent where `cut` would close
    announce: bool = True  # False: send no Content-Length
    after: threading.Event | None = None  # send the body only then


@dataclass
class Served:
    """What the server offers and what it was asked; `sent` counts body bytes a request."""

    body: bytes
    answers: tuple[Answer, ...]
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Answer GET by the script in the server's `served`."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        served = self.server.served
        answer = served.answers[min(len(served.ranges), len(served.answers) - 1)]
        wanted = self.headers["Range"]
        served.ranges.append(wanted)
        if answer.status:
            self.send_error(answer.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        start = start if answer.ranges else 0
        body = served.body[start:]
        if not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if answer.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if answer.after:
            answer.after.wait(10)
        part = body[: answer.cut]
        self.wfile.write(part)
        served.sent.append(len(part))
        if answer.stall:
            served.closing.wait(10)


@contextmanager
def serve(body, *answers):
    """Serve `body`; request i gets answers[i], and later ones the last."""
    served = Served(body, answers or (Answer(),))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # server_close then waits for them
    server.served = served
    served.url = f"http://127.0.0.1:{server.server_port}/{NAME}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
