"""What became of each event of an aggregate that may refuse one: the reason stays on the aggregate."""

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from domain.events import Recorded, Undecodable, UnknownEvent

OUTCOMES: Final = 8


class Outcome(Struct, frozen=True):
    """The fold's verdict on one event; `reason` None means accepted."""

    event_id: str
    type: str
    reason: str | None = None


class Judging(Protocol):
    """`suspect` says that bytes which are no event stood among its records; `outcomes` are the last ones."""

    @property
    def position(self) -> int: ...
    @property
    def suspect(self) -> bool: ...
    @property
    def outcomes(self) -> tuple[Outcome, ...]: ...
    def outcome(self, event_id: str) -> Outcome | None: ...


class Judged(Struct, frozen=True):
    """What aggregates that keep `outcomes` have in common."""

    def outcome(self: Judging, event_id: str) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.event_id == event_id), None)


J = TypeVar("J", bound=Judging)


def judge(aggregate: J, recorded: Recorded, apply: Callable[[J, Recorded], J | str]) -> J:
    """Folds a record into an aggregate that there is. `apply` gives what it becomes, or why the event is refused."""
    offset, event = recorded.position.offset, recorded.event
    if offset <= aggregate.position:
        return aggregate
    moved = _replace(aggregate, position=offset)
    if isinstance(event, UnknownEvent) or moved.outcome(recorded.id):
        return moved
    changed, reason = moved, None
    if isinstance(event, Undecodable):
        changed, reason = _replace(moved, suspect=True), event.error
    elif isinstance(result := apply(moved, recorded), str):
        reason = result
    else:
        changed = result
    outcome = Outcome(recorded.id, recorded.type, reason)
    return _replace(changed, outcomes=(*changed.outcomes, outcome)[-OUTCOMES:])


def _replace(aggregate: J, **changes: Any) -> J:
    changed: Any = aggregate
    replaced: J = replace(changed, **changes)
    return replaced
