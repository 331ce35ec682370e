"""What a receiver is owed, and what replaying does to a delivery."""

from typing import Any

import pytest
from msgspec.structs import replace

from domain import webhooks
from domain.contract.webhooks import DELIVERED, FAILED, HASTENED, ID, LATER, QUEUED, RELEASED, REQUEUED, started
from domain.errors import NotFoundError
from domain.events import Event, Recorded
from domain.events.jobs import JobCancelRequested, JobFailed, JobStarted, JobSubmitted
from domain.jobs import Job
from domain.jobs import evolve as evolve_job
from domain.ports import Position
from domain.webhooks import KINDS, Delivery, deliveries, evolve
from tests.unit.test_events import golden
from workers.addresses import is_loopback, is_public

SUBMITTED: JobSubmitted = replace(golden(JobSubmitted), webhook_url="https://example.org/hook", webhook_events=())


def folded(fold: Any, *events: Event) -> Any:
    state = None
    for offset, event in enumerate(events):
        position = Position(event.topic, 0, offset)
        recorded = Recorded(position, event.key, f"event-{offset}", f"2026-01-31T12:00:{offset:02}.000000Z", event)
        state = fold(fold(state, recorded), recorded)
    return state


def delivery(*events: Event) -> Delivery:
    found: Delivery = folded(evolve, QUEUED, *events)
    return found


def job(*events: Event, **changes: Any) -> Job:
    found: Job = folded(evolve_job, replace(SUBMITTED, **changes), *events)
    return found


STARTED = JobStarted(job_id=SUBMITTED.job_id, attempt=1, worker_id="w1")
ENDED = JobFailed(job_id=SUBMITTED.job_id, attempt=1, error="out of tune")


@pytest.mark.parametrize(
    ("events", "wanted", "kinds"),
    [
        ((), (), []),
        ((STARTED,), (), []),
        ((STARTED,), KINDS, ["job.started"]),
        ((STARTED, ENDED), (), ["job.failed"]),
        ((STARTED, ENDED), KINDS, ["job.started", "job.failed"]),
        ((STARTED, ENDED), ("job.completed",), []),
        ((JobCancelRequested(job_id=SUBMITTED.job_id),), (), ["job.cancelled"]),
    ],
)
def test_what_is_owed_follows_from_the_job(
    events: tuple[Event, ...], wanted: tuple[str, ...], kinds: list[str]
) -> None:
    owed = [*deliveries(job(*events, webhook_events=wanted))]
    assert [message.kind for message in owed] == kinds
    assert owed == [*deliveries(job(*events, webhook_events=wanted))]
    assert len({message.delivery_id for message in owed}) == len(owed)


def test_a_job_without_an_address_owes_nothing() -> None:
    assert [*deliveries(job(STARTED, ENDED, webhook_url=None))] == []


@pytest.mark.parametrize(
    ("events", "status", "retry_at", "failures"),
    [
        ((started(1),), "sending", None, 0),
        ((started(1), DELIVERED), "delivered", None, 0),
        ((started(1), FAILED), "failed", None, 0),
        ((started(1), REQUEUED), "queued", LATER, 1),
        ((started(1), RELEASED), "queued", None, 0),
        ((started(1), REQUEUED, HASTENED), "queued", None, 1),
    ],
)
def test_a_delivery_after_its_events(
    events: tuple[Event, ...], status: str, retry_at: str | None, failures: int
) -> None:
    found = delivery(*events)
    assert (found.status, found.retry_at, found.failures) == (status, retry_at, failures)


def test_replaying_one_that_ended_makes_another_of_the_same_message() -> None:
    for ended in (delivery(started(1), DELIVERED), delivery(started(1), FAILED)):
        assert webhooks.replay(ended, ID, "new") == [replace(QUEUED, delivery_id="new")]


def test_replaying_one_that_waits_hastens_it_and_saying_it_twice_changes_nothing() -> None:
    assert webhooks.replay(delivery(started(1), REQUEUED), ID, "new") == [HASTENED]
    for at_once in (delivery(), delivery(started(1)), delivery(started(1), REQUEUED, HASTENED)):
        assert webhooks.replay(at_once, ID, "new") == []
    with pytest.raises(NotFoundError, match="webhook delivery 'nobody'"):
        webhooks.replay(None, "nobody", "new")


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "192.0.1.1", "172.32.0.1", "2606:4700:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8"],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)
    assert not is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.1",
        "10.255.255.255",
        "100.127.255.255",
        "127.8.9.10",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.19.255.255",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_every_other_address_is_not(address: str) -> None:
    assert not is_public(address)
