"""How many jobs of one owner may be open at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, get_args

from msgspec import Struct, field

from api.http.access import Caller
from api.http.refusals import TooManyError
from domain.jobs import JOBS, OPEN, Status
from domain.ports import Position, Query, Reader
from projections.freshness.folded import Folded

USUAL: Final = 1_000
WAIT_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 10
# Of what is free, so much is given out before the open jobs are counted anew.
CREDIT_SHARE: Final = 10


class Room(Struct):
    """`positions` are those of what was submitted, none where nothing was."""

    positions: Sequence[Position] = ()


class _Owner(Struct):
    """`credit` may be taken without counting; `reserved` are being submitted; `pending` stand in no view yet."""

    credit: int = 0
    reserved: int = 0
    pending: list[tuple[Position, int]] = field(default_factory=list)
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quota:
    """For owners of keys. Several processes may together exceed it, by what each has as credit."""

    def __init__(self, store: Reader, folded: Folded, limit: int = USUAL) -> None:
        self._store = store
        self._folded = folded
        self._limit = limit
        self._owners: dict[str, _Owner] = {}

    @asynccontextmanager
    async def room(self, caller: Caller, count: int, is_retry: Callable[[], Awaitable[bool]]) -> AsyncIterator[Room]:
        """Around the submission of so many jobs. A retry needs no room. Raises TooManyError naming the limit."""
        if caller.owner is None:
            yield Room()
            return
        room, owner = Room(), self._owners.setdefault(caller.owner, _Owner())
        async with owner.counting:
            if owner.credit >= count:
                owner.credit -= count
            elif not await self._fits(caller.owner, owner, count, is_retry):
                count = 0
            owner.reserved += count
        try:
            yield room
        finally:
            owner.reserved -= count
            if room.positions and count:
                owner.pending.append((room.positions[-1], count))

    async def _fits(self, name: str, owner: _Owner, count: int, is_retry: Callable[[], Awaitable[bool]]) -> bool:
        owner.credit = 0
        found = await self._open(name, owner)
        if found + count > self._limit:
            # What was folded while the store was asked has been counted twice.
            await self._folded.wait([at for at, _ in owner.pending], WAIT_SECONDS)
            found = await self._open(name, owner)
        if found + count <= self._limit:
            owner.credit = (self._limit - found - count) // CREDIT_SHARE
            return True
        if await is_retry():
            return False
        raise TooManyError(
            "queue_full",
            f"{name!r} has {found:,} open jobs and asks for {count:,} more; the limit is {self._limit:,}. "
            "Wait until some have ended, or cancel some.",
            RETRY_SECONDS,
        )

    async def _open(self, name: str, owner: _Owner) -> int:
        owner.pending = [each for each in owner.pending if not self._is_folded(each[0])]
        waiting = owner.reserved + sum(count for _, count in owner.pending)
        among = {"user_status": [f"{status} {name}" for status in get_args(Status) if status in OPEN]}
        return waiting + await self._store.count(JOBS, Query(among=among))

    def _is_folded(self, at: Position) -> bool:
        return self._folded.offsets.get((at.topic, at.partition), 0) > at.offset
