"""The work on one kind of thing, as claims ask for it: generation is one, training and dataset building are others."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from domain.correlation import Correlation
from domain.errors import Text2SongError
from domain.events import Event
from domain.events.progress import WorkerAlive
from domain.ports import Document, View


class Claimable(Document, Protocol):
    """`is_running` while an attempt holds it, `is_stopping` while its leftovers are still to be removed."""

    @property
    def is_open(self) -> bool: ...
    @property
    def is_running(self) -> bool: ...
    @property
    def is_stopping(self) -> bool: ...
    @property
    def attempt(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def worker_id(self) -> str | None: ...
    @property
    def retry_at(self) -> str | None: ...
    @property
    def correlation(self) -> Correlation | None: ...


C = TypeVar("C", bound=Claimable)


class AttemptError(Text2SongError):
    """An attempt has failed. `transient` says whether another can help; the message is for the person who asked."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class BrokenError(Text2SongError):
    """The worker itself cannot work, whatever the thing: its machine, its device or its libraries are at fault."""


class Run(Generic[C]):
    """An attempt in hand: the thing as it was claimed, and as the log has it now."""

    def __init__(self, claimed: C, append: Callable[[Event], Awaitable[None]]) -> None:
        self.claimed = claimed
        self.current = claimed
        self._task: asyncio.Task[None] | None = None
        self._append = append

    @property
    def is_held(self) -> bool:
        return self.current.is_running and self.current.attempt == self.claimed.attempt

    async def append(self, event: Event) -> None:
        """Returns once the event is folded."""
        await self._append(event)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Cancelled at once where the thing was taken away since it was claimed."""
        self._task = asyncio.create_task(work)
        if not self.is_held:
            self.stop()
        return self._task

    def stop(self) -> None:
        """Once: a second cancel would break into the clean-up that the first one set off."""
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()


class Trade(Protocol[C]):
    """The work on one kind of thing. Its view bears the topic's name and has a filter `open`."""

    @property
    def view(self) -> View[C]: ...

    @property
    def span(self) -> str:
        """The name of an attempt in traces."""

    def job_id(self, thing: C) -> str | None:
        """The job that it is about, for the log."""

    def alive(self, worker_id: str, state: str) -> WorkerAlive: ...

    def urgency(self, thing: C) -> Any:
        """A sort key that differs for any two: the smallest is run first."""

    def size(self, thing: C) -> float:
        """How much of a worker's capacity it takes while it runs; infinite for one that has to run alone."""

    def is_able(self, thing: C) -> bool:
        """Whether this worker can ever run it. It may have to claim one that it cannot run, to give it back."""

    def start(self, thing: C, worker_id: str) -> Event:
        """The claim."""

    def release(self, thing: C, now: str, why: str) -> Event:
        """Gives the attempt back; it does not count."""

    def give_up(self, thing: C) -> Event | None:
        """The event that ends a thing which has cost too many workers, or None."""

    def fail(self, thing: C, error: str, retry_at: str | None) -> Event:
        """`retry_at` None says that trying again cannot help."""

    async def perform(self, run: Run[C]) -> Event:
        """Carries the attempt out and returns the event that completes it.

        Raises AttemptError for a fault of the thing, and BrokenError for one of the worker.
        """

    async def check(self) -> None:
        """Finds out whether the worker can work at all. Raises BrokenError."""

    async def tidy(self, thing: C, attempt: int) -> None:
        """Removes leftovers of this attempt and earlier ones that no event speaks of. A later attempt is another's."""

    async def cancel(self, thing: C, worker_id: str) -> Event:
        """Removes the leftovers of a thing that is stopping, and returns the event that says so."""
