"""What is published is what the domain does: checked with a reader that knows nothing but the published files."""

import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from domain.aggregates import AGGREGATES, EVENTS, TOPICS
from domain.contract import document as contract
from domain.contract.jobs import PUBLISHED as PUBLISHED_JOBS
from domain.contract.transitions import table
from domain.contract.vectors import published
from domain.envelope import decode, encode
from domain.events import Event, Undecodable, UnknownEvent, cloud_type
from domain.jobs import OPEN, Job
from domain.ports import Position, Topic
from domain.ports import Record as Stored
from tests.cluster.consumer import Contract, Fold, Record, UndecodableError, failures
from tests.unit.test_events import GOLDEN, TIME, golden
from tests.unit.test_imports import MAY_IMPORT, imported

PUBLISHED = GOLDEN / "contract"
REGENERATE = f"text2song contract export {PUBLISHED.relative_to(Path(__file__).parents[2])}"
READER = Contract(PUBLISHED)
EACH_EVENT = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)


def test_the_published_files_are_what_the_domain_generates() -> None:
    """After a change that is meant, run the command that the failure shows, and read the difference."""
    stored = {path.relative_to(PUBLISHED).as_posix(): path.read_bytes() for path in PUBLISHED.rglob("*.json")}
    generated = contract.files()
    assert [name for name in {*stored, *generated} if stored.get(name) != generated.get(name)] == [], REGENERATE


def test_every_topic_is_a_channel_and_every_aggregate_kept_for_good_has_a_table() -> None:
    channels = contract.asyncapi()["channels"]
    assert channels.keys() == TOPICS.keys()
    assert {name for name, channel in channels.items() if "x-transitions" in channel} == AGGREGATES.keys()
    assert AGGREGATES.keys() == {topic.name for topic in TOPICS.values() if topic.retention_seconds is None}
    assert {name for channel in channels.values() for name in channel["messages"]} == {*EVENTS, "DeadLetter"}


def test_every_reference_in_the_document_leads_somewhere() -> None:
    references = re.findall(r'"\$ref":\s*"#/([^"]+)"', (PUBLISHED / "asyncapi.json").read_text())
    assert references
    for reference in references:
        reduce(getitem, reference.split("/"), READER.document)


@pytest.mark.parametrize(
    ("topic", "configuration"),
    [
        (Topic("kept"), {"cleanup.policy": ["delete"], "retention.ms": -1, "retention.bytes": -1}),
        (
            Topic("kept", retention_seconds=1.5),
            {"cleanup.policy": ["delete"], "retention.ms": 1500, "retention.bytes": -1},
        ),
        (Topic("kept", compacted=True), {"cleanup.policy": ["compact"]}),
    ],
)
def test_a_channel_says_how_long_its_records_are_kept(topic: Topic, configuration: dict[str, Any]) -> None:
    channel = contract._channel(topic)
    assert channel["bindings"]["kafka"]["topicConfiguration"] == configuration
    assert ("forever" in channel["description"]) is (topic == Topic("kept"))
    assert ("tombstone" in channel["description"]) is topic.compacted


