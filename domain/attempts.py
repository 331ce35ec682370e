"""How attempts change a job, a dataset, a training or a webhook: each is a `thing` here. Every claim is an event.

`running` is the thing's status during an attempt; `what` is its name in refusals, such as "job".
"""

from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from msgspec.structs import replace

MAX_FAILURES: Final = 3
MAX_LOST: Final = 5


class Attempted(Protocol):
    """`failures` counts attempts that reported an error, `lost` the latest ones, in a row, that ended without one."""

    @property
    def status(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def lost(self) -> int: ...


A = TypeVar("A", bound=Attempted)


def started(thing: A, what: str, running: str, attempt: int, worker_id: str, **changes: Any) -> A | str:
    """The claimed thing, with the other `changes` made too, or why the claim is refused."""
    if thing.status not in {"queued", running}:
        return f"the {what} is {thing.status}"
    if attempt != thing.attempt + 1:
        return f"attempt {attempt} is not the next one, attempt {thing.attempt} is on record"
    lost = thing.lost + 1 if thing.status == running else thing.lost
    claimed = {"status": running, "attempt": attempt, "worker_id": worker_id, "lost": lost}
    return _replace(thing, **claimed, retry_at=None, error=None, **changes)


def rest(now: str, retry_at: str) -> float:
    """The seconds from `now` to `retry_at`. 0 for a date such as February 30, which the pattern lets pass."""
    try:
        return (datetime.fromisoformat(retry_at) - datetime.fromisoformat(now)).total_seconds()
    except ValueError:
        return 0.0


def not_running(thing: Attempted, what: str, running: str, attempt: int) -> str | None:
    """Why an event of this attempt is refused; None if it is not."""
    if thing.status != running:
        return f"the {what} is {thing.status}"
    return None if attempt == thing.attempt else f"attempt {attempt} is over, attempt {thing.attempt} is running"


def requeued(thing: A, error: str, retry_at: str, *, released: bool) -> A:
    """The thing back in the queue. An attempt that was `released` is no failure, and the next one need not wait."""
    if released:
        return _replace(thing, status="queued", error=error, retry_at=None)
    return _replace(thing, status="queued", error=error, retry_at=retry_at, failures=thing.failures + 1, lost=0)


def asked_to_stop(thing: A, what: str, now: str) -> A | str:
    """The thing once its cancellation was asked for, or why it is too late."""
    return f"the {what} is {thing.status}" if thing.status in {"completed", "failed"} else stopped(thing, now)


def cancelled(thing: A, what: str, now: str) -> A | str:
    """The thing once its unfinished results were removed, or why there was nothing to cancel."""
    if thing.status == "cancelling":
        return _replace(thing, status="cancelled", completed_at=now)
    return thing if thing.status == "cancelled" else f"the {what} is {thing.status}"


def stopped(thing: A, now: str) -> A:
    """Cancelled at once if no attempt was made, else cancelling: unfinished results have to be removed first."""
    match thing.status:
        case "queued" if thing.attempt == 0:
            return _replace(thing, status="cancelled", completed_at=now)
        case "queued" | "processing":
            return _replace(thing, status="cancelling")
        case _:
            return thing


def _replace(thing: A, **changes: Any) -> A:
    changed: Any = thing
    replaced: A = replace(changed, **changes)
    return replaced
