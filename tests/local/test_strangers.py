"""Whatever the published schemas admit may stand on a topic: no role falls, and no other aggregate is touched.

RECORDS says how many records strangers write, SEED which.
"""

import asyncio
import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from commands.keys import create_on
from domain.adapters import adapter_id
from domain.aggregates import AGGREGATES, EVENTS
from domain.contract.document import schema
from domain.envelope import decode, encode
from domain.events import Event, Undecodable, cloud_type
from domain.events.adapters import AdapterRegistered
from domain.jobs import JOBS
from domain.keys import KeyRequest
from domain.models import NOISE
from domain.ports import Message, Position, Record
from domain.prompts import PROMPTS
from projections.feedback import DIMENSIONS
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts
from tests.unit.test_events import TIME, golden

RECORDS: Final = int(os.environ.get("RECORDS", "300"))
SEED: Final = int(os.environ.get("SEED", Random().randrange(10**6)))
BATCH: Final = 100
# Ids that come again, so that strangers' events meet each other.
IDS: Final = st.sampled_from([f"stranger-{number}" for number in range(40)])
MODELS: Final = st.sampled_from([NOISE.id, "facebook/musicgen-large"])


def values(of: dict[str, Any], defs: dict[str, Any]) -> SearchStrategy[Any]:
    """What a JSON Schema of an event admits."""
    match of:
        case {"$ref": reference}:
            return values(defs[reference.rpartition("/")[2]], defs)
        case {"anyOf": choices}:
            return st.one_of([values(choice, defs) for choice in choices])
        case {"enum": choices}:
            return st.sampled_from(choices)
        case {"type": "string", "pattern": pattern}:
            return st.from_regex(pattern).filter(lambda text: len(text) <= of.get("maxLength", 100))
        case {"type": "string"}:
            return st.text(min_size=of.get("minLength", 0), max_size=min(of.get("maxLength", 100), 30))
        case {"type": "integer"}:
            highest = of["exclusiveMaximum"] - 1 if "exclusiveMaximum" in of else of.get("maximum")
            return st.integers(of.get("minimum"), highest)
        case {"type": "number"}:
            lowest = of.get("minimum", of.get("exclusiveMinimum"))
            if step := of.get("multipleOf"):
                return st.integers(round(lowest / step), round(of["maximum"] / step)).map(lambda times: times * step)
            return st.floats(lowest, of.get("maximum"), exclude_min="exclusiveMinimum" in of)
        case {"type": "boolean"}:
            return st.booleans()
        case {"type": "null"}:
            return st.none()
        case {"type": "array", "items": items}:
            return st.lists(values(items, defs), min_size=of.get("minItems", 0), max_size=of.get("maxItems", 5))
        case {"type": "object", "additionalProperties": inner, "propertyNames": names, "maxProperties": most}:
            return st.dictionaries(values({"type": "string", **names}, defs), values(inner, defs), max_size=most)
        case {"type": "object", "properties": properties}:
            drawn = {name: values(inner, defs) for name, inner in properties.items()}
            drawn |= {name: IDS | drawn[name] for name in drawn.keys() & {"job_id", "prompt_id", "feedback_id"}}
            drawn |= {name: MODELS | drawn[name] for name in drawn.keys() & {"model_id"}}
            needed = of.get("required", [])
            return st.fixed_dictionaries(
                {name: drawn[name] for name in needed},
                optional={name: inner for name, inner in drawn.items() if name not in needed},
            )
    raise AssertionError(of)


def payloads(event: type[Event]) -> SearchStrategy[dict[str, Any]]:
    published = schema(event)
    return values(published, published.get("$defs", {}))


def written(number: int, event: type[Event], payload: dict[str, Any], topic: str) -> Message:
    if event is AdapterRegistered and number % 2:
        payload["adapter_id"] = adapter_id(payload["adapter_name"], payload["adapter_version"])
    key = msgspec.convert(payload, event).key
    headers = encode(golden(event), event_id=f"stranger-{number}", time=TIME).headers
    return Message(topic, key, msgspec.json.encode(payload), {**headers, "ce_type": cloud_type(event)})


