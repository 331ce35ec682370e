"""Requests to a studio: proxies, repeats, problems as sentences, and whether what answers is a studio at all."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar
from uuid import uuid4

import httpx
import msgspec
from httpx_sse import aconnect_sse
from msgspec import Struct

from domain import keys
from domain.errors import Text2SongError
from infra.loopback import is_loopback
from infra.settings import load

# What httpx takes from the environment.
ENVIRONMENT: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
NAME: Final = "Text2Song Studio"
URL: Final = "http://127.0.0.1:8000"
MAX_PORT: Final = 65_535
PATIENCE_SECONDS: Final = 30.0
UPLOAD_SECONDS: Final = 600.0
POSITION: Final = "If-Event-Position"
TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "deleted"})
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

KEY: Final[ContextVar[str | None]] = ContextVar("key", default=None)

T = TypeVar("T")


class ClientError(Text2SongError):
    """The studio refused, or is not there."""


class UnreachableError(ClientError):
    """No studio answers."""


class RefusedError(ClientError):
    """The studio's own sentence."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


class Index(Struct, frozen=True):
    """What a studio says of itself; `notice` must be shown before anything is heard."""

    name: str
    notice: str | None


class JobReceipt(Struct, frozen=True):
    job_id: str
    warnings: list[str] = []


class JobUpdate(Struct, frozen=True):
    """`name` is that of the server-sent event, `version` the job's; None for progress, which is no fact."""

    name: str
    version: int | None
    data: dict[str, Any]


@contextmanager
def usable_environment() -> Iterator[None]:
    """Around the opening of an HTTP client. Raises ClientError that names the variables at fault."""
    try:
        yield
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        names = [name for name in os.environ if name.upper() in ENVIRONMENT]
        if not names:
            raise
        raise ClientError(
            f"The proxies or certificates that the environment names cannot be used: {error}. "
            f"Correct or unset {', '.join(names)}."
        ) from None


def chosen_key() -> str | None:
    """The API key to send: that of the command line, else of the settings. Raises ClientError for what is none."""
    key = KEY.get() or load(os.environ).key
    if key is not None and keys.parts(key) is None:
        raise ClientError("The key is no key of a studio: one begins with t2s_. Copy it as it was printed.")
    return key


