"""A/B tests over HTTP, with a worker and the reaction beside: created, generated, ready, voted on, closed."""

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.ab_tests import AB_TESTS, AB_VOTES, ARMS, job_id, job_ids
from domain.correlation import Correlation
from domain.events import Erased, Event
from domain.events.ab_tests import ABTestReady
from domain.events.jobs import JobCancelRequested, JobDeleted, JobPurged
from domain.jobs import JOBS
from domain.journal import Journal
from domain.ports import D, Position, Query, View
from domain.trials import Trial
from tests import audit
from tests.conditions import eventually
from tests.digest import digests
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts, open_parts, stop
from workers import ab_tests
from workers.ab_tests import ABTestReaction
from workers.engine import EngineError
from workers.reactions import Reactions

ASKED = {"name": "base against base", "prompts": ["rain on a tin roof", "slow blues"], "duration": 1.0, "seed": 7}


@contextlib.asynccontextmanager
async def reacting(parts: Parts, journal: Journal | None = None) -> AsyncIterator[None]:
    reaction = ABTestReaction(journal or parts.journal, parts.store)
    running = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, [reaction]).run())
    try:
        yield
    finally:
        await stop(running)


async def created(parts: Parts, **changes: Any) -> dict[str, Any]:
    answer = await parts.http.post("/ab-tests", json={**ASKED, **changes})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def shown(parts: Parts, ab_test_id: str) -> dict[str, Any]:
    return dict((await parts.http.get(f"/ab-tests/{ab_test_id}")).json())


async def when(parts: Parts, ab_test_id: str, **fields: Any) -> dict[str, Any]:
    """The test once it shows these fields."""

    async def shows() -> dict[str, Any] | None:
        body = await shown(parts, ab_test_id)
        return body if body.items() >= fields.items() else None

    body = await eventually(shows)
    assert body is not None
    return body


async def ready(parts: Parts, **changes: Any) -> dict[str, Any]:
    """A test whose pairs are generated."""
    async with reacting(parts), parts.working(ScriptedEngine()):
        return await when(parts, (await created(parts, **changes))["id"], status="ready")


async def sealed(parts: Parts, ab_test_id: str, pair: int = 0, voter: str = "ann", **changes: Any) -> str:
    trial = Trial(**{"ab_test_id": ab_test_id, "pair": pair, "voter": voter, "left": "B", **changes})
    return (await parts.services.seals.get()).seal(trial)


async def vote(parts: Parts, ab_test_id: str, pair: int = 0, voter: str = "ann", **body: Any) -> httpx.Response:
    asked = {"trial_id": await sealed(parts, ab_test_id, pair, voter), "choice": "left", **body}
    return await parts.http.post(f"/ab-tests/{ab_test_id}/votes", json=asked)


async def test_generate_for_ab_test(parts: Parts) -> None:
    """Jobs for both arms with the same prompt and seed, linked to the test."""
    engine = ScriptedEngine()
    async with reacting(parts), parts.working(engine):
        answer = await parts.http.post("/ab-tests", json=ASKED)
        test = answer.json()
        assert answer.headers["Location"] == f"/ab-tests/{test['id']}"
        assert answer.headers["X-Event-Position"] == "abtests/0/0"
        assert (test["status"], test["progress"]) == ("generating", "0/2 pairs generated")
        assert "this is an A/A test" in test["notice"]
        await when(parts, test["id"], status="ready")
    listed = (await parts.http.get(f"/jobs?ab_test_id={test['id']}")).json()["items"]
    jobs = {job["id"]: job for job in listed}
    assert jobs.keys() == {pair[job] for pair in test["pairs"] for job in ("job_a", "job_b")}
    for number, pair in enumerate(test["pairs"]):
        a, b = jobs[pair["job_a"]], jobs[pair["job_b"]]
        assert a["prompt_id"] == b["prompt_id"]
        assert a["prompt"] == b["prompt"] == pair["prompt"] == ASKED["prompts"][number]  # type: ignore[index]
        assert a["generation_params"] == b["generation_params"]
        assert a["generation_params"]["seeds"] == [pair["seed"]] == [7 + number]
        assert a["ab_test_id"] == b["ab_test_id"] == test["id"]
        assert (await parts.http.get(f"/prompts/{a['prompt_id']}")).json()["text"] == pair["prompt"]
    assert len(engine.requests) == 4
    assert (await parts.http.get("/jobs?ab_test_id=another")).json()["total"] == 0


