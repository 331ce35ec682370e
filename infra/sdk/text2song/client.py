"""Programs at a running studio: `Studio` for plain code and notebooks, `AsyncStudio` for asyncio.

Both repeat a request whose answer was lost, under the same idempotency key, so that nothing is made twice.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

from anyio.from_thread import start_blocking_portal

from text2song.bodies import Comparison, Feedback, Job, Melody, Sample, Verdict
from text2song.connection import (
    ClientError,
    Connection,
    JobReceipt,
    JobUpdate,
    RefusedError,
    UnreachableError,
)

__all__ = [
    "AsyncStudio",
    "ClientError",
    "Comparison",
    "Feedback",
    "Job",
    "JobUpdate",
    "Melody",
    "RefusedError",
    "Sample",
    "Studio",
    "UnreachableError",
]

T = TypeVar("T")


class AsyncStudio(Connection):
    """To be entered by `async with`. Every method raises UnreachableError where no studio answers, and RefusedError,
    which has the studio's own sentence and the HTTP status, where it says no.
    """

    async def generate(self, prompt: str, *, key: str | None = None, **options: Any) -> Job:
        """Asks for a job, and returns it while it waits. `options` are those of `POST /generate`, such as `duration`,
        `num_samples`, `seed` and `adapter_id`. The same `key` always means the same job, also in a later process.
        """
        receipt = await self.submit({"prompt": prompt, **options}, key or str(uuid4()))
        return await self.job(receipt.job_id)

    async def submit(self, request: Mapping[str, Any], idempotency_key: str) -> JobReceipt:
        return await self.post("/generate", dict(request), JobReceipt, idempotency_key)

    async def job(self, job_id: str) -> Job:
        return await self.fetch(f"/jobs/{_part(job_id)}", Job)

    async def wait(self, job_id: str, on_update: Callable[[JobUpdate], None] | None = None) -> Job:
        """Until the job is over, however it ended, also across a restart of the studio."""
        async with aclosing(self.follow(job_id)) as updates:
            async for update in updates:
                if on_update is not None:
                    on_update(update)
        return await self.job(job_id)

    async def cancel(self, job_id: str) -> None:
        """Raises RefusedError for a job that is over."""
        await self.send("DELETE", f"/generate/{_part(job_id)}")

    async def delete(self, job_id: str) -> None:
        """With its samples and all feedback on them."""
        await self.send("DELETE", f"/jobs/{_part(job_id)}")

    async def upload_melody(self, path: Path) -> Melody:
        """Stores a clip; its id is for `melody_from` of `generate`. Raises ClientError for what cannot be read."""
        try:
            with path.open("rb") as file:
                return await self.upload("/melodies", {}, {"file": file}, Melody)
        except OSError as error:
            raise ClientError(f"{path} cannot be read: {error.strerror}.") from None

    async def erase_melody(self, melody_id: str) -> None:
        await self.send("DELETE", f"/melodies/{_part(melody_id)}")

    async def sample(self, sample_id: str) -> Sample:
        return await self.fetch(f"/audio/{_part(sample_id)}", Sample)

    async def download(self, sample_id: str, target: Path, output_format: str | None = None) -> None:
        """Writes the whole file or none: `wav`, `flac`, `mp3` or `ogg`, by default as the file's name ends."""
        form = output_format or target.suffix.removeprefix(".").lower() or "wav"
        await self.save(f"/audio/{_part(sample_id)}/stream?format={quote(form, safe='')}", target)

    async def rate(
        self,
        sample_id: str,
        rating: float | None = None,
        *,
        preferred_over: str | None = None,
        verdict: Verdict | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        key: str | None = None,
    ) -> Feedback:
        """What a listener thinks: a rating of 1 to 5, a preference over another sample of the prompt, tags, notes."""
        given = {"rating": rating, "preferred_over": preferred_over, "verdict": verdict, "notes": notes}
        body = {name: value for name, value in given.items() if value is not None}
        return await self.post("/feedback", {"audio_id": sample_id, "tags": [*tags], **body}, Feedback, key)

    async def compare(self, *sample_ids: str) -> Comparison:
        """2 to 16 samples side by side, in the order given."""
        return await self.fetch(f"/audio/compare?ids={','.join(map(_part, sample_ids))}", Comparison)


class Studio:
    """`AsyncStudio` for code without an event loop, and for notebooks, whose own loop runs already.

    To be entered by `with`. `url` is the studio's, by default that of TEXT2SONG_URL, else a studio on this machine;
    `key` is an API key, by default that of TEXT2SONG_KEY.
    """

    def __init__(self, url: str | None = None, *, key: str | None = None) -> None:
        self._url = url
        self._key = key
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            self._studio = stack.enter_context(
                self._portal.wrap_async_context_manager(AsyncStudio(self._url, key=self._key))
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def generate(self, prompt: str, *, key: str | None = None, **options: Any) -> Job:
        return self._run(lambda: self._studio.generate(prompt, key=key, **options))

    def job(self, job_id: str) -> Job:
        return self._run(lambda: self._studio.job(job_id))

    def wait(self, job_id: str, on_update: Callable[[JobUpdate], None] | None = None) -> Job:
        """`on_update` is called in another thread."""
        return self._run(lambda: self._studio.wait(job_id, on_update))

    def follow(self, job_id: str) -> Iterator[JobUpdate]:
        updates = self._studio.follow(job_id)
        try:
            while (update := self._run(lambda: _next(updates))) is not None:
                yield update
        finally:
            self._run(updates.aclose)

    def cancel(self, job_id: str) -> None:
        self._run(lambda: self._studio.cancel(job_id))

    def delete(self, job_id: str) -> None:
        self._run(lambda: self._studio.delete(job_id))

    def upload_melody(self, path: Path | str) -> Melody:
        return self._run(lambda: self._studio.upload_melody(Path(path)))

    def erase_melody(self, melody_id: str) -> None:
        self._run(lambda: self._studio.erase_melody(melody_id))

    def sample(self, sample_id: str) -> Sample:
        return self._run(lambda: self._studio.sample(sample_id))

    def download(self, sample_id: str, target: Path | str, output_format: str | None = None) -> None:
        self._run(lambda: self._studio.download(sample_id, Path(target), output_format))

    def rate(self, sample_id: str, rating: float | None = None, **options: Any) -> Feedback:
        return self._run(lambda: self._studio.rate(sample_id, rating, **options))

    def compare(self, *sample_ids: str) -> Comparison:
        return self._run(lambda: self._studio.compare(*sample_ids))

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        return self._portal.call(call)


async def _next(updates: AsyncIterator[JobUpdate]) -> JobUpdate | None:
    return await anext(updates, None)


def _part(name: str) -> str:
    """A name as a part of a path, whatever is in it."""
    return quote(name, safe="")
