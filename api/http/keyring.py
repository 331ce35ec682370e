"""The keys as this process knows them: read from the log at the start, and kept up with it."""

import asyncio
import hmac
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

from api.http.access import ANYBODY, Caller
from api.http.refusals import UnauthorizedError
from commands.keys import logged
from domain import keys
from domain.aggregates import AGGREGATES
from domain.events import Recorded
from domain.keys import KEYS, Key
from domain.ports import EventLog, TopicPartition

HEADERS: Final = frozenset({b"x-api-key", b"authorization"})
SCHEME: Final = "bearer "
NOBODYS: Final = keys.digest("")  # what a secret is compared with where there is no such key
LONGEST_WAIT: Final = 3_600.0  # seconds
ADVICE: Final = "Send one as X-API-Key or as Authorization: Bearer; `text2song keys create` makes one."


class Keyring:
    """`now` gives the time as the log writes it."""

    def __init__(self, now: Callable[[], str]) -> None:
        self._now = now
        self._keys: dict[str, Key] = {}
        self._callers: dict[str, Caller] = {}
        self._waiting: dict[str | None, set[asyncio.Event]] = {}

    async def load(self, log: EventLog, ends: Mapping[TopicPartition, int]) -> None:
        """What lies before those offsets. Raises as EventLog.read does."""
        for key in (await logged(log, ends)).values():
            self._put(key)

    def take(self, recorded: Recorded) -> None:
        before = self._keys.get(recorded.key)
        after = AGGREGATES[KEYS.name].apply(before, recorded)
        if after is not None and after is not before:
            self._put(after)
            for event in [*self._waiting.get(after.id, ()), *self._waiting.get(None, ())]:
                event.set()

    @property
    def is_open(self) -> bool:
        """Whether no key was ever made: one that was revoked opens the studio to nobody."""
        return not self._keys

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Raises UnauthorizedError. An unknown key and a wrong secret are compared and answered alike."""
        if not self._keys:
            return ANYBODY
        given = _given(headers)
        key_id, secret = keys.parts(given) or ("", "")
        key = self._keys.get(key_id)
        is_right = hmac.compare_digest(key.request.secret_sha256 if key else NOBODYS, keys.digest(secret))
        if key is None or not is_right or not secret:
            raise UnauthorizedError("unauthorized", f"There is no such key. {ADVICE}")
        if not self._opens(key):
            gone = f"was revoked at {key.revoked_at}" if key.revoked_at else f"expired at {key.request.expires_at}"
            raise UnauthorizedError("unauthorized", f"This key {gone}. {ADVICE}")
        return self._callers[key_id]

    async def until_void(self, caller: Caller) -> None:
        """Until the caller would be refused, because the key was revoked, has expired, or has become necessary."""
        event = asyncio.Event()
        waiting = self._waiting.setdefault(caller.key_id, set())
        waiting.add(event)
        try:
            while self._is_valid(caller):
                event.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rest(caller)):
                        await event.wait()
        finally:
            waiting.discard(event)
            if not waiting and self._waiting.get(caller.key_id) is waiting:
                del self._waiting[caller.key_id]

    def _is_valid(self, caller: Caller) -> bool:
        if caller.key_id is None:
            return self.is_open
        return self._opens(self._keys[caller.key_id])

    def _opens(self, key: Key) -> bool:
        # The time costs as much as all the rest, and few keys expire.
        return key.is_valid(self._now() if key.request.expires_at else "")

    def _rest(self, caller: Caller) -> float:
        """Seconds until it expires, at most."""
        expires_at = self._keys[caller.key_id].request.expires_at if caller.key_id else None
        if expires_at is None:
            return LONGEST_WAIT
        rest = datetime.fromisoformat(expires_at) - datetime.fromisoformat(self._now())
        return min(max(0.0, rest.total_seconds()), LONGEST_WAIT)

    def _put(self, key: Key) -> None:
        self._keys[key.id] = key
        self._callers[key.id] = Caller.of(key)


def _given(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The key that a request sends, which may be no key. Raises UnauthorizedError for none, and for more than one."""
    found = [(name, content.decode("latin-1").strip()) for name, content in headers if name in HEADERS]
    if not found:
        raise UnauthorizedError("unauthorized", f"This studio needs a key. {ADVICE}")
    if len(found) > 1:
        raise UnauthorizedError("unauthorized", f"The request has {len(found)} keys; send one of them.")
    [(name, text)] = found
    if name == b"authorization":
        if text[: len(SCHEME)].lower() != SCHEME:
            raise UnauthorizedError("unauthorized", f"The Authorization header is no bearer key. {ADVICE}")
        text = text[len(SCHEME) :].strip()
    return text
