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
    """`store` puts the files in their place before the event is appended, also where one that was registered before has
    lost them; `discard` removes them where another adapter of the name and version, with other files, was registered at
    the same time. Raises ConflictError, also for one that was there before.
    """
    id_ = registration.adapter_id
    adapter = await load(views, ADAPTERS, id_)
    events = adapters.register(adapter, registration)
    await store()
    receipt = await append(journal, views, id_, events, seen(ADAPTERS, adapter))
    await read_back(views, receipt.positions)
    there = await load(views, ADAPTERS, id_)
    try:
        adapters.register(there, registration)
    except ConflictError:
        if there is None or there.request.storage_path != registration.storage_path:
            await discard()
        raise
    return receipt


async def change(journal: Journal, views: Views, id_: str, changes: AdapterChanges) -> Receipt:
    """Raises NotFoundError and InvalidError."""
    return await transact(journal, views, ADAPTERS, id_, lambda adapter: adapters.change(adapter, id_, changes))
