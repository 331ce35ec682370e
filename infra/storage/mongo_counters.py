"""Numbers that the processes of a cluster count together, in a collection of MongoDB that forgets them by itself."""

import asyncio
import inspect
from datetime import UTC, datetime
from typing import Any, Final, Self

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ReturnDocument, errors

from infra.storage.mongo import address_of, refusals, unusable

COLLECTION: Final = "counters"
SELECTION_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 5.0
TRIES: Final = 3


class MongoCounters:
    """A count needs no majority: one that is lost with its server lets a few requests more pass."""

    def __init__(self, uri: str, database: str) -> None:
        self._address = address_of(uri)
        try:
            self._client: Any = AsyncIOMotorClient(
                uri,
                serverSelectionTimeoutMS=int(1000 * SELECTION_SECONDS),
                connectTimeoutMS=int(1000 * SELECTION_SECONDS),
                timeoutMS=int(1000 * TIMEOUT_SECONDS),
                readPreference="primary",
                w=1,
            )
            self._collection = self._client[database][COLLECTION]
        except (errors.PyMongoError, ValueError, OSError) as error:
            raise unusable(self._address, error) from None

    @classmethod
    async def open(cls, uri: str, database: str) -> Self:
        """Raises AddressError for a URI that is none, and UnavailableError when the server cannot be reached."""
        self = cls(uri, database)
        try:
            with refusals(self._address):
                await self._collection.create_index("expires_at", expireAfterSeconds=0)
        except BaseException:
            await self.close()
            raise
        return self

    async def add(self, name: str, amount: int, expires_at: float) -> int:
        change = {"$inc": {"total": amount}, "$set": {"expires_at": datetime.fromtimestamp(expires_at, UTC)}}
        with refusals(self._address):
            for last in range(1, TRIES + 1):
                try:
                    found = await self._collection.find_one_and_update(
                        {"_id": name}, change, upsert=True, return_document=ReturnDocument.AFTER
                    )
                    return int(found["total"])
                except errors.DuplicateKeyError:
                    # Two made it at once: from now on it is there.
                    if last == TRIES:
                        raise
        raise AssertionError(name)

    async def close(self) -> None:
        if inspect.isawaitable(closing := await asyncio.to_thread(self._client.close)):
            await closing
