"""What the routes are given: the ports, and what every API process keeps of the log for itself."""

from typing import TypeAlias

from litestar.di import NamedDependency
from msgspec import Struct

from api.feed import Feed
from api.renditions import Renditions
from domain.journal import Journal
from domain.models import Registry
from domain.ports import ObjectStore
from projections.current import CurrentViews
from projections.folded import Folded
from projections.tail import Tail


class Services(Struct, frozen=True, kw_only=True):
    journal: Journal
    views: CurrentViews
    objects: ObjectStore
    registry: Registry
    folded: Folded
    tail: Tail
    feed: Feed
    renditions: Renditions


Injected: TypeAlias = NamedDependency[Services]
