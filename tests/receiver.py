"""A receiver of webhooks on this machine."""

import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Heard(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Answers each message with the next of `answers`, and then with the last again; a dictionary is of headers too.

    While `may_answer` is not set it takes messages and does not answer.
    """

    def __init__(
        self, answers: Sequence[int | tuple[int, dict[str, str]]] = (204,), tls: ssl.SSLContext | None = None
    ) -> None:
        self.heard: list[Heard] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._answers = [*answers]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): content for name, content in self.headers.items()}
                receiver.heard.append(Heard(self.path, headers, body))
                answer = receiver._answers.pop(0) if len(receiver._answers) > 1 else receiver._answers[0]
                receiver.may_answer.wait()
                status, extra = (answer, dict[str, str]()) if isinstance(answer, int) else answer
                try:
                    self.send_response(status)
                    for name, content in extra.items():
                        self.send_header(name, content)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:  # the studio waits no longer
                    return

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def receiving(*answers: int | tuple[int, dict[str, str]], tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver(answers or (204,), tls)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()
