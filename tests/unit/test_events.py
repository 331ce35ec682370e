"""The contract on the log. A golden file a version: what was written once must always be read."""

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.aggregates import EVENTS
from domain.envelope import decode, encode
from domain.errors import UnknownVersionError
from domain.events import Event, Undecodable, UnknownEvent, cloud_type, timestamp
from domain.events.prompts import PromptCreated
from domain.ports import Position, Record

GOLDEN = Path(__file__).parents[1] / "golden"
TIME = "2026-01-31T12:00:00.000000Z"


def record(event: Event, **headers: str) -> Record:
    message = encode(event, event_id="id-1", time=TIME)
    assert message.value is not None
    return Record(Position(event.topic, 2, 17), message.key, message.value, {**message.headers, **headers})


def golden(event: type[Event]) -> Any:
    path = GOLDEN / f"{cloud_type(event)}.json"
    return msgspec.json.decode(path.read_bytes(), type=event)


def test_there_is_a_golden_file_for_every_event_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {cloud_type(event) for event in EVENTS.values()}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_golden_bytes_are_read_and_written_unchanged(event: type[Event]) -> None:
    stored = (GOLDEN / f"{cloud_type(event)}.json").read_bytes()
    read = decode(record(golden(event)))
    assert read.event == golden(event)
    assert encode(golden(event), event_id="x", time=TIME).value == msgspec.json.format(stored, indent=-1)


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_fields_without_a_default_are_required_and_the_others_are_not(event: type[Event]) -> None:
    """A field added later must have a default, or old records could not be read."""
    whole = msgspec.to_builtins(golden(event))
    for field in msgspec.structs.fields(event):
        smaller = {name: value for name, value in whole.items() if name != field.encode_name}
        raw = msgspec.json.encode(smaller)
        found = decode(Record(Position(event.topic, 0, 0), golden(event).key, raw, record(golden(event)).headers)).event
        assert isinstance(found, Undecodable) is field.required


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_the_envelope_is_cloudevents_in_binary_mode(event: type[Event]) -> None:
    headers = encode(golden(event), event_id="id-1", time=TIME).headers
    assert headers["ce_specversion"] == "1.0"
    assert headers["ce_id"] == "id-1"
    assert headers["ce_type"] == f"text2song.{event.name}.v1"
    assert headers["ce_time"] == TIME
    assert headers["ce_subject"] == golden(event).key
    assert headers["content-type"] == "application/json"


def test_a_record_that_comes_again_is_not_decoded_again_but_another_one_in_its_place_is() -> None:
    first, copy = record(golden(PromptCreated)), record(golden(PromptCreated))
    assert decode(copy) is decode(first)
    other = record(golden(PromptCreated), ce_id="id-2")
    assert (decode(other).id, decode(first).id) == ("id-2", "id-1")


@pytest.mark.parametrize("written", ["", "x" * 201, "x" * 900_000])
def test_an_event_without_a_usable_id_is_known_by_its_place(written: str) -> None:
    """Ids stay on the aggregate, the last eight of them, and two events without one are not the same event."""
    assert decode(record(golden(PromptCreated), ce_id=written)).id == "prompts/2/17"
    assert decode(record(golden(PromptCreated), ce_id=written[:200] or "x")).id == (written[:200] or "x")


def test_what_damage_quotes_of_a_stranger_is_cut() -> None:
    found = decode(record(golden(EVENTS["JobStarted"]), ce_type="x" * 900_000)).event
    assert isinstance(found, Undecodable)
    assert len(found.error) == 4_000


def test_an_unknown_type_is_passed_over() -> None:
    raw = Record(Position("jobs", 0, 0), "job", b'{"type":"JobPraised","stars":5}', {"ce_time": TIME, "ce_id": "x"})
    assert decode(raw).event == UnknownEvent("JobPraised")


def test_an_unknown_version_of_a_known_type_stops_the_reader() -> None:
    with pytest.raises(UnknownVersionError, match=r"jobs/2/17 .* 'text2song.job.started.v2'; this reader knows"):
        decode(record(golden(EVENTS["JobStarted"]), ce_type="text2song.job.started.v2"))


@pytest.mark.parametrize(
    ("value", "changes", "words"),
    [
        (b"\xff\xfe", {}, "malformed"),
        (b"", {}, "truncated"),
        (b"[]", {}, "Expected `object`"),
        (b'{"job_id":"x"}', {}, "required field `type`"),
        (b'{"type":"JobStarted","job_id":"job","attempt":"first","worker_id":"w"}', {}, "Expected `int`"),
        (b'{"type":"JobStarted","job_id":"other","attempt":1,"worker_id":"w"}', {}, "the record's key is 'job'"),
        (
            b'{"type":"PromptCreated","prompt_id":"job","text":"x"}',
            {"ce_type": "text2song.prompt.created.v1"},
            "belongs",
        ),
        (
            b'{"type":"JobStarted","job_id":"job","attempt":1,"worker_id":"w"}',
            {"ce_type": "x"},
            "ce_type header is 'x'",
        ),
        (b'{"type":"JobStarted","job_id":"job","attempt":1,"worker_id":"w"}', {"ce_time": "noon"}, "noon"),
        (
            b'{"type":"JobStarted","job_id":"job","attempt":1,"worker_id":"w"}',
            {"ce_time": "2026-01-01"},
            "no time zone",
        ),
        (
            b'{"type":"JobStarted","job_id":"job","attempt":1,"worker_id":"w"}',
            {"ce_time": "0001-01-01T00:00:00+01:00"},
            "date",
        ),
        (b'{"type":"JobStarted","job_id":' + b"[" * 3000 + b"]" * 3000 + b"}", {}, "nested over 64 levels deep"),
        (None, {}, "tombstone"),
    ],
)
def test_bytes_that_are_no_event_are_undecodable_with_a_reason(
    value: bytes | None, changes: dict[str, str], words: str
) -> None:
    headers = {"ce_type": "text2song.job.started.v1", "ce_time": TIME, **changes}
    event = decode(Record(Position("jobs", 0, 0), "job", value, headers)).event
    assert isinstance(event, Undecodable)
    assert words in event.error


def test_brackets_in_a_text_are_no_nesting() -> None:
    prompt = PromptCreated(prompt_id="p", text='\\"[{' * 900)
    assert decode(record(prompt)).event == prompt


@given(st.binary(max_size=200), st.dictionaries(st.sampled_from(["ce_id", "ce_time", "ce_type"]), st.text(max_size=40)))
def test_no_bytes_and_no_headers_make_decoding_fail(value: bytes, headers: dict[str, str]) -> None:
    assert decode(Record(Position("jobs", 0, 0), "job", value, headers)).event is not None


@given(st.datetimes(timezones=st.timezones()), st.datetimes(timezones=st.timezones()))
def test_text_order_of_timestamps_is_time_order(one: datetime, other: datetime) -> None:
    if one < other:
        assert timestamp(one) <= timestamp(other)
