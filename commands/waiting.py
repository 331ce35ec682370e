"""The views as commands see them in a process that answers nobody."""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from domain.ports import D, Position, Query, ReadStore, View

SHOWN_SECONDS: Final = 30.0


class Folded(Protocol):
    async def wait(self, positions: Iterable[Position], seconds: float) -> bool: ...


class StoredViews:
    """Waits for others to fold what this process has appended, where the tail of the log would show it at once."""

    def __init__(self, store: ReadStore, folded: Folded) -> None:
        self._store = store
        self._folded = folded

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        return await self._store.get(view, ids)

    async def find(self, view: View[D], query: Query) -> list[D]:
        return await self._store.find(view, query)

    async def count(self, view: View[D], query: Query) -> int:
        return await self._store.count(view, query)

    def expect(self, keys: Sequence[str], positions: Sequence[Position]) -> None:
        pass

    async def show(self, positions: Iterable[Position]) -> bool:
        return await self._folded.wait(positions, SHOWN_SECONDS)
