"""API keys: who may do what. A studio in which no key was ever made is open to everybody who reaches it."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Final, get_args

from msgspec import Meta, Struct
from msgspec.structs import replace

from domain.errors import Fault, InvalidError, NotFoundError
from domain.events import END, MAX_LABEL, NAME, Recorded, timestamp
from domain.events.keys import MAX_OWNER, OWNER_FORM, TOPIC, KeyCreated, KeyEvent, KeyRevoked, Scope
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View
from domain.prompts import control_faults

PREFIX: Final = "t2s"
RESERVED: Final = "local"  # the owner of what is done without a key
TEXT: Final = re.compile(rf"{PREFIX}_([A-Za-z0-9.:-]{{1,200}})_([A-Za-z0-9_-]{{1,200}}){END}")


class KeyRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`owner` is who acts by the key: what is made with it bears that name as `user_id`. `scopes` are `read`, `write`,
    `listen` (to vote in A/B tests) and `admin`, which has all of them for everybody's things. With `ab_test_id` the key
    is for a voter of that test alone, and has no scope but `listen`.
    """

    owner: Annotated[str, Meta(examples=["ann"])]
    scopes: tuple[Scope, ...]
    label: str = ""
    ab_test_id: str | None = None
    expires_at: str | None = None


class Key(Judged, frozen=True, kw_only=True):
    id: str
    request: KeyCreated
    created_at: str
    partition: int
    position: int
    revoked_at: str | None = None
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()

    def is_valid(self, now: str) -> bool:
        expires_at = self.request.expires_at
        return self.revoked_at is None and (expires_at is None or now < expires_at)


class KeyBody(Struct, frozen=True, kw_only=True):
    """`is_valid` says whether it opens anything now."""

    id: str
    owner: str
    scopes: list[Scope]
    label: str
    ab_test_id: str | None
    is_valid: bool
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class NewKey(KeyBody, frozen=True, kw_only=True):
    """`key` is the text to send, which is shown this once."""

    key: str


KEYS: Final = View(TOPIC.name, Key, fields=lambda key: {"owner": key.request.owner}, filters=("owner",))


def body(key: Key, now: str) -> KeyBody:
    request = key.request
    return KeyBody(
        id=key.id,
        owner=request.owner,
        scopes=list(request.scopes),
        label=request.label,
        ab_test_id=request.ab_test_id,
        is_valid=key.is_valid(now),
        created_at=key.created_at,
        expires_at=request.expires_at,
        revoked_at=key.revoked_at,
    )


def text(key_id: str, secret: str) -> str:
    """What a client sends."""
    return f"{PREFIX}_{key_id}_{secret}"


def parts(key: str) -> tuple[str, str] | None:
    """The id and the secret of a key's text; None for what is none."""
    found = TEXT.fullmatch(key)
    return (found[1], found[2]) if found else None


def digest(secret: str) -> str:
    """The secret has 256 random bits: nobody finds it by trying, so that a fast hash hides it well."""
    return sha256(secret.encode()).hexdigest()


def create(request: KeyRequest, key_id: str, secret_sha256: str, now: str) -> list[KeyEvent]:
    """Raises InvalidError naming every fault."""
    if faults := [*_faults(request), *_expiry_faults(request, now)]:
        raise InvalidError(faults)
    return [
        KeyCreated(
            key_id=key_id,
            owner=request.owner,
            scopes=tuple(scope for scope in get_args(Scope) if scope in request.scopes),
            secret_sha256=secret_sha256,
            label=request.label.strip(),
            ab_test_id=request.ab_test_id,
            expires_at=None if request.expires_at is None else _moment(request.expires_at),
        )
    ]


def revoke(key: Key | None, key_id: str) -> list[KeyEvent]:
    if key is None:
        raise NotFoundError("key", key_id)
    return [] if key.revoked_at else [KeyRevoked(key_id=key_id)]


def evolve(key: Key | None, recorded: Recorded) -> Key | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    if key is None:
        return _begun(recorded.event, recorded) if isinstance(recorded.event, KeyCreated) else None
    return judge(key, recorded, _apply)


def _begun(event: KeyCreated, recorded: Recorded) -> Key | None:
    return Key(
        id=event.key_id,
        request=event,
        created_at=recorded.time,
        partition=recorded.position.partition,
        position=recorded.position.offset,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def _apply(key: Key, recorded: Recorded) -> Key | str:
    match recorded.event:
        case KeyRevoked():
            return "the key was revoked before" if key.revoked_at else replace(key, revoked_at=recorded.time)
        case KeyCreated():
            return "the key was created before"
        case _:
            return "not an event of a key"


def _faults(request: KeyRequest) -> Iterator[Fault]:
    owner = request.owner
    if not re.fullmatch(OWNER_FORM, owner) or len(owner) > MAX_OWNER:
        shown = owner if len(owner) <= MAX_OWNER else f"{owner[:MAX_OWNER]}…"
        form = "letters, digits and any of . _ @ + - behind the first"
        yield Fault("/owner", f"owner is {shown!r}; write 1 to {MAX_OWNER} {form}, such as ann@example.org.")
    elif owner == RESERVED:
        detail = f"owner is {owner!r}, which stands for requests without a key; choose another."
        yield Fault("/owner", detail)
    if not request.scopes:
        yield Fault("/scopes", f"scopes is empty; give some of {', '.join(get_args(Scope))}.")
    if request.ab_test_id is not None:
        yield from _test_faults(request.ab_test_id, request.scopes)
    if len(request.label) > MAX_LABEL:
        yield Fault("/label", f"label has {len(request.label):,} characters; the limit is {MAX_LABEL}.")
    yield from control_faults(request.label, "/label")


def _test_faults(ab_test_id: str, scopes: tuple[Scope, ...]) -> Iterator[Fault]:
    if not re.fullmatch(f"{NAME}{END}", ab_test_id) or len(ab_test_id) > MAX_LABEL:
        yield Fault("/ab_test_id", f"ab_test_id is {ab_test_id[:MAX_LABEL]!r}, which no A/B test has.")
    if set(scopes) - {"listen"}:
        detail = f"scopes are {', '.join(scopes)}; a key for one A/B test has listen alone. Leave out the others."
        yield Fault("/scopes", detail)


def _expiry_faults(request: KeyRequest, now: str) -> Iterator[Fault]:
    if request.expires_at is None:
        return
    try:
        expires_at = _moment(request.expires_at)
    except (ValueError, OverflowError):
        detail = f"expires_at is {request.expires_at!r}; write a time such as 2027-01-31T12:00:00Z."
        yield Fault("/expires_at", detail)
        return
    if expires_at <= now:
        yield Fault("/expires_at", f"expires_at is {expires_at}, and it is {now} now; choose a later time.")


def _moment(text: str) -> str:
    parsed = datetime.fromisoformat(text.upper())
    return timestamp(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
