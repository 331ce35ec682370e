from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from domain.events import END, Event, Identifier, Label, Moment, Sha256
from domain.ports import Topic

Scope: TypeAlias = Literal["read", "write", "listen", "admin"]

TOPIC: Final = Topic("keys", partitions=4)
MAX_OWNER: Final = 200
OWNER_FORM: Final = r"[A-Za-z0-9][A-Za-z0-9._@+-]*"  # no colon: it parts the owner from the rest where ids are made
Owner: TypeAlias = Annotated[str, Meta(pattern=f"^{OWNER_FORM}{END}", max_length=MAX_OWNER)]


class KeyEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    key_id: Identifier

    @property
    def key(self) -> str:
        return self.key_id


class KeyCreated(KeyEvent, frozen=True, kw_only=True, tag="KeyCreated"):
    """`secret_sha256` is of the secret alone, the part of the key's text behind the last underscore that follows its
    id; the secret is kept nowhere. A key for one A/B test has `ab_test_id`, and may do nothing but vote in it.
    """

    name = "key.created"
    owner: Owner
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=4)]
    secret_sha256: Sha256
    label: Label = ""
    ab_test_id: Identifier | None = None
    expires_at: Moment | None = None


class KeyRevoked(KeyEvent, frozen=True, kw_only=True, tag="KeyRevoked"):
    """The key opens nothing any more, for good."""

    name = "key.revoked"


EVENTS: Final = (KeyCreated, KeyRevoked)
