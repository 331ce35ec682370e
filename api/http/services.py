"""The ports, and the state of one API process, as routes receive them."""

import asyncio
from typing import TypeAlias

from litestar.di import NamedDependency
from msgspec import Struct, field

from api.http.feed import Feed
from api.http.renditions import Renditions
from api.http.sealing import Seals
from commands.transact import load
from domain.journal import Journal
from domain.models import CHOICE, MODEL_CHOICES, Registry
from domain.ports import ObjectStore
from projections.freshness.current import CurrentViews
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail


class Chosen(Struct):
    """The default model as it was read last, before that many choices were heard of."""

    model_id: str | None = None
    changes: int = -1


class Services(Struct, frozen=True, kw_only=True):
    journal: Journal
    views: CurrentViews
    objects: ObjectStore
    registry: Registry
    folded: Folded
    tail: Tail
    feed: Feed
    renditions: Renditions
    seals: Seals
    chosen: Chosen = field(default_factory=Chosen)
    registering: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def models(self) -> Registry:
        """The registry as it is now: with the model that was chosen, and with what the live workers have loaded."""
        changes = self.feed.model_changes
        if self.chosen.changes != changes:
            choice = await load(self.views, MODEL_CHOICES, CHOICE)
            self.chosen.model_id, self.chosen.changes = choice.model_id if choice else None, changes
        return self.registry.now(self.chosen.model_id, self.feed.workers())


Injected: TypeAlias = NamedDependency[Services]
