"""The slices of the project, listed once: whatever depends on which there are asks here.

A slice is a file of one name in each package that knows it: `domain/events` (TOPIC and EVENTS), `domain` (the state
and `evolve`), `domain/contract` (PUBLISHED), `commands`, `projections` (VIEWS and `fold`) and `api` (ROUTES).
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from msgspec import Struct

from domain.events import Erased, Event, Recorded, progress
from domain.ports import Topic

SLICES: Final = (
    "prompts",
    "jobs",
    "feedback",
    "adapters",
    "models",
    "ab_tests",
    "datasets",
    "trainings",
    "webhooks",
    "keys",
)


class Aggregate(Struct, frozen=True):
    """`evolve` makes the next state of the last one, None before the first, and a record; it never raises."""

    topic: Topic
    events: tuple[type[Event], ...]
    evolve: Callable[[Any, Recorded], Any]

    def apply(self, state: Any, recorded: Recorded) -> Any:
        """As `evolve`, but an erasure leaves no state, and what stands on another partition than the state's, nothing.

        Offsets of two partitions cannot be compared, so one of the two histories has to be the aggregate's.
        """
        if state is not None and state.partition != recorded.position.partition:
            return state
        if not isinstance(recorded.event, Erased):
            return self.evolve(state, recorded)
        # A tombstone that is read again does not erase what was given after it.
        return state if state is not None and state.position >= recorded.position.offset else None


def slices(package: str) -> Mapping[str, Any]:
    """The package's module of each slice, by the name of the slice's topic."""
    return {import_module(f"domain.events.{name}").TOPIC.name: import_module(f"{package}.{name}") for name in SLICES}


def _aggregates() -> dict[str, Aggregate]:
    events, rules = slices("domain.events"), slices("domain")
    return {topic: Aggregate(events[topic].TOPIC, events[topic].EVENTS, rules[topic].evolve) for topic in rules}


AGGREGATES: Final = _aggregates()
DEAD_LETTERS: Final = Topic("deadletter", partitions=4, retention_seconds=30 * 24 * 3600.0)
TOPICS: Final[Mapping[str, Topic]] = {
    topic.name: topic
    for topic in (*(aggregate.topic for aggregate in AGGREGATES.values()), progress.TOPIC, DEAD_LETTERS)
}
EVENTS: Final[Mapping[str, type[Event]]] = {
    event.__name__: event
    for events in (*(aggregate.events for aggregate in AGGREGATES.values()), progress.EVENTS)
    for event in events
}
