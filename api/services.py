"""What the routes are given: the ports, and the two views of the log that every API process keeps for itself."""

from collections.abc import Iterable
from typing import Protocol, TypeAlias

from litestar.di import NamedDependency
from msgspec import Struct

from api.feed import Feed
from api.renditions import Renditions
from domain.journal import Journal
from domain.models import Registry
from domain.ports import ObjectStore, Position, ReadStore


class Views(Protocol):
    async def wait(self, positions: Iterable[Position], seconds: float) -> bool:
        """Whether the read store has folded all the positions within that time."""

    @property
    def ready(self) -> bool:
        """Whether the read store has folded all that was on the log when this process started."""

    async def caught_up(self, seconds: float) -> bool: ...


class Services(Struct, frozen=True, kw_only=True):
    journal: Journal
    store: ReadStore
    objects: ObjectStore
    registry: Registry
    views: Views
    feed: Feed
    renditions: Renditions


Injected: TypeAlias = NamedDependency[Services]