async def test_track_ab_generation_progress(parts: Parts) -> None:
    """`0/3 pairs generated` and so on, and ready when all pairs are complete."""
    engine, seen = ScriptedEngine(), list[str]()
    engine.close_after(3)
    async with reacting(parts), parts.working(engine):
        test = await created(parts, prompts=["a", "b", "c"])
        half = await when(parts, test["id"], pairs_generated=1)
        seen.append(half["progress"])
        [row] = (await parts.http.get("/ab-tests?status=generating")).json()["items"]
        assert row == {name: value for name, value in half.items() if name != "pairs"}
        assert [pair["status"] for pair in half["pairs"]] == ["generated", "generating", "generating"]
        engine.release()
        whole = await when(parts, test["id"], status="ready")
    assert [*seen, whole["progress"]] == ["1/3 pairs generated", "3/3 pairs generated"]
    assert (whole["pairs_total"], whole["pairs_generated"], whole["pairs_failed"]) == (3, 3, 0)
    assert whole["ready_at"] > whole["created_at"]
    assert [row["id"] for row in (await parts.http.get("/ab-tests?status=ready")).json()["items"]] == [test["id"]]


async def test_stored_prompts_are_named_by_id(parts: Parts) -> None:
    made = (await parts.http.post("/prompts", json={"text": "rain", "attributes": {"mood": "calm"}})).json()
    test = await created(parts, prompts=None, prompt_ids=[made["id"]], pairs_per_prompt=2)
    async with reacting(parts):
        await eventually(lambda: parts.job(test["pairs"][1]["job_b"]))
    job = (await parts.http.get(f"/jobs/{test['pairs'][1]['job_b']}")).json()
    assert (job["prompt_id"], job["model_prompt"]) == (made["id"], "rain, calm")
    assert (await parts.http.get("/prompts")).json()["total"] == 1


async def test_a_retry_under_one_key_is_one_test(parts: Parts) -> None:
    key = {"Idempotency-Key": "once"}
    first, second = [await parts.http.post("/ab-tests", json=ASKED, headers=key) for _ in range(2)]
    assert first.json() == second.json()
    other = await parts.http.post("/ab-tests", json={**ASKED, "seed": 8}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert (await parts.http.get("/ab-tests")).json()["total"] == 1


async def test_failed_cancelled_and_deleted_pairs_are_left_out_and_the_test_is_ready(parts: Parts) -> None:
    engine = ScriptedEngine()
    engine.faults.append(EngineError("The prompt cannot be sung.", transient=False))
    async with reacting(parts):
        test = await created(parts, prompts=["a", "b", "c", "d"])
        await eventually(lambda: parts.job(test["pairs"][3]["job_b"]))
        assert (await parts.http.delete(f"/generate/{test['pairs'][1]['job_a']}")).status_code == 200
        assert (await parts.http.delete(f"/jobs/{test['pairs'][2]['job_b']}")).status_code == 200
        assert (await shown(parts, test["id"]))["pairs_failed"] == 2
        async with parts.working(engine):
            body = await when(parts, test["id"], status="ready")
    assert body["progress"] == "1/4 pairs generated"
    assert [pair["status"] for pair in body["pairs"]] == ["failed", "failed", "failed", "generated"]


async def test_a_pair_whose_job_is_deleted_later_is_left_out(parts: Parts) -> None:
    test = await ready(parts)
    assert (await vote(parts, test["id"], pair=1)).status_code == 201
    assert (await parts.http.delete(f"/jobs/{test['pairs'][1]['job_a']}")).status_code == 200
    # With no reaction running, what is asked for by id knows it, and the list does not yet.
    assert (await shown(parts, test["id"]))["progress"] == "1/2 pairs generated"
    refused = await vote(parts, test["id"], pair=1, voter="bob")
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "The vote does not count: pair 1 is left out, as a job of it was deleted.",
    )

    async def listed() -> bool:
        [row] = (await parts.http.get("/ab-tests")).json()["items"]
        return (row["status"], row["pairs_failed"]) == ("ready", 1)

    async with reacting(parts):
        await eventually(listed)
    assert (await vote(parts, test["id"], pair=1, voter="bob")).status_code == 409
    assert (await parts.http.get(f"/ab-tests/{test['id']}/results")).json()["votes"] == 1
    assert await parts.history(test["id"], "abtests") == [
        "abtest.created.v1",
        "abtest.ready.v1",
        "abtest.vote.cast.v1",
        "abtest.ready.v1",
    ]


