"""Who asks, and what a route demands of them.

A route that reads demands the scope `read`, and one that writes `write`, unless its `opt` names another `scope`.
"""

from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from litestar.handlers import BaseRouteHandler
from msgspec import UNSET, Struct
from msgspec.structs import replace

from api.http.refusals import ForbiddenError
from commands.transact import LOCAL
from domain.events.keys import Scope
from domain.keys import Key

Demand: TypeAlias = Scope | Literal["open"]
R = TypeVar("R", bound=Struct)

OPEN: Final = {"scope": "open"}  # demands no key
LISTEN: Final = {"scope": "listen"}
ADMIN: Final = {"scope": "admin"}
READS: Final = frozenset({"GET", "HEAD"})
EVERYTHING: Final[frozenset[Scope]] = frozenset(get_args(Scope))


class Caller(Struct, frozen=True, kw_only=True):
    """Without `key_id` it is anybody at an open studio. With `ab_test_id` it is a voter of that test alone."""

    key_id: str | None = None
    owner: str | None = None
    scopes: frozenset[Scope] = EVERYTHING
    ab_test_id: str | None = None

    @classmethod
    def of(cls, key: Key) -> "Caller":
        given = frozenset(key.request.scopes)
        return cls(
            key_id=key.id,
            owner=key.request.owner,
            scopes=EVERYTHING if "admin" in given else given,
            ab_test_id=key.request.ab_test_id,
        )

    @property
    def is_restricted(self) -> bool:
        """Whether it sees its owner's things alone."""
        return "admin" not in self.scopes

    @property
    def idempotency_owner(self) -> str:
        """Whose idempotency keys it sends."""
        return self.owner or LOCAL

    def check(self, demand: Demand) -> None:
        """Raises ForbiddenError naming the scope that is missing."""
        if demand != "open" and demand not in self.scopes:
            raise ForbiddenError(
                "missing_scope",
                f"This key has the scope {' and '.join(sorted(self.scopes))}, and this address needs {demand}. "
                f"Send a key that has it; `text2song keys create --scope {demand}` makes one.",
            )

    def check_test(self, ab_test_id: str | None) -> None:
        """`ab_test_id` is the test that the address names. Raises ForbiddenError for a key of another test."""
        if self.ab_test_id is not None and ab_test_id != self.ab_test_id:
            raise ForbiddenError(
                "other_test", f"This key is for A/B test {self.ab_test_id} alone; ask for the trials of that one."
            )

    def check_voter(self, voter: str) -> None:
        """Raises ForbiddenError for a name that is not the key's own."""
        if self.is_restricted and voter != self.owner:
            raise ForbiddenError(
                "other_voter", f"voter is {voter!r}, and this key is of {self.owner!r}. Send voter={self.owner}."
            )

    def check_owner(self, owner: str | None, what: str) -> None:
        """Raises ForbiddenError for what everybody may see, but only its owner may change."""
        if self.is_restricted and owner != self.owner:
            raise ForbiddenError(
                "other_owner", f"{what} is not of {self.owner!r}; only its owner and a key with admin may change it."
            )

    def signed(self, request: R) -> R:
        """The request with the key's owner as its `user_id`. Raises ForbiddenError where it names somebody else.

        A key with `admin` may name anybody.
        """
        if self.owner is None:
            return request
        given: Any = getattr(request, "user_id")  # noqa: B009 -- every request that is signed has it
        if not self.is_restricted and given is UNSET:
            return request
        if self.is_restricted and given not in {None, UNSET, self.owner}:
            raise ForbiddenError(
                "other_owner",
                f"user_id is {given!r}, and this key is of {self.owner!r}. Leave user_id out, or use a key with admin.",
            )
        return replace(request, user_id=self.owner if given in {None, UNSET} else given)


ANYBODY: Final = Caller()


def demand(handler: BaseRouteHandler, method: str) -> Demand:
    """What the route demands of a request."""
    named: Demand | None = handler.opt.get("scope")
    return named or ("read" if method in READS else "write")