class Connection:
    def __init__(self, url: str | None = None, *, key: str | None = None, patience: float = PATIENCE_SECONDS) -> None:
        """`url` is the studio's, by default that of TEXT2SONG_URL, else a studio on this machine. `key` is an API key,
        by default that of TEXT2SONG_KEY. `patience` is how many seconds to wait for a studio that answered once and
        does not any more, or that says that it is busy. Raises ClientError for what is no URL, and for proxies that
        cannot be used.
        """
        if url is None:
            url = os.environ.get("TEXT2SONG_URL") or URL
        self._patience = patience
        self._was_there = False
        self._url = url if "://" in url else f"http://{url}"
        address = _parsed(self._url)
        with usable_environment():
            self._http = httpx.AsyncClient(
                base_url=address,
                headers={} if (sent := key or chosen_key()) is None else {"X-API-Key": sent},
                timeout=httpx.Timeout(30.0),
                trust_env=not is_loopback(address.host),
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def index(self) -> Index:
        """Raises ClientError where another program answers."""
        found = await self._call("GET", "/", Index)
        if found.name != NAME:
            raise self._foreign(httpx.codes.OK)
        return found

    async def follow(self, job_id: str) -> AsyncGenerator[JobUpdate]:
        """Updates up to the job's end, across broken connections and a restart of the studio."""
        last: str | None = None
        heard = time.monotonic()
        while True:
            try:
                async for update in self._stream(job_id, last):
                    heard = time.monotonic()
                    last = last if update.version is None else str(update.version)
                    yield update
                    if update.name in TERMINAL or update.data.get("status") in TERMINAL:
                        return
            except httpx.RequestError as error:
                if time.monotonic() - heard > self._patience:
                    raise self._unreachable(error) from None
            await asyncio.sleep(0.5)

    async def fetch(self, path: str, kind: type[T]) -> T:
        return await self._call("GET", path, kind)

    async def get(self, path: str) -> dict[str, Any]:
        return await self._call("GET", path, dict[str, Any])

    async def post(self, path: str, body: dict[str, Any], kind: type[T], key: str | None = None) -> T:
        """Safe to repeat, as its answer may be lost; with `key` in a later process too. Raises RefusedError."""
        return await self._call("POST", path, kind, json=body, headers={"Idempotency-Key": key or str(uuid4())})

    async def remove(self, path: str, kind: type[T]) -> T:
        return await self._call("DELETE", path, kind)

    async def upload(self, path: str, fields: dict[str, str], files: Mapping[str, BinaryIO], kind: type[T]) -> T:
        """Sends a form. The same one twice must be the same to the studio."""
        return await self._call("POST", path, kind, data=fields, files=dict(files), timeout=UPLOAD_SECONDS)

    async def find(self, path: str, kind: type[T], **parameters: str) -> T | None:
        """None where the studio has nothing more to give."""
        response = await self.send("GET", path, params=parameters)
        return None if response.status_code == httpx.codes.NO_CONTENT else self._decoded(response, kind)

    async def content(self, path: str) -> bytes:
        return (await self.send("GET", path)).content

    def address(self, path: str) -> str:
        """Where a browser finds it."""
        return self._url.rstrip("/") + path

    async def save(self, path: str, target: Path) -> None:
        """Writes the whole file or none."""
        partial = target.with_name(f".{target.name}.part")
        try:
            async with self._http.stream("GET", path) as response:
                await self._check(response)
                with partial.open("wb") as file:
                    async for chunk in response.aiter_bytes():
                        file.write(chunk)
            partial.replace(target)
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        except OSError as error:
            raise ClientError(f"{target} cannot be written: {error.strerror}.") from None
        finally:
            partial.unlink(missing_ok=True)

    async def _stream(self, job_id: str, last: str | None) -> AsyncIterator[JobUpdate]:
        headers = {} if last is None else {"Last-Event-ID": last}
        async with aconnect_sse(self._http, "GET", f"/jobs/{job_id}/events", headers=headers) as source:
            if source.response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                raise httpx.ReadError("the studio is not ready")
            if not source.response.is_success:
                await source.response.aread()
                if self._forgets(source.response):
                    raise httpx.ReadError("the studio has another log than it had")
            await self._check(source.response)
            async for event in source.aiter_sse():
                if not event.data:  # a heartbeat
                    continue
                version = int(event.id) if event.event != "progress" and event.id else None
                yield JobUpdate(event.event, version, msgspec.json.decode(event.data))

    async def _call(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        return self._decoded(await self.send(method, path, **options), kind)

    def _decoded(self, response: httpx.Response, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except UNREADABLE:
            raise self._foreign(response.status_code) from None

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        begin = time.monotonic()
        while True:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.RequestError as error:
                if not self._may_repeat(method, options) or time.monotonic() - begin > self._patience:
                    raise self._unreachable(error) from None
                await asyncio.sleep(0.5)
                continue
            except UnicodeEncodeError:
                raise ClientError("The request has bytes that are not UTF-8. Write it in UTF-8.") from None
            except ValueError as error:
                raise ClientError(f"The request cannot be written as JSON: {error}.") from None
            self._was_there = True
            if self._forgets(response):
                continue
            busy = response.status_code == httpx.codes.SERVICE_UNAVAILABLE
            if not busy or time.monotonic() - begin > self._patience:
                break
            await asyncio.sleep(1)
        await self._check(response)
        if position := response.headers.get("X-Event-Position"):
            # From now on the studio, whichever process of it answers, waits until it can show this.
            self._http.headers[POSITION] = position
        return response

    def _forgets(self, response: httpx.Response) -> bool:
        """Whether the position that was sent is of another log, and is sent no more: ask again."""
        if not _is_of_another_log(response):
            return False
        return self._http.headers.pop(POSITION, None) is not None

    def _may_repeat(self, method: str, options: Mapping[str, Any]) -> bool:
        """A studio that was there may be starting again. What never answered is none."""
        return self._was_there and (method != "POST" or "Idempotency-Key" in options.get("headers", {}))

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
            raise self._foreign(response.status_code)
        try:
            detail = msgspec.json.decode(await response.aread(), type=dict[str, Any])["detail"]
        except (*UNREADABLE, KeyError):
            raise self._foreign(response.status_code) from None
        raise RefusedError(str(detail), response.status_code)

    def _foreign(self, status: int) -> ClientError:
        return ClientError(
            f"What answers at {self._url} is no Text2Song studio: it answered {status}. "
            "Start one with `text2song up`, or name another with --url."
        )

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"No studio answers at {self._url} ({type(error).__name__}). "
            "Start one with `text2song up`, or name another with --url."
        )


def _is_of_another_log(response: httpx.Response) -> bool:
    """Whether the studio has never been where this client saw it: it was restored, or has begun anew."""
    if response.status_code != httpx.codes.BAD_REQUEST:
        return False
    try:
        return bool(msgspec.json.decode(response.content, type=dict[str, Any]).get("code") == "unknown_position")
    except UNREADABLE:
        return False


def _parsed(url: str) -> httpx.URL:
    """Raises ClientError for what no client can connect to."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        reason = str(error)
    else:
        if parsed.scheme not in {"http", "https"}:
            reason = f"{parsed.scheme!r} is neither http nor https"
        elif not parsed.host:
            reason = "it names no host"
        elif parsed.port is not None and not 1 <= parsed.port <= MAX_PORT:
            reason = f"port {parsed.port} is not from 1 to {MAX_PORT}"
        else:
            return parsed
    raise ClientError(f"{url!r} is no URL of a studio: {reason}. Write one such as http://127.0.0.1:8000.")
