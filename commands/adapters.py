from collections.abc import Awaitable, Callable

from commands.transact import Receipt, Views, append, load, read_back, seen, transact
from domain import adapters
from domain.adapters import ADAPTERS, AdapterChanges
from domain.errors import ConflictError
from domain.events.adapters import AdapterRegistered
from domain.journal import Journal


async def register(
    journal: Journal,
    views: Views,
    registration: AdapterRegistered,
    store: Callable[[], Awaitable[None]],
    discard: Callable[[], Awaitable[None]],
) -> Receipt:
    """`store` puts the files in their place before the event is appended; `discard` removes them where another adapter
    of the name and version was registered at the same time. Raises ConflictError, also for one that was there before.
    """
    id_ = registration.adapter_id
    adapter = await load(views, ADAPTERS, id_)
    events = adapters.register(adapter, registration)
    if events:
        await store()
    receipt = await append(journal, views, id_, events, seen(ADAPTERS, adapter))
    await read_back(views, receipt.positions)
    try:
        adapters.register(await load(views, ADAPTERS, id_), registration)
    except ConflictError:
        await discard()
        raise
    return receipt


async def change(journal: Journal, views: Views, id_: str, changes: AdapterChanges) -> Receipt:
    """Raises NotFoundError and InvalidError."""
    return await transact(journal, views, ADAPTERS, id_, lambda adapter: adapters.change(adapter, id_, changes))