async def test_a_test_of_no_generated_pair_is_ready_too(parts: Parts) -> None:
    async with reacting(parts):
        test = await created(parts, prompts=["a"])
        await eventually(lambda: parts.job(test["pairs"][0]["job_b"]))
        await parts.journal.append(*(JobDeleted(job_id=test["pairs"][0][job]) for job in ("job_a", "job_b")))
        body = await when(parts, test["id"], status="ready")
    assert (body["progress"], body["pairs_failed"]) == ("0/1 pairs generated", 1)


async def test_a_purged_pair_counts_as_generated(parts: Parts) -> None:
    test = await ready(parts, prompts=["a"])
    await parts.journal.append(JobPurged(job_id=test["pairs"][0]["job_a"]))
    await parts.host.caught_up(10)
    assert (await shown(parts, test["id"]))["progress"] == "1/1 pairs generated"


async def test_a_vote_is_told_the_arms_and_counts_once(parts: Parts) -> None:
    test = await ready(parts)
    said: dict[str, Any] = {"heard_first": "right", "seconds_listened": {"left": 3, "right": 2.5}, "notes": "warmer"}
    answer = await vote(parts, test["id"], choice="left", **said)
    assert answer.status_code == 201
    body = answer.json()
    assert (body["choice"], body["left_arm"], body["right_arm"]) == ("left", "B", "A")
    assert body["adapters"] == {"A": None, "B": None}
    assert answer.headers["X-Event-Position"].startswith("abtests/0/")
    ends = await parts.log.ends("abtests")
    same = await vote(parts, test["id"], choice="left", **said)
    assert (same.status_code, same.json()) == (201, body)
    assert same.headers["X-Event-Position"] == answer.headers["X-Event-Position"]
    assert await parts.log.ends("abtests") == ends
    again = await vote(parts, test["id"], choice="right")
    assert (again.status_code, again.json()["detail"]) == (
        409,
        "There is a vote of this voter on this trial, and the first one counts. Ask for the next.",
    )
    await parts.host.caught_up(10)
    [kept] = await parts.store.find(AB_VOTES, Query())
    assert (kept.id, kept.event.choice, kept.event.seconds_right, kept.event.notes) == (
        body["vote_id"],
        "left",
        2.5,
        "warmer",
    )


async def test_of_two_votes_at_once_one_counts(parts: Parts) -> None:
    test = await ready(parts)
    answers = await asyncio.gather(*(vote(parts, test["id"], choice=choice) for choice in ("left", "right", "tie")))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    [winner] = [answer.json() for answer in answers if answer.status_code == 201]
    await parts.host.caught_up(10)
    [kept] = await parts.store.find(AB_VOTES, Query())
    assert kept.event.choice == winner["choice"]


async def test_one_vote_sent_twice_at_once_is_answered_twice_and_counts_once(parts: Parts) -> None:
    test = await ready(parts)
    answers = await asyncio.gather(*(vote(parts, test["id"], choice="left") for _ in range(3)))
    assert [answer.status_code for answer in answers] == [201] * 3
    assert len({answer.json()["vote_id"] for answer in answers}) == 1
    await parts.host.caught_up(10)
    assert len(await parts.store.find(AB_VOTES, Query())) == 1


async def test_both_sides_of_a_catch_trial_are_of_one_arm(parts: Parts) -> None:
    test = await ready(parts)
    trial_id = await sealed(parts, test["id"], left="B", catch="B", number=1)
    for trial, arms in ((trial_id, ("B", "B")), (await sealed(parts, test["id"]), ("B", "A"))):
        body = (
            await parts.http.post(f"/ab-tests/{test['id']}/votes", json={"trial_id": trial, "choice": "tie"})
        ).json()
        assert (body["left_arm"], body["right_arm"]) == arms


