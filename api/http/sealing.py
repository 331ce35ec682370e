"""Trial ids: authenticated, and readable by this studio's processes alone."""

import asyncio
import hashlib
import os
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from domain.errors import DamagedError, NotFoundError
from domain.events.ab_tests import Arm
from domain.ports import ObjectStore
from domain.trials import SECRET, Trial

SECRET_BYTES: Final = 32
FORMAT: Final = b"trial 1"
# Pair, number, arm on the left, arm of both sides: of one length for every trial, as the length of an id is seen.
FIELDS: Final = struct.Struct(">HHcc")
SHOWN: Final = 40  # characters of an id that is no trial's


class Seal:
    """`key` is for what follows from the same secret in other ways, such as the order of trials."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESSIV(_derived(secret, b"trial ids"))
        self._marks = _derived(secret, b"marks")
        self.key = _derived(secret, b"order of trials")

    def seal(self, trial: Trial) -> str:
        """Text that fits a URL. The same trial has the same id."""
        fields = FIELDS.pack(trial.pair, trial.number, trial.left.encode(), (trial.catch or "-").encode())
        content = fields + trial.ab_test_id.encode() + b"\0" + trial.voter.encode()
        return urlsafe_b64encode(self._cipher.encrypt(content, [FORMAT])).rstrip(b"=").decode()

    def open(self, text: str) -> Trial:
        """Raises NotFoundError for any text that this studio has not sealed."""
        try:
            sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            content = self._cipher.decrypt(sealed, [FORMAT])
        except (ValueError, InvalidTag):
            raise unknown(text) from None
        pair, number, left, catch = FIELDS.unpack_from(content)
        ab_test_id, _, voter = content[FIELDS.size :].partition(b"\0")
        trial = Trial(
            ab_test_id=ab_test_id.decode(),
            pair=pair,
            voter=voter.decode(),
            left=_arm(left),
            catch=None if catch == b"-" else _arm(catch),
            number=number,
        )
        # The decoder passes over characters that mean nothing, and a trial has one id.
        if self.seal(trial) != text:
            raise unknown(text)
        return trial

    def mark(self, *parts: str) -> str:
        """A name for the parts that tells nothing about them, and that nobody else can make."""
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16, key=self._marks).hexdigest()


class Seals:
    """Holds the studio's one seal, of a secret that all its processes share as an object."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._seal: Seal | None = None
        self._reading = asyncio.Lock()

    async def get(self) -> Seal:
        """The secret is made when it is first needed. Raises UnavailableError, and DamagedError where it is cut."""
        async with self._reading:
            if self._seal is None:
                self._seal = Seal(await self._secret())
            return self._seal

    async def _secret(self) -> bytes:
        if await self._objects.stat(SECRET) is None:
            # Of several processes that make one at once, the first wins, and all read that one.
            await self._objects.put(SECRET, os.urandom(SECRET_BYTES), replace=False)
        secret = b"".join([chunk async for chunk in self._objects.read(SECRET)])
        if len(secret) != SECRET_BYTES:
            raise DamagedError(
                f"The object {SECRET!r} is damaged: it has {len(secret)} bytes, not {SECRET_BYTES}. Put a sound copy "
                "in its place, or delete it: trials that are open then end, and their voters get new ones."
            )
        return secret


def unknown(text: str) -> NotFoundError:
    return NotFoundError("trial", text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(purpose, key=secret).digest()


def _arm(letter: bytes) -> Arm:
    return "A" if letter == b"A" else "B"
