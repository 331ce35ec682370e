"""The ports, and the state of one API process, as routes receive them."""

from typing import TypeAlias

from litestar.di import NamedDependency
from msgspec import Struct

from api.http.feed import Feed
from api.http.renditions import Renditions
from api.http.sealing import Seals
from domain.journal import Journal
from domain.models import Registry
from domain.ports import ObjectStore
from projections.freshness.current import CurrentViews
from projections.freshness.folded import Folded
from projections.freshness.tail import Tail


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


Injected: TypeAlias = NamedDependency[Services]
