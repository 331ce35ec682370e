"""The views of feedback against a real store: redelivery, crashes between writes, two hosts, and compaction."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from domain.envelope import encode
from domain.errors import UnavailableError
from domain.events import Erased
from domain.events.feedback import TOPIC, FeedbackGiven, SampleSnapshot, Verdict
from domain.feedback import FEEDBACK
from domain.ports import D, Document, Erasure, Position, Query, Record, TopicPartition, View
from infra.storage.sqlite_log import SqliteLog
from infra.storage.sqlite_store import SqliteStore
from projections.feedback import STATS, VIEWS, groups, stats_id
from projections.hosts.rebuild import _Tally
from projections.project import project

SAMPLES = [
    SampleSnapshot(audio_id=f"a{n}", job_id="j", prompt_id="p", model_id=f"m{n % 2}", adapter_id="jazz" if n else None)
    for n in range(3)
]
VERDICTS: list[tuple[SampleSnapshot, Verdict]] = [
    (SAMPLES[1], "preferred"),
    (SAMPLES[2], "tie"),
    (SAMPLES[1], "both_bad"),
]
EVENTS: list[FeedbackGiven | Erased] = [
    *(
        FeedbackGiven(feedback_id=f"f{n}", sample=SAMPLES[n], rating=rating, tags=tags, user_id=user)
        for n in (0, 1)
        for rating, tags, user in ((4.5, ("warm", "dull"), "ann"), (1.0, (), None), (None, ("warm",), "bob"))
    ),
    *(FeedbackGiven(feedback_id="f0", sample=SAMPLES[0], other=other, verdict=verdict) for other, verdict in VERDICTS),
    *(Erased(topic=TOPIC.name, key=f"f{n}", given_partition_key="j") for n in (0, 1)),
]
HISTORIES = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=10)
IN_A_FOLDER = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records(events: Sequence[FeedbackGiven | Erased]) -> list[Record]:
    made = []
    for offset, event in enumerate(events):
        message = encode(event, event_id=f"event-{offset}", time=f"2026-01-01T00:00:{offset:02}.000000Z")
        made.append(Record(Position(TOPIC.name, 0, offset), message.key, message.value, message.headers))
    return made


class CrashingStore(SqliteStore):
    """Saves and erases in order and stops in between, as a process that dies between two writes does."""

    writes_left = 10**9

    async def save(
        self,
        documents: Sequence[tuple[View[Any], Document]],
        watermarks: Mapping[TopicPartition, int],
        erased: Sequence[Erasure] = (),
    ) -> None:
        for document in documents:
            self._write_one()
            await super().save([document], {})
        for erasure in erased:
            self._write_one()
            await super().save([], {}, [erasure])
        await super().save([], watermarks)

    def _write_one(self) -> None:
        if not self.writes_left:
            raise UnavailableError("The store stopped.")
        self.writes_left -= 1


class SharedStore(SqliteStore):
    """Between its reads, a host that has lost the partition and does not know it yet saves its last batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        found = await super().get(view, ids)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


async def state(store: SqliteStore) -> dict[str, Any]:
    """All that the views hold; where a counter stands is none of its figures."""
    feedback = {each.id: each async for each in store.scan(FEEDBACK)}
    stats = {each.id: replace(each, position=0) async for each in store.scan(STATS)}
    assert all(each.counts for each in stats.values()), "no empty counter is left"
    assert not [stats async for stats in store.scan(STATS) if min(stats.counts.values()) < 1]
    return {**feedback, **stats}


def run(folder: Path, body: Callable[[SqliteLog], Awaitable[None]]) -> None:
    async def opened() -> None:
        log = await SqliteLog.open(folder / "events.db")
        await body(log)
        await log.close()

    asyncio.run(opened())


async def folded(log: SqliteLog, path: Path, batches: Sequence[Sequence[Record]]) -> dict[str, Any]:
    store = await SqliteStore.open(path, VIEWS)
    for batch in batches:
        await project(log, store, batch)
    found = await state(store)
    await store.close()
    return found


@IN_A_FOLDER
@given(events=HISTORIES, data=st.data())
def test_redelivery_in_any_batches_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], data: st.DataObject
) -> None:
    history = records(events)
    spans, end = list[list[Record]](), 0
    while end < len(history):
        start = data.draw(st.integers(0, end))
        end = data.draw(st.integers(max(start, end) if spans and start < end else end + 1, len(history)))
        spans.append(history[start:end])

    async def compare(log: SqliteLog) -> None:
        once = await folded(log, folder / "once.db", [history])
        assert once == await folded(log, folder / "single.db", [[record] for record in history])
        assert once == await folded(log, folder / "again.db", [span for span in spans if span])

    folder = tmp_path_factory.mktemp("redelivery")
    run(folder, compare)


