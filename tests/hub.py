"""A model hub on loopback, as far as its clients ask: repositories of files, some of which it damages or denies."""

import contextlib
import json
import threading
from collections.abc import Iterator
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
LARGE: Final = 1_000_000  # bytes, from which on a file is named by its SHA-256
REMOTE: Final = "X-Error-Code"


class Repository:
    """`card` is what its README says of it. `damaged` and `missing` name files, `gated` the whole."""

    def __init__(self, files: dict[str, bytes], **card: Any) -> None:
        self.files = files
        self.card = card
        self.damaged: set[str] = set()
        self.missing: set[str] = set()
        self.gated = False
        self.sent: list[str] = []

    @classmethod
    def of(cls, folder: Path, **card: Any) -> "Repository":
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return cls({str(path.relative_to(folder)): path.read_bytes() for path in files}, **card)

    def facts(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        facts: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _blob(content)}
        if len(content) >= LARGE:
            digest = sha256(content).hexdigest()
            facts["lfs"] = {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 130}
        return facts

    def etag(self, name: str) -> str:
        content = self.files[name]
        return sha256(content).hexdigest() if len(content) >= LARGE else _blob(content)


class Hub:
    """`url` is for HF_ENDPOINT."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, hub.repositories)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, repositories: dict[str, Repository]) -> None:
    path = unquote(urlsplit(request.path).path).removeprefix("/")
    parts = path.removeprefix("api/models/").split("/")
    name, rest = "/".join(parts[:2]), parts[2:]
    repository = repositories.get(name)
    headers = {"X-Repo-Commit": COMMIT}
    if repository is None:
        return _send(request, 401, b"", {REMOTE: "RepoNotFound"})
    if path.startswith("api/models/"):
        return _send(request, 200, json.dumps(_description(name, repository, rest)).encode(), headers)
    file = "/".join(rest[2:])
    if repository.gated:
        return _send(request, 401, b"", {REMOTE: "GatedRepo"})
    if file not in repository.files or file in repository.missing:
        return _send(request, 404, b"", {REMOTE: "EntryNotFound", **headers})
    content = repository.files[file]
    if file in repository.damaged:
        content = content[:-1] + bytes([content[-1] ^ 1])
    if request.command == "GET":
        repository.sent.append(file)
    return _send(request, 200, content, {"ETag": f'"{repository.etag(file)}"', **headers})


def _description(name: str, repository: Repository, rest: list[str]) -> Any:
    if rest[:1] == ["tree"]:
        facts = [repository.facts(file) for file in repository.files]
        return [{"type": "file", "path": each["rfilename"], "oid": each["blobId"], **each} for each in facts]
    return {
        "id": name,
        "sha": COMMIT,
        "cardData": repository.card,
        "tags": [f"license:{repository.card['license']}"] if "license" in repository.card else [],
        "siblings": [repository.facts(file) for file in repository.files],
    }


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


def _blob(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