@EACH_EVENT
def test_golden_events_and_their_headers_fit_the_published_schemas(event: type[Event]) -> None:
    schema = json.loads((PUBLISHED / "schemas" / f"{cloud_type(event)}.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    whole = json.loads((GOLDEN / f"{cloud_type(event)}.json").read_bytes())
    assert Draft202012Validator(schema).is_valid(whole)
    for field in whole:
        for spoilt in ({**whole, field: [[]]}, {name: whole[name] for name in whole if name != field}):
            may_miss = field not in schema["required"] and field not in spoilt
            assert Draft202012Validator(schema).is_valid(spoilt) is may_miss, (field, spoilt)


@EACH_EVENT
def test_the_headers_that_are_written_are_the_published_ones(event: type[Event]) -> None:
    message = encode(golden(event), event_id="id-1", time=TIME)
    headers = READER.validator(f"/components/messages/{event.__name__}/headers")
    assert headers.is_valid(message.headers)
    assert set(READER.document["components"]["schemas"]["CloudEvent"]["required"]) == message.headers.keys()
    for name in message.headers:
        assert not headers.is_valid({other: value for other, value in message.headers.items() if other != name})
    assert not headers.is_valid({**message.headers, "ce_type": "text2song.job.praised.v1"})
    assert not headers.is_valid({**message.headers, "ce_time": "2026-01-31"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*EVENTS.values()]), st.data())
def test_what_the_schemas_take_is_what_the_studio_decodes(event: type[Event], data: st.DataObject) -> None:
    whole = json.loads((GOLDEN / f"{cloud_type(event)}.json").read_bytes())
    inner = data.draw(st.sampled_from([whole, *(value for value in whole.values() if isinstance(value, dict))]))
    inner[data.draw(st.sampled_from([*inner, "novel"]))] = data.draw(json_values)
    message = encode(golden(event), event_id="id-1", time=TIME)
    raw = json.dumps(whole).encode()
    decoded = decode(Stored(Position(event.topic, 0, 5), message.key, raw, message.headers)).event
    try:
        taken, _ = READER.decode(Record(f"{event.topic}/0/5", message.key, raw, dict(message.headers)))
    except UndecodableError:
        assert isinstance(decoded, Undecodable)
    else:
        assert not isinstance(decoded, Undecodable), decoded
        assert (taken["type"] is None) is isinstance(decoded, UnknownEvent)


proposals = st.sampled_from(PUBLISHED_JOBS.proposals)


@given(st.lists(st.tuples(proposals, st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_the_tables_make_of_any_history_what_the_domain_makes(history: list[tuple[Event, int, int]]) -> None:
    """Whatever the order, and with ids and offsets that come again."""
    job: Job | None = None
    fold = Fold(READER, "jobs")
    submission = (PUBLISHED_JOBS.proposals[0], 0, 0)
    for event, offset, number in [submission, *history]:
        time = f"2026-01-31T12:00:{offset:02}.{number:06}Z"
        message = encode(event, event_id=f"event-{number}", time=time)
        position = Position("jobs", 0, offset)
        job = AGGREGATES["jobs"].evolve(job, decode(Stored(position, message.key, message.value, message.headers)))
        fold.add(Record(str(position), message.key, message.value, dict(message.headers)))
    assert fold.aggregates == {"job-1": published("jobs", job)}


def test_the_final_statuses_are_those_of_closed_jobs() -> None:
    assert not OPEN & set(table("jobs")["final"])
    assert OPEN | set(table("jobs")["final"]) == set(
        msgspec.json.schema(Job)["$defs"]["Job"]["properties"]["status"]["enum"]
    )


def test_the_reader_knows_nothing_of_this_project() -> None:
    reader = Path(__file__).parents[1] / "cluster" / "consumer.py"
    assert not {name.partition(".")[0] for name in imported(reader)} & {*MAY_IMPORT, "tests"}


def test_a_reader_of_the_published_files_passes_the_vectors() -> None:
    assert list(failures(READER, PUBLISHED)) == []


@pytest.mark.parametrize("topic", AGGREGATES)
def test_the_vectors_notice_every_mistake_in_a_rule(topic: str) -> None:
    """A reader that lacks a rule, or one of its conditions or effects, fails some vector."""
    reader, rules = Contract(PUBLISHED), READER.channels[topic]["x-transitions"]["rules"]
    for number, rule in enumerate(rules):
        for mistaken in _mistaken(rule):
            reader.channels[topic]["x-transitions"]["rules"] = [*mistaken, *rules[:number], *rules[number + 1 :]]
            assert _fails(reader, topic), (rule, mistaken)


def _mistaken(rule: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    yield []
    for part in ("when", "set"):
        for left in rule[part]:
            yield [{**rule, part: {name: value for name, value in rule[part].items() if name != left}}]


def _fails(reader: Contract, topic: str) -> bool:
    try:
        return any(failures(reader, PUBLISHED, topic))
    except TypeError:
        return True
