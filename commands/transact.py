"""A command: load the aggregate, decide, append what was decided."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol
from uuid import NAMESPACE_URL, uuid5

from msgspec import Struct

from domain.aggregates import AGGREGATES
from domain.errors import NotFoundError, UnavailableError
from domain.events import Erased, Event, Recorded
from domain.journal import Journal
from domain.ports import D, Position, Reader, View

LOCAL: Final = "local"  # whose every request is while nobody has to say who they are


class Receipt(Struct, frozen=True):
    """The events that a command appended, their positions, and the `event_id` of the last one.

    A command that appends nothing has no `event_id`, and gives the position of the aggregate it decided by.
    """

    id: str
    positions: tuple[Position, ...] = ()
    event_id: str | None = None
    events: tuple[Event | Erased, ...] = ()


class Views(Reader, Protocol):
    """The views of a process that appends: it reads what it has written."""

    def expect(self, keys: Sequence[str], positions: Sequence[Position]) -> None:
        """Says what this process has appended about the aggregates of those keys."""

    async def show(self, positions: Iterable[Position]) -> bool:
        """Whether documents include the events at those positions within a short time."""


def identify(journal: Journal, kind: str, owner: str, idempotency_key: str | None) -> str:
    """A new aggregate's id: the same for every request of the owner under the key, even after a crash."""
    if idempotency_key is None:
        return journal.new_id()
    return str(uuid5(NAMESPACE_URL, f"{kind}:{owner}:{idempotency_key}"))


async def transact(
    journal: Journal, views: Views, view: View[D], id_: str, decide: Callable[[D | None], Sequence[Event | Erased]]
) -> Receipt:
    """Raises what `decide` raises, and what Journal.append does."""
    document = await load(views, view, id_)
    return await append(journal, views, id_, decide(document), seen(view, document))


async def load(views: Reader, view: View[D], id_: str) -> D | None:
    return (await views.get(view, [id_])).get(id_)


async def existing(views: Reader, view: View[D], id_: str, what: str) -> D:
    """Raises NotFoundError, which says what is not there."""
    if (document := await load(views, view, id_)) is None:
        raise NotFoundError(what, id_)
    return document


def seen(view: View[Any], aggregate: Any) -> tuple[Position, ...]:
    """Where the aggregate that was decided by stands."""
    return () if aggregate is None else (Position(view.name, aggregate.partition, aggregate.position),)


async def append(
    journal: Journal,
    views: Views,
    id_: str,
    events: Sequence[Event | Erased],
    otherwise: tuple[Position, ...] = (),
) -> Receipt:
    """Without events nothing is appended, and the receipt says `otherwise`."""
    if not events:
        return Receipt(id_, otherwise)
    event_id = journal.new_id()
    positions = tuple(await journal.append(*events, event_id=event_id))
    views.expect([event.key for event in events], positions)
    return Receipt(id_, positions, event_id, tuple(events))


async def read_back(views: Views, positions: Iterable[Position]) -> None:
    """Raises UnavailableError while the documents do not include the events at those positions."""
    if not await views.show(positions):
        raise UnavailableError(
            "The request was accepted, and has not been read back from the log yet. Send it again under the same "
            "Idempotency-Key to hear what became of it."
        )


async def begun(journal: Journal, views: Views, view: View[D], receipt: Receipt, kind: str) -> D:
    """What the receipt's events began, also where it cannot be read back yet."""
    if await views.show(receipt.positions) or not receipt.events:
        return await existing(views, view, receipt.id, kind)
    document: Any = None
    for event, at in zip(receipt.events, receipt.positions, strict=True):
        recorded = Recorded(at, receipt.id, receipt.event_id or "", journal.now(), event)
        document = AGGREGATES[view.name].apply(document, recorded)
    found: D = document
    return found


async def settle(
    views: Views, view: View[D], receipt: Receipt, idempotency_key: str | None, decide: Callable[[D | None], Any]
) -> Receipt:
    """The receipt, once it is known whose request holds the key: another one may have landed first.

    `decide` then raises what it makes of that one. Raises as `read_back` does.
    """
    if idempotency_key is not None:
        await read_back(views, receipt.positions)
        decide(await load(views, view, receipt.id))
    return receipt
