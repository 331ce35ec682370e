"""The ports, and the state of one API process, as routes receive them."""

import asyncio
from typing import Any, Final, TypeAlias

from litestar import Request
from litestar.di import NamedDependency
from msgspec import Struct, field
from msgspec.structs import replace

from api.http.access import ANYBODY, Caller
from api.http.feed import Feed
from api.http.limits import Limiter
from api.http.ownership import seen_by
from api.http.quota import Quota
from api.http.renditions import Renditions
from api.http.sealing import Seals
from commands.transact import Views, load
from domain.journal import Journal
from domain.models import CHOICE, MODEL_CHOICES, Registry
from domain.ports import ObjectStore
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail
from workers.outgoing import Receivers

SERVICES: Final = "services"  # in a request's state


class Chosen(Struct):
    """The default model as it was read last, before that many choices were heard of."""

    model_id: str | None = None
    changes: int = -1


class Services(Struct, frozen=True, kw_only=True):
    """A route is given those `of` the caller, whose `views` have nothing that the caller may not see.

    `track_seconds` is how long a request for a track waits for it.
    """

    journal: Journal
    views: Views
    objects: ObjectStore
    registry: Registry
    folded: Folded
    tail: Tail
    feed: Feed
    renditions: Renditions
    seals: Seals
    receivers: Receivers = field(default_factory=Receivers)
    track_seconds: float = 120.0
    quota: Quota
    limiter: Limiter = field(default_factory=Limiter)
    caller: Caller = ANYBODY
    chosen: Chosen = field(default_factory=Chosen)
    registering: asyncio.Lock = field(default_factory=asyncio.Lock)

    def of(self, caller: Caller) -> "Services":
        return self if caller is ANYBODY else replace(self, caller=caller, views=seen_by(caller, self.views))

    async def models(self) -> Registry:
        """The registry as it is now: with the model that was chosen, and with what the live workers have loaded."""
        changes = self.feed.model_changes
        if self.chosen.changes != changes:
            choice = await load(self.views, MODEL_CHOICES, CHOICE)
            self.chosen.model_id, self.chosen.changes = choice.model_id if choice else None, changes
        return self.registry.now(self.chosen.model_id, self.feed.workers())


def given(request: Request[Any, Any, Any]) -> Services:
    """Those of the request's caller, once `admit` has found out who that is."""
    found: Services = request.scope["state"][SERVICES]
    return found


Injected: TypeAlias = NamedDependency[Services]
