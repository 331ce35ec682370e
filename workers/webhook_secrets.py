"""The secrets that sign webhooks: each owner of jobs has one, and for a day after a rotation the one before it too."""

import os
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain.errors import DamagedError
from domain.events import Moment, timestamp
from domain.ports import SECRETS, ObjectStore

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
OVERLAP: Final = timedelta(days=1)
KEPT: Final = 5


class Secret(Struct, frozen=True, kw_only=True):
    """`until` is when it stops signing, null for the one that is in use."""

    secret: str
    created_at: Moment
    until: Moment | None = None


class WebhookSecrets:
    """`now` gives ISO 8601 in UTC with microseconds."""

    def __init__(self, objects: ObjectStore, now: Callable[[], str]) -> None:
        self._objects = objects
        self._now = now

    async def get(self, owner: str | None) -> list[Secret]:
        """Those that sign now, the one in use first; it is made when it is first needed.

        Raises UnavailableError, and DamagedError where the object is cut.
        """
        if await self._objects.stat(_key(owner)) is None:
            # Of several processes that make one at once, the first wins, and all read that one.
            await self._objects.put(_key(owner), msgspec.json.encode([self._new()]), replace=False)
        return [secret for secret in await self._read(owner) if secret.until is None or secret.until > self._now()]

    async def rotate(self, owner: str | None) -> list[Secret]:
        """Puts a new one in use. Raises as `get` does."""
        until = timestamp(datetime.fromisoformat(self._now()) + OVERLAP)
        former = [replace(secret, until=secret.until or until) for secret in await self.get(owner)]
        await self._objects.put(_key(owner), msgspec.json.encode([self._new(), *former][:KEPT]))
        return await self.get(owner)

    def _new(self) -> Secret:
        return Secret(secret=PREFIX + b64encode(os.urandom(SECRET_BYTES)).decode(), created_at=self._now())

    async def _read(self, owner: str | None) -> list[Secret]:
        key = _key(owner)
        stored = b"".join([chunk async for chunk in self._objects.read(key)])
        try:
            found = msgspec.json.decode(stored, type=list[Secret])
        except msgspec.MsgspecError:
            found = []
        if not found:
            raise DamagedError(
                f"The object {key!r}, which holds secrets of webhooks, is damaged. Put a sound copy in its place, or "
                "delete it: then a new secret is made, and receivers have to be given that."
            )
        return found


def _key(owner: str | None) -> str:
    """None is the owner of jobs that name no user."""
    return f"{SECRETS}webhooks/{'unowned' if owner is None else sha256(owner.encode()).hexdigest()[:32]}"
