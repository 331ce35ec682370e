"""The views as the owner of a key sees them. A route cannot forget it: it is given no others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from api.http.access import Caller
from commands.transact import Views
from domain.ab_tests import AB_TESTS, AB_VOTES
from domain.adapters import ADAPTERS
from domain.datasets import DATASETS
from domain.feedback import FEEDBACK
from domain.jobs import JOBS
from domain.keys import KEYS
from domain.models import MODEL_CHOICES
from domain.ports import D, Position, Query, View
from domain.prompts import PROMPTS
from domain.trainings import TRAININGS
from domain.webhooks import WEBHOOKS
from projections import feedback, jobs
from projections.audio import AUDIO

OWNERS: Final[Mapping[str, Callable[[Any], str | None]]] = {
    **dict.fromkeys((PROMPTS.name, AUDIO.name, FEEDBACK.name), lambda document: document.user_id),
    **dict.fromkeys(
        (JOBS.name, AB_TESTS.name, DATASETS.name, TRAININGS.name, WEBHOOKS.name),
        lambda document: document.request.user_id,
    ),
    KEYS.name: lambda _: None,
}
# What everybody with a key may see. Votes are asked for by whoever may see their test.
SHARED: Final = frozenset({ADAPTERS.name, MODEL_CHOICES.name, AB_VOTES.name, jobs.STATS.name, feedback.STATS.name})
# All that a voter with a key for one test may see, by the test it is of.
TESTS: Final[Mapping[str, Callable[[Any], str | None]]] = {
    AB_TESTS.name: lambda test: test.id,
    JOBS.name: lambda job: job.request.ab_test_id,
    AB_VOTES.name: lambda vote: vote.event.ab_test_id,
}


class OwnedViews:
    """Without other owners' documents: to the caller they are not there."""

    def __init__(self, views: Views, caller: Caller) -> None:
        self._views = views
        self._caller = caller

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        found = await self._views.get(view, ids)
        return {id_: document for id_, document in found.items() if self._sees(view, document)}

    async def find(self, view: View[D], query: Query) -> list[D]:
        narrowed = self._narrowed(view, query)
        return [] if narrowed is None else await self._views.find(view, narrowed)

    async def count(self, view: View[D], query: Query) -> int:
        narrowed = self._narrowed(view, query)
        return 0 if narrowed is None else await self._views.count(view, narrowed)

    def expect(self, keys: Sequence[str], positions: Sequence[Position]) -> None:
        self._views.expect(keys, positions)

    async def show(self, positions: Iterable[Position]) -> bool:
        return await self._views.show(positions)

    def _sees(self, view: View[Any], document: Any) -> bool:
        if self._caller.ab_test_id is not None:
            return view.name in TESTS and TESTS[view.name](document) == self._caller.ab_test_id
        return view.name in SHARED or OWNERS[view.name](document) == self._caller.owner

    def _narrowed(self, view: View[Any], query: Query) -> Query | None:
        """None where nothing of it is to be seen."""
        owner = self._caller.owner
        if self._caller.ab_test_id is not None or view.name == KEYS.name:
            return None
        if view.name in SHARED:
            return query
        if query.equal.get("user_id", owner) != owner:
            return None
        equal = {**query.equal, "user_id": owner}
        if "user_status" in view.filters and "status" in equal:
            equal = {**equal, "user_status": f"{equal['status']} {owner}"}
            del equal["status"], equal["user_id"]
        return replace(query, equal=equal)


def seen_by(caller: Caller, views: Views) -> Views:
    return OwnedViews(views, caller) if caller.is_restricted else views
