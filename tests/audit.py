"""Whether a studio kept its word: what its log says, against what it agreed to, shows and stores."""

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import soundfile

from domain.ab_tests import AB_TESTS, ABTest, counted
from domain.ab_tests import evolve as evolve_test
from domain.envelope import decode
from domain.events import Recorded
from domain.events.ab_tests import ABVoteCast
from domain.events.feedback import FeedbackGiven
from domain.feedback import FEEDBACK
from domain.jobs import Job, evolve, renditions
from domain.ports import EventLog, ObjectStore, ReadStore, Record
from infra.storage.sqlite_store import SqliteStore
from projections.project import FOLDS, VIEWS, project
from tests.customer import Customer
from tests.digest import digests

ENDINGS: Final = {"JobCompleted", "JobFailed", "JobCancelled"}

Folded: TypeAlias = tuple[Job, list[str]]


async def records(log: EventLog, topic: str) -> list[Record]:
    """Every record, partition by partition."""
    found: list[Record] = []
    for partition in await log.ends(topic):
        offset = 0
        while page := await log.read(topic, partition, offset):
            found += page
            offset = page[-1].position.offset + 1
    return found


async def jobs(log: EventLog) -> dict[str, Folded]:
    """Every job, and the types of its events that hold."""
    histories = defaultdict(list)
    for record in await records(log, "jobs"):
        histories[record.key].append(decode(record))
    return {job_id: _fold(history) for job_id, history in histories.items()}


def _fold(history: list[Recorded]) -> Folded:
    job, holding = None, []
    for recorded in history:
        again = job is not None and job.outcome(recorded.id) is not None
        job = evolve(job, recorded)
        assert job is not None
        if not again and (outcome := job.outcome(recorded.id)) and outcome.reason is None:
            holding.append(recorded.type)
    assert job is not None
    return job, holding


async def settled(log: EventLog, objects: ObjectStore, customer: Customer) -> dict[str, Folded] | None:
    """Every job, once none is missing or open, and no object is left that belongs to none or to a deleted one."""
    folded = await jobs(log)
    if folded.keys() != customer.accepted.keys() or any(job.is_open or job.awaits_purge for job, _ in folded.values()):
        return None
    possible = {key for job, _ in folded.values() for key in _keys(job)}
    heard = tuple(f"{renditions(job.id)}/" for job, _ in folded.values() if _keys(job))
    left = [info.key for info in await objects.list("") if info.key not in possible]
    return folded if all(key.startswith(("secrets/", *heard)) for key in left) else None


def _keys(job: Job) -> set[str]:
    """The objects the job may have."""
    return keys(
        [] if job.status == "cancelled" or job.purged_at else [sample.event.storage_path for sample in job.samples]
    )


def keys(paths: Iterable[str]) -> set[str]:
    """The objects of samples: the audio under the path, and its waveform beside it."""
    return {path.removesuffix("flac") + suffix for path in paths for suffix in ("flac", "json")}


async def compare(folded: Mapping[str, Folded], customer: Customer, objects: ObjectStore) -> None:
    """Fails unless each job the customer ordered, and no other, ended once, as agreed, with all its audio intact."""
    assert {job_id: len(job.request.seeds) for job_id, (job, _) in folded.items()} == customer.accepted
    for job_id, (job, holding) in folded.items():
        ended = [type_ for type_ in holding if type_ in ENDINGS]
        # That a job is cancelled may be said again, by the worker that took it over.
        assert len(ended) <= 1 or set(ended) == {"JobCancelled"}, holding
        assert job.status == "cancelled" or job_id not in customer.cancelled
        assert (job.deleted_at is not None) == (job_id in customer.deleted)
        match job.status:
            case "completed":
                assert [sample.event.index for sample in job.samples] == [*range(customer.accepted[job_id])]
            case "failed":
                assert "vanished" in str(job.error) or "died" in str(job.error)
        for event in (sample.event for sample in job.audible):
            audio = b"".join([chunk async for chunk in objects.read(event.storage_path)])
            assert (len(audio), sha256(audio).hexdigest()) == (event.size, event.sha256)
            pcm, rate = soundfile.read(io.BytesIO(audio))
            assert (rate, len(pcm) / rate) == (event.sample_rate, event.duration_seconds)


async def feedback(log: EventLog) -> dict[str, str | None]:
    """The notes of all feedback that is not erased."""
    said: dict[str, FeedbackGiven] = {}
    for record in await records(log, FEEDBACK.name):
        match decode(record).event:
            case FeedbackGiven() as event:
                said[record.key] = event
            case _:
                said.pop(record.key, None)
    return {id_: event.notes for id_, event in said.items()}


async def is_erased(log: EventLog, customer: Customer) -> bool:
    """Whether no feedback is left that the customer erased, or whose job it deleted."""
    return (await feedback(log)).keys() <= customer.standing.keys()


async def compare_feedback(log: EventLog, customer: Customer) -> None:
    """Fails unless the log holds the feedback that stands, as it was said last, and no other."""
    assert await feedback(log) == {id_: body["notes"] for id_, body in customer.standing.items()}


async def compare_votes(log: EventLog, customer: Customer) -> None:
    """Fails unless each vote that was taken counts, once and as it was cast, and no other but those in doubt."""
    tests: dict[str, ABTest | None] = {}
    votes: dict[str, ABVoteCast] = {}
    for record in await records(log, AB_TESTS.name):
        recorded = decode(record)
        test = tests.get(record.key)
        if vote := counted(test, recorded):
            votes.setdefault(vote.id, vote.event)
        tests[record.key] = evolve_test(test, recorded)
    assert customer.votes == {id_: vote.notes for id_, vote in votes.items() if id_ in customer.votes}
    notes = [vote.notes for vote in votes.values()]
    assert len(set(notes)) == len(notes)
    assert {str(vote.notes): vote.choice for vote in votes.values()}.items() <= customer.voted.items()


async def is_folded(log: EventLog, store: ReadStore) -> bool:
    """Whether the views hold all that is on the log."""
    marks = await store.watermarks()
    ends = {(topic, number): end for topic in FOLDS for number, end in (await log.ends(topic)).items() if end}
    return all(marks.get(at, 0) >= end for at, end in ends.items())


async def replayed(log: EventLog, folder: Path) -> dict[str, str]:
    """The digests of views folded record by record from start to end, with nothing in the way."""
    store = await SqliteStore.open(folder / "plain.db", VIEWS)
    for topic in FOLDS:
        for record in await records(log, topic):
            await project(log, store, [record])
    found = await digests(store)
    await store.close()
    return found
