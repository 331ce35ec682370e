"""The studio's HTTP API as the command line uses it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
from httpx_sse import aconnect_sse
from msgspec import Struct

from domain.errors import Text2SongError

PROXY_FREE: Final[dict[str, httpx.AsyncBaseTransport | None]] = {
    "all://127.0.0.1": None,
    "all://localhost": None,
    "all://[::1]": None,
}
PATIENCE_SECONDS: Final = 30.0
TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "deleted"})


class ClientError(Text2SongError):
    """The studio refused, or is not there."""


class JobUpdate(Struct, frozen=True):
    """`name` is that of the server-sent event, `version` the job's; None for progress, which is no fact."""

    name: str
    version: int | None
    data: dict[str, Any]


class StudioClient:
    def __init__(self, url: str) -> None:
        self._url = url if "://" in url else f"http://{url}"
        try:
            self._http = httpx.AsyncClient(base_url=self._url, timeout=httpx.Timeout(30.0), mounts=PROXY_FREE)
        except httpx.InvalidURL as error:
            raise ClientError(f"{url!r} is no URL: {error}. Write one such as http://127.0.0.1:8000.") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def submit(self, request: dict[str, Any], idempotency_key: str) -> str:
        """The job's id; the key makes a repeat the same job."""
        answer = await self._call("POST", "/generate", json=request, headers={"Idempotency-Key": idempotency_key})
        return str(answer["job_id"])

    async def follow(self, job_id: str) -> AsyncIterator[JobUpdate]:
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
            except httpx.TransportError as error:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise self._unreachable(error) from None
            await asyncio.sleep(0.5)

    async def sample(self, sample_id: str) -> dict[str, Any]:
        return await self._call("GET", f"/audio/{sample_id}")

    async def get(self, path: str) -> dict[str, Any]:
        return await self._call("GET", path)

    async def download(self, sample_id: str, output_format: str, target: Path) -> None:
        """Writes the whole file or none."""
        partial = target.with_name(f".{target.name}.part")
        try:
            async with self._http.stream(
                "GET", f"/audio/{sample_id}/stream", params={"format": output_format}
            ) as response:
                await self._check(response)
                with partial.open("wb") as file:
                    async for chunk in response.aiter_bytes():
                        file.write(chunk)
            partial.replace(target)
        except httpx.TransportError as error:
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
            await self._check(source.response)
            async for event in source.aiter_sse():
                if not event.data:  # a heartbeat
                    continue
                version = int(event.id) if event.event != "progress" and event.id else None
                yield JobUpdate(event.event, version, msgspec.json.decode(event.data))

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        begin = time.monotonic()
        while True:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                raise self._unreachable(error) from None
            except ValueError as error:
                raise ClientError(f"The request cannot be written as JSON: {error}.") from None
            busy = response.status_code == httpx.codes.SERVICE_UNAVAILABLE
            if not busy or time.monotonic() - begin > PATIENCE_SECONDS:
                break
            await asyncio.sleep(1)
        await self._check(response)
        if position := response.headers.get("X-Event-Position"):
            # From now on the studio, whichever process of it answers, waits until it can show this.
            self._http.headers["If-Event-Position"] = position
        return msgspec.json.decode(response.content, type=dict[str, Any])

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        try:
            detail = msgspec.json.decode(await response.aread(), type=dict[str, Any])["detail"]
        except (msgspec.MsgspecError, KeyError):
            detail = f"{self._url} answered {response.status_code}; is it a Text2Song studio?"
        raise ClientError(str(detail))

    def _unreachable(self, error: Exception) -> ClientError:
        return ClientError(
            f"No studio answers at {self._url} ({type(error).__name__}). "
            "Start one with `text2song up`, or name another with --url."
        )
