"""Which correlations are taken over from others, and how they travel with an event."""

import pytest
from msgspec.structs import replace

from domain.aggregates import AGGREGATES
from domain.correlation import MAX_ID, Correlation, correlated, current, of_record, traceparent
from domain.envelope import decode, encode
from domain.events import Event
from domain.events.jobs import JobDeleted
from domain.events.webhooks import WebhookQueued
from domain.ports import Position, Record
from tests.local.parts import submission

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TIME = "2026-01-31T12:00:00.000000Z"


def record(event: JobDeleted, **headers: str) -> Record:
    message = encode(event, event_id="e", time=TIME, correlation=Correlation("mine", TRACE))
    return Record(Position("jobs", 0, 1), message.key, message.value, {**message.headers, **headers})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (TRACE, TRACE),
        ("cc" + TRACE[2:] + "-what-will-come", TRACE),
        ("cc" + TRACE[2:], TRACE),
        (TRACE + "-more", None),
        ("ff" + TRACE[2:], None),
        (TRACE.upper(), None),
        (TRACE + "\n", None),
        (TRACE[:-1], None),
        ("00-" + 32 * "0" + TRACE[35:], None),
        (TRACE[:36] + 16 * "0" + "-01", None),
        ("cc" + TRACE[2:] + "-" + 1_000 * "x", None),
        ("", None),
    ],
)
def test_a_traceparent_is_kept_in_its_form_alone(given: str, kept: str | None) -> None:
    assert traceparent(given) == kept


def test_an_event_carries_the_correlation_through_the_log() -> None:
    found = decode(record(JobDeleted(job_id="job"))).correlation
    assert found == Correlation("mine", TRACE)
    assert found.trace_id == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("ident", ["", "a b", "a\nb", "ä", (MAX_ID + 1) * "x"])
def test_what_a_stranger_wrote_out_of_form_is_as_if_it_were_not_there(ident: str) -> None:
    recorded = decode(record(JobDeleted(job_id="job"), ce_correlationid=ident, ce_traceparent=ident))
    assert recorded.correlation is None
    assert recorded.event == JobDeleted(job_id="job")


def test_the_key_alone_is_no_correlation() -> None:
    assert of_record({"ce_correlationid": "job"}, "job") is None
    assert of_record({"ce_correlationid": "other"}, "job") == Correlation("other")
    assert of_record({"ce_correlationid": "job", "ce_traceparent": TRACE}, "job") == Correlation("job", TRACE)


def test_it_is_the_current_one_for_a_while() -> None:
    assert current() is None
    with correlated(Correlation("outer")):
        with correlated(Correlation("inner")):
            assert current() == Correlation("inner")
        assert current() == Correlation("outer")
    assert current() is None


OWED = WebhookQueued(
    delivery_id="d", message_id="d", job_id="job", kind="job.failed", url="https://example.org", body="{}"
)


@pytest.mark.parametrize("event", [submission("job"), OWED])
def test_a_job_and_a_delivery_remember_the_one_that_they_came_with(event: Event) -> None:
    message = encode(event, event_id="e", time=TIME, correlation=Correlation("mine", TRACE))
    recorded = decode(Record(Position(event.topic, 0, 1), message.key, message.value, message.headers))
    first = AGGREGATES[event.topic].evolve(None, recorded)
    later = replace(recorded, position=Position(event.topic, 0, 2), correlation=Correlation("else"))
    assert first.correlation == AGGREGATES[event.topic].evolve(first, later).correlation == Correlation("mine", TRACE)