async def test_votes_are_known_before_the_views_show_them(tmp_path: Path) -> None:
    async with open_parts(tmp_path) as parts:
        test = await ready(parts)
    async with open_parts(tmp_path, is_folded=False) as parts:
        first = await vote(parts, test["id"], choice="tie")
        assert first.status_code == 201, first.text
        assert (await vote(parts, test["id"], choice="left")).status_code == 409
        assert (await parts.http.post(f"/ab-tests/{test['id']}/close", json={})).json()["status"] == "closed"
        assert (await vote(parts, test["id"], voter="bob")).status_code == 409
        assert await parts.store.find(AB_VOTES, Query()) == []


async def test_closing_ends_the_votes(parts: Parts) -> None:
    test = await ready(parts)
    await vote(parts, test["id"])
    closed = [await parts.http.post(f"/ab-tests/{test['id']}/close", json={}) for _ in range(2)]
    assert [answer.status_code for answer in closed] == [200, 200]
    assert closed[0].json() == closed[1].json()
    assert closed[0].json()["status"] == "closed"
    late = await vote(parts, test["id"], pair=1)
    assert (late.status_code, late.json()["detail"]) == (409, "The vote does not count: the test is closed.")
    assert (await parts.history(test["id"], "abtests")).count("abtest.closed.v1") == 1
    assert (await parts.http.get(f"/ab-tests/{test['id']}/results")).json()["votes"] == 1


async def test_results_are_of_the_votes_that_count_as_json_and_csv(parts: Parts) -> None:
    test = await ready(parts)
    for voter, choice in (("ann", "left"), ("bob", "right"), ("=1+1", "tie")):
        answer = await vote(parts, test["id"], voter=voter, choice=choice)
        assert answer.status_code == 201
    await vote(parts, test["id"], voter="ann", choice="right")
    found = (await parts.http.get(f"/ab-tests/{test['id']}/results")).json()
    assert (found["votes"], found["voters"], found["wins"], found["ties"]) == (3, 3, {"A": 1, "B": 1}, 1)
    assert found["verdict"] == "inconclusive"
    answer = await parts.http.get(f"/ab-tests/{test['id']}/results?format=csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["voter"], row["choice"], row["chosen_arm"]) for row in rows] == [
        ("ann", "left", "B"),
        ("bob", "right", "A"),
        ("'=1+1", "tie", ""),
    ]


@pytest.mark.parametrize(
    ("changes", "status", "pointer", "detail"),
    [
        ({"prompts": []}, 400, "/prompts", "prompts has 0 entries; give 1 to 500."),
        ({"prompts": None}, 400, "/prompts", "Give either prompt_ids or prompts: stored prompts, or the texts of new"),
        ({"pairs_per_prompt": 251}, 400, "/pairs_per_prompt", "2 prompts with 251 pairs each make 502 pairs; a test"),
        ({"catch_trials": 1}, 400, "/catch_trials", "catch_trials is 1; with 2 pairs it goes from 0 to 0, one in ten"),
        ({"duration": 301}, 400, "/duration", "The requested duration is 301 s; text2song/wiring-noise makes from 0.5"),
        ({"guidance_scale": 0}, 400, "/guidance_scale", "guidance_scale is 0; it must be from 1 to 20."),
        ({"colour": "blue"}, 400, "/colour", "There is no field 'colour'"),
        ({"name": None}, 400, "/name", ""),
        ({"prompts": None, "prompt_ids": ["unknown"]}, 404, None, "There is no prompt 'unknown'."),
        ({"adapter_a": "unknown"}, 404, None, "There is no adapter 'unknown'."),
        ({"adapter_b": "unknown"}, 404, None, "There is no adapter 'unknown'."),
    ],
)
async def test_a_test_that_cannot_be_is_refused_and_nothing_is_appended(
    parts: Parts, changes: dict[str, Any], status: int, pointer: str | None, detail: str
) -> None:
    answer = await parts.http.post("/ab-tests", json={**ASKED, **changes})
    problem = answer.json()
    assert answer.status_code == status
    assert problem["detail"].startswith(detail)
    assert [fault["pointer"] for fault in problem.get("errors", [])] == ([] if pointer is None else [pointer])
    assert await audit.records(parts.log, "abtests") == []