def strangers(count: int) -> list[Message]:
    """One event in eight stands on a topic that may not be its own: on each in turn."""
    found: list[Message] = []
    topics = cycle(AGGREGATES)
    kinds = st.sampled_from([*EVENTS.values()])
    draws = kinds.flatmap(lambda event: st.tuples(st.just(event), payloads(event)))

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=[*HealthCheck],
    )
    @given(draws)
    def collect(drawn: tuple[type[Event], dict[str, Any]]) -> None:
        event, payload = drawn
        number = len(found)
        found.append(written(number, event, payload, event.topic if number % 8 else next(topics)))

    collect()
    return found


async def untouched(parts: Parts) -> Sequence[object]:
    assert await parts.host.caught_up(120)
    return [await parts.store.get(JOBS, ["healthy"]), await parts.store.get(PROMPTS, ["healthy"])]


async def test_whatever_the_schemas_admit_stops_nobody_and_touches_nobody_else(tmp_path: Path) -> None:
    print(f"\nSEED={SEED}")
    messages = strangers(RECORDS)
    own = [message for message in messages if _is_event(message)]
    assert len(own) > len(messages) / 2
    async with open_parts(tmp_path) as parts, parts.working(ScriptedEngine(), ScriptedEngine()) as workers:
        await parts.submit("healthy", seeds=[1, 2])
        await parts.when("healthy", "completed")
        # Among the strangers' records are keys, and then a studio is open to nobody.
        _, parts.http.headers["X-API-Key"] = await create_on(parts.journal, KeyRequest(owner="ops", scopes=("admin",)))
        before = await untouched(parts)
        audio = [info async for info in _audio(parts)]
        for first in range(0, len(messages), BATCH):
            await parts.log.append(messages[first : first + BATCH])
        await parts.submit("after", seeds=[1], priority=9)
        # Some strangers' jobs are as urgent, and older.
        await parts.when("after", "completed", seconds=20 + RECORDS / 10)
        assert await untouched(parts) == before
        assert [info async for info in _audio(parts)] == audio
        figures = [f"/feedback/stats?group_by={dimension}" for dimension in DIMENSIONS]
        lists = ("/jobs", "/prompts", "/feedback", "/adapters", "/ab-tests", "/models", "/keys")
        for path in (*lists, "/", "/jobs/stats", "/jobs/healthy", *figures):
            assert (await parts.http.get(path)).status_code == 200, path
        listed = (await parts.http.get("/jobs?limit=100")).json()["items"]
        for job in listed:
            assert (await parts.http.get(f"/jobs/{job['id']}")).status_code == 200, job
        for adapter in (await parts.http.get("/adapters?limit=100")).json()["items"]:
            assert (await parts.http.get(f"/adapters/{adapter['id']}")).status_code == 200, adapter
        for feedback in (await parts.http.get("/feedback?limit=100")).json()["items"]:
            assert (await parts.http.get(f"/feedback/{feedback['id']}")).json() == feedback
        # A worker that begins with all that on the log lives as well.
        async with parts.working(ScriptedEngine()) as more:
            await parts.submit("last", seeds=[1], priority=9)
            await parts.when("last", "completed", seconds=20 + RECORDS / 10)
            assert not [worker for worker in (*workers, *more) if worker.done()]
        assert not [task for task in asyncio.all_tasks() if task.done() and task.exception()]


def _is_event(message: Message) -> bool:
    record = Record(Position(message.topic, 0, 0), message.key, message.value, message.headers)
    return not isinstance(decode(record).event, Undecodable)


async def _audio(parts: Parts) -> Any:
    for info in await parts.objects.list("samples/healthy"):
        yield info
