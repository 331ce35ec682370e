"""Each aggregate's transition table, for readers in any language, found by running the aggregate's own fold.

Every state within reach meets every proposal, and the rules are the shortest conditions that explain all that came of
it. What no rule accepts is refused.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any, Final

from msgspec import Struct, to_builtins

from domain.aggregates import AGGREGATES, slices
from domain.contract import Json, Published
from domain.events import Recorded
from domain.ports import Position

DECIDING: Final = ("status", "type")  # how fields end whose text decides
PUBLISHED: Final[Mapping[str, Published]] = {
    name: module.PUBLISHED for name, module in slices("domain.contract").items()
}


class Case(Struct, frozen=True):
    """One event that met one state."""

    event: Json
    time: str
    facts: Json
    accepted: bool
    before: Json
    after: Json


@cache
def table(topic: str) -> Json:
    """Accepting rules in the order of their events; `final` lists the statuses that no rule leaves."""
    published = PUBLISHED[topic]
    cases = [*_cases(topic)]
    statuses = {case.after.get("status") for case in cases} - {None}
    left = {case.before.get("status") for case in cases if case.before.get("status") != case.after.get("status")}
    return {
        "topic": topic,
        "outcomes": published.outcomes,
        "final": sorted(statuses - left),
        "state": dict(published.fields),
        "conditions": dict(published.conditions),
        "rules": [
            rule
            for name in dict.fromkeys(case.event["type"] for case in cases)
            for rule in _rules([case for case in cases if case.event["type"] == name])
        ],
    }


def _cases(topic: str) -> Iterator[Case]:
    published = PUBLISHED[topic]
    offsets = count()
    waiting = deque[Any]([None])
    seen = {"[]"}
    while waiting:
        before = waiting.popleft()
        for event in published.proposals:
            offset = next(offsets)
            time = f"2026-01-31T12:00:00.{offset:06}Z"
            recorded = Recorded(Position(topic, 0, offset), event.key, f"event-{offset}", time, event)
            after = AGGREGATES[topic].evolve(before, recorded)
            state = published.state(after)
            yield Case(
                event=to_builtins(event),
                time=time,
                facts=published.facts(before, event),
                accepted=published.accepted(after, recorded),
                before=published.state(before),
                after=state,
            )
            # Which time or name it is differs without end and decides nothing.
            mark = repr([value if name.endswith(DECIDING) else _kind(value) for name, value in state.items()])
            if mark not in seen:
                seen.add(mark)
                waiting.append(after)


def _kind(value: object) -> object:
    return str if isinstance(value, str) else value


def _rules(cases: Sequence[Case]) -> list[Json]:
    """Raises ValueError when equal facts had different effects: then the facts do not say enough."""
    rules: list[Json] = []
    for case in cases:
        if not case.accepted or any(rule["when"].items() <= case.facts.items() for rule in rules):
            continue
        when = case.facts
        if (effect := _effect(cases, when)) is None:
            raise ValueError(f"{case.event['type']} has no single effect where {when}")
        for name in reversed(case.facts):
            fewer = {other: value for other, value in when.items() if other != name}
            if (same := _effect(cases, fewer)) is not None:
                when, effect = fewer, same
        rules.append({"event": case.event["type"], "when": when, "set": effect})
    return rules


def _effect(cases: Sequence[Case], when: Json) -> Json | None:
    """Where every changed field has its new value from, alike in all cases that meet the condition."""
    met = [case for case in cases if when.items() <= case.facts.items()]
    if not all(case.accepted for case in met):
        return None
    effect = {
        field: _source(met, field)
        for field in met[0].after
        if any(case.after[field] != case.before.get(field) for case in met)
    }
    return None if None in effect.values() else effect


def _source(cases: Sequence[Case], field: str) -> Json | None:
    event, value = cases[0].event, cases[0].after[field]
    sources: list[Json] = [*({"event": name} for name in event), {"header": "ce_time"}]
    if isinstance(value, int):
        sources.append({"add": 1})
    sources.append({"value": value})
    if isinstance(value, dict):
        sources += [{"put": name, "at": at} for name in event for at in event]
    if isinstance(value, list):
        sources += [{"merge": name} for name, given in event.items() if isinstance(given, tuple)]
    return next((source for source in sources if all(_gives(source, case, field) for case in cases)), None)


def _gives(source: Json, case: Case, field: str) -> bool:
    before = case.before.get(field)
    match source:
        case {"event": name}:
            value = case.event[name]
        case {"header": _}:
            value = case.time
        case {"add": number}:
            value = (before or 0) + number
        case {"put": name, "at": at}:
            value = {**(before or {}), str(case.event[at]): case.event[name]}
        case {"merge": name}:
            value = sorted({*(before or []), *case.event[name]})
        case _:
            value = source["value"]
    return type(value) is type(case.after[field]) and bool(value == case.after[field])