async def test_what_is_asked_of_no_test_and_in_wrong_words_is_refused(parts: Parts) -> None:
    test = await created(parts)
    path, trial_id = f"/ab-tests/{test['id']}", await sealed(parts, test["id"])
    for answer in (
        await parts.http.get("/ab-tests/unknown"),
        await parts.http.get("/ab-tests/unknown/results"),
        await parts.http.post("/ab-tests/unknown/close", json={}),
        await parts.http.post("/ab-tests/unknown/votes", json={"trial_id": trial_id, "choice": "tie"}),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (404, "There is no A/B test 'unknown'.")
    for body, pointer in (
        ({"trial_id": trial_id, "choice": "both"}, "/choice"),
        ({"trial_id": trial_id}, "/choice"),
        ({"trial_id": trial_id, "choice": "tie", "heard_first": "A"}, "/heard_first"),
        ({"trial_id": trial_id, "choice": "tie", "seconds_listened": {"left": -1}}, "/seconds_listened/left"),
        ({"trial_id": trial_id, "choice": "tie", "seconds_listened": {"right": 1e9}}, "/seconds_listened/right"),
        ({"trial_id": trial_id, "choice": "tie", "notes": "x" * 4001}, "/notes"),
    ):
        answer = await parts.http.post(f"{path}/votes", json=body)
        assert (answer.status_code, [fault["pointer"] for fault in answer.json()["errors"]]) == (400, [pointer])
    assert (await parts.http.get("/ab-tests?status=open")).status_code == 400
    assert (await parts.http.get(f"{path}/results?format=xml")).status_code == 400
    assert (await parts.http.post(f"{path}/close", json={"why": "tired"})).status_code == 400


async def test_forged_foreign_and_early_trials_are_refused(parts: Parts) -> None:
    test, other = await created(parts), await created(parts)
    early = await vote(parts, test["id"])
    assert (early.status_code, early.json()["detail"]) == (409, "The vote does not count: the test is generating.")
    foreign = await vote(parts, test["id"], trial_id=await sealed(parts, other["id"]))
    forged = await vote(parts, test["id"], trial_id="AAAA" * 20)
    absent = await vote(parts, test["id"], pair=9)
    assert [answer.status_code for answer in (foreign, forged, absent)] == [404, 404, 409]
    assert not [
        record for record in await audit.records(parts.log, "abtests") if b"ABVoteCast" in (record.value or b"")
    ]


class Mortal(Journal):
    """Stands still at one append, before it or after it."""

    def __init__(self, journal: Journal, appends: int, *, is_written: bool) -> None:
        super().__init__(journal.log, journal.now, journal.new_id)
        self.dead = asyncio.Event()
        self._appends = appends
        self._is_written = is_written

    async def append_as(
        self, events: Sequence[tuple[str, Event | Erased]], causes: Sequence[Correlation | None] = ()
    ) -> list[Position]:
        self._appends -= 1
        if self._appends < 0:
            if self._is_written:
                await super().append_as(events, causes)
            self.dead.set()
            await asyncio.Event().wait()
        return await super().append_as(events, causes)


async def test_a_crash_at_any_append_loses_nothing_and_doubles_nothing(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ab_tests, "SUBMITTED_AT_ONCE", 1)
    test = await created(parts)
    async with parts.working(ScriptedEngine()):
        # Two prompts, four jobs, and the word that they have ended.
        for crash in range(14):
            mortal = Mortal(parts.journal, 0, is_written=crash % 2 == 1)
            async with reacting(parts, mortal):
                if crash == 12:
                    for pair in test["pairs"]:
                        for job in ("job_a", "job_b"):
                            await parts.when(pair[job], "completed")
                async with asyncio.timeout(20):
                    await mortal.dead.wait()
            # What is on the log is seen by the next one.
            assert await parts.host.caught_up(10)
        async with reacting(parts):
            await when(parts, test["id"], status="ready", progress="2/2 pairs generated")
    jobs = await audit.jobs(parts.log)
    assert jobs.keys() == {pair[job] for pair in test["pairs"] for job in ("job_a", "job_b")}
    for id_ in jobs:
        assert (await parts.history(id_)).count("job.submitted.v1") == 1
    assert len(await audit.records(parts.log, "prompts")) == 2
    assert await parts.history(test["id"], "abtests") == ["abtest.created.v1", "abtest.ready.v1"]
    assert await parts.host.caught_up(10)
    rebuilt = await audit.replayed(parts.log, tmp_path)
    now = await digests(parts.store)
    assert {view.name: rebuilt[view.name] for view in (AB_TESTS, AB_VOTES, JOBS)} == {
        view.name: now[view.name] for view in (AB_TESTS, AB_VOTES, JOBS)
    }


async def test_two_reactions_at_once_are_as_one(parts: Parts) -> None:
    tests = [await created(parts, prompts=[f"{n}a", f"{n}b"]) for n in range(3)]
    async with reacting(parts), reacting(parts), parts.working(ScriptedEngine()):
        for test in tests:
            await when(parts, test["id"], status="ready", progress="2/2 pairs generated")
    jobs = await audit.jobs(parts.log)
    assert len(jobs) == 12
    assert all(holding.count("JobSubmitted") == 1 for _, holding in jobs.values())
    assert all(job.attempt == 1 for job, _ in jobs.values())
    assert (await parts.http.get("/prompts")).json()["total"] == 6


class Counting:
    """Counts the documents that are read of a store."""

    def __init__(self, parts: Parts) -> None:
        self.documents = 0
        self._store = parts.store

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        self.documents += len(ids)
        return await self._store.get(view, ids)

    async def count(self, view: View[D], query: Query) -> int:
        return await self._store.count(view, query)


async def test_a_large_test_is_followed_without_reading_all_its_jobs_at_each_end(parts: Parts) -> None:
    pairs = 60
    test = await created(parts, prompts=["rain"], pairs_per_prompt=pairs)
    counting: Any = Counting(parts)
    reaction = ABTestReaction(parts.journal, counting)
    [creation] = [event async for event in _followed(parts, "abtests", 1)]
    await parts.host.caught_up(10)
    await reaction.react([creation])
    ids = [pair[job] for pair in test["pairs"] for job in ("job_a", "job_b")]
    await parts.journal.append(*(JobCancelRequested(job_id=id_) for id_ in ids[:-1]))
    ended = [event async for event in _followed(parts, "jobs", 4 * pairs - 1)]
    await parts.host.caught_up(10)
    counting.documents = 0
    for record in ended:
        await reaction.react([record])
    assert counting.documents <= 3 * len(ended)
    assert await parts.history(test["id"], "abtests") == ["abtest.created.v1"]
    [last] = await parts.journal.append(JobCancelRequested(job_id=ids[-1]))
    await parts.host.caught_up(10)
    await reaction.react([event async for event in _followed(parts, "jobs", 1, last.offset)])
    body = await when(parts, test["id"], status="ready")
    assert body["pairs_failed"] == pairs


async def _followed(parts: Parts, topic: str, count: int, offset: int = 0) -> AsyncIterator[Any]:
    """That many records."""
    async for batch in parts.journal.follow({(topic, 0): offset}):
        for recorded in batch.records:
            yield recorded
            count -= 1
        if count <= 0:
            return


async def test_a_strangers_word_that_a_test_is_ready_leaves_pairs_generating_readable(parts: Parts) -> None:
    test = await created(parts)
    await parts.journal.append(ABTestReady(ab_test_id=test["id"], failed=(1,)))
    body = await when(parts, test["id"], status="ready")
    assert [pair["status"] for pair in body["pairs"]] == ["generated", "failed"]
    assert job_id(test["id"], 0, ARMS[0]) == body["pairs"][0]["job_a"]
    found = (await parts.store.get(AB_TESTS, [test["id"]]))[test["id"]]
    assert job_ids(found) == [pair[job] for pair in body["pairs"] for job in ("job_a", "job_b")]