@IN_A_FOLDER
@given(events=HISTORIES, cut=st.integers(0, 30), first=st.integers(1, 10), second=st.integers(1, 10))
def test_a_crash_between_two_writes_costs_nothing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], cut: int, first: int, second: int
) -> None:
    """What comes again after it need not come in the same batches."""
    history = records(events)

    async def compare(log: SqliteLog) -> None:
        store = await CrashingStore.open(folder / "crashed.db", VIEWS)
        store.writes_left = cut
        at = 0
        try:
            while at < len(history):
                await project(log, store, history[at : at + first])
                at += first
        except UnavailableError:
            store.writes_left = 10**9
            while at < len(history):
                await project(log, store, history[at : at + second])
                at += second
        found = await state(store)
        await store.close()
        assert found == await folded(log, folder / "clean.db", [history])

    folder = tmp_path_factory.mktemp("crash")
    run(folder, compare)


@IN_A_FOLDER
@given(events=HISTORIES, before=st.integers(0, 9), cut=st.integers(1, 10))
def test_two_hosts_that_fold_one_partition_at_a_time_agree(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], before: int, cut: int
) -> None:
    history = records(events)

    async def compare(log: SqliteLog) -> None:
        store = await SharedStore.open(folder / "shared.db", VIEWS)
        if history[:before]:
            await project(log, store, history[:before])
        late = history[before:] or history
        store.meanwhile = partial(project, log, store, late[:cut])
        try:
            await project(log, store, late)
        except UnavailableError:  # which the host meets by folding the batch again
            await project(log, store, late)
        found = await state(store)
        await store.close()
        assert found == await folded(log, folder / "clean.db", [history])

    folder = tmp_path_factory.mktemp("two")
    run(folder, compare)


@IN_A_FOLDER
@given(events=HISTORIES, tombstones=st.booleans(), cut=st.integers(0, 10))
def test_views_rebuilt_after_compaction_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], tombstones: bool, cut: int
) -> None:
    """Whatever part of the topic is compacted, and whether the tombstones are there still."""
    history = records(events)
    newest = {record.key: record for record in history}
    compacted = [
        record
        for record in history
        if record.position.offset >= cut or (newest[record.key] is record and (record.value is not None or tombstones))
    ]

    async def compare(log: SqliteLog) -> None:
        live = await folded(log, folder / "live.db", [history])
        assert live == await folded(log, folder / "rebuilt.db", [compacted] if compacted else [])

    folder = tmp_path_factory.mktemp("compaction")
    run(folder, compare)


@IN_A_FOLDER
@given(events=HISTORIES)
def test_the_counters_are_those_of_the_feedback_that_is_there(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any]
) -> None:
    async def compare(log: SqliteLog) -> None:
        store = await SqliteStore.open(folder / "views.db", VIEWS)
        await project(log, store, records(events))
        expected: dict[str, dict[str, int]] = {}
        async for feedback in store.scan(FEEDBACK):
            for group, counts in groups(feedback):
                share = expected.setdefault(stats_id(group, 0), {})
                for name, number in counts.items():
                    share[name] = share.get(name, 0) + number
        assert {stats.id: stats.counts async for stats in store.scan(STATS)} == expected
        ranks = [stats.counts.get("count", 0) for stats in await store.find(STATS, Query(equal={"dimension": "audio"}))]
        assert ranks == sorted(ranks, reverse=True)
        await store.close()

    folder = tmp_path_factory.mktemp("counters")
    run(folder, compare)


async def test_a_host_that_another_has_overtaken_folds_again_rather_than_to_count_below_nothing(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "events.db")
    store = await SharedStore.open(tmp_path / "views.db", VIEWS)
    given, erased = EVENTS[0], EVENTS[-2]
    history = records([given, erased, given])
    await project(log, store, history[:1])
    store.meanwhile = partial(project, log, store, history[1:2])
    with pytest.raises(UnavailableError, match="has to be folded again"):
        await project(log, store, history[1:])
    await project(log, store, history[1:])
    (whole,) = await store.find(STATS, Query(equal={"dimension": "all"}))
    assert whole.counts == {"4.5": 1, "count": 1}
    await store.close()
    await log.close()


async def test_a_rebuild_counts_documents_that_only_stand_elsewhere_as_the_same(tmp_path: Path) -> None:
    """The record that moved the old counter on may have been erased since."""
    stores = [await SqliteStore.open(tmp_path / name, VIEWS) for name in ("old.db", "new.db")]
    log = await SqliteLog.open(tmp_path / "events.db")
    history = records([EVENTS[0], EVENTS[3], EVENTS[-1]])
    for store, kept in zip(stores, (history, history[:1]), strict=True):
        await project(log, store, kept)
    tally = _Tally()
    old, new = [{each.id: each async for each in store.scan(STATS)} for store in stores]
    assert [each.position for each in old.values()] != [each.position for each in new.values()]
    apart = {tally.compare(old[id_], new[id_]) for id_ in old}
    assert (apart, tally.documents, tally.old) == ({None}, len(old), tally.new)
    for store in stores:
        await store.close()
    await log.close()
