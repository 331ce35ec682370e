"""What can go wrong, in words for the person who asked."""

from collections.abc import Sequence

from msgspec import Struct


class Fault(Struct, frozen=True):
    """One thing wrong with a request; `pointer` is an RFC 6901 JSON pointer into its body."""

    pointer: str
    detail: str


class Text2SongError(Exception):
    """Every error this project raises on purpose."""


class InvalidError(Text2SongError):
    """The request cannot be carried out as written; nothing was appended."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(fault.detail for fault in faults))
        self.faults = tuple(faults)


class NotFoundError(Text2SongError):
    def __init__(self, kind: str, key: str, *others: str) -> None:
        """`others` are the rest of what was asked for and is not there."""
        *first, last = map(repr, (key, *others))
        super().__init__(f"There is no {kind} {', '.join(first)}{' or ' if first else ''}{last}.")
        self.kind = kind
        self.key = key


class ConflictError(Text2SongError):
    """The request is well formed, but the state it meets does not allow it."""


class KeyReusedError(Text2SongError):
    """One idempotency key was sent with two different requests."""


class DamagedError(Text2SongError):
    """What is stored is not what was stored, and nobody can get it as it was."""


class FailedError(Text2SongError):
    """What was asked for was tried, and could not be made."""


class UnavailableError(Text2SongError):
    """A server or disk did not answer; nothing was written, and the same call may be made again."""


class RefusedError(UnavailableError):
    """A server that answers and does not let this process in: who starts does not wait for it."""


class DeniedError(Text2SongError):
    """A process cannot start until somebody corrects its settings or its server."""


class UncertainError(Text2SongError):
    """An append whose outcome is unknown; it is safe to repeat under the same event id."""


class TooLargeError(Text2SongError):
    """A record over the log's limit; it was not sent."""


class UnknownVersionError(Text2SongError):
    """An event of a known type in a version this reader does not know; reading on would fold it wrongly."""


def plain(number: float) -> str:
    """The number in full, so that no limit and no value beyond it read alike: 10, 0.5, 10.0000001."""
    return repr(number).removesuffix(".0")
