"""Datasets over HTTP, on a local studio: built from what listeners said, exported, and told what was erased."""

import asyncio
import io
import json
import os
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from domain.ab_tests import ARMS, job_id, vote_id
from domain.datasets import DATASETS, Dataset, folder
from domain.envelope import decode
from domain.events import Erased
from domain.events.ab_tests import ABTestCreated, ABTestReady, ABVoteCast, Choice, Pair
from domain.events.datasets import DatasetBuilt, DatasetCreated, DatasetRecordsErased, DatasetStarted, Filters
from domain.events.feedback import FeedbackGiven, SampleSnapshot
from domain.events.jobs import JobCompleted, JobDeleted, JobStarted, SampleGenerated
from domain.jobs import waveform
from domain.models import NOISE
from infra.backup import back_up, restore
from tests.audit import records
from tests.conditions import eventually
from tests.local.parts import LEASE, Parts, open_parts, stop, submission
from workers import dataset_erasures
from workers import datasets as building
from workers.dataset_erasures import ErasureFromDatasets
from workers.dataset_exports import ExportOfDatasets
from workers.dataset_rebuild import find, rebuild
from workers.mastering import master
from workers.reactions import PROGRESS, Reactions


def flac(seed: int) -> bytes:
    tone = 0.3 * np.sin(2 * np.pi * (200 + 40 * seed) * np.arange(4_000, dtype=np.float32) / 8_000)
    return master(tone.astype(np.float32)[None, :], 8_000, {"title": str(seed)}).flac


def flac_of(sound: NDArray[np.float32]) -> bytes:
    return master(sound[None, :], NOISE.sample_rate, {}).flac


CLIPS = [flac(seed) for seed in range(4)]


async def song(
    parts: Parts,
    job_id: str,
    *,
    prompt_id: str = "prompt",
    samples: int = 2,
    clips: Sequence[bytes] = CLIPS,
    **changes: Any,
) -> None:
    """A job that was made, with its audio: samples `{job_id}-0` and so on."""
    changes = {"seeds": [*range(samples)], "prompt_id": prompt_id, "prompt": f"words of {prompt_id}", **changes}
    made = []
    for index in range(samples):
        path = f"samples/{job_id}/1/1/{index}.flac"
        await parts.objects.put(path, clips[index])
        made.append(
            SampleGenerated(
                job_id=job_id,
                attempt=1,
                index=index,
                sample_id=f"{job_id}-{index}",
                seed=index,
                storage_path=path,
                duration_seconds=0.5,
                sample_rate=8_000,
                channels=1,
                size=len(clips[index]),
                sha256=sha256(clips[index]).hexdigest(),
            )
        )
    await parts.journal.append(
        submission(job_id, **changes),
        JobStarted(job_id=job_id, attempt=1, worker_id="worker"),
        *made,
        JobCompleted(job_id=job_id, attempt=1),
    )


def snapshot(sample_id: str, prompt_id: str = "prompt") -> SampleSnapshot:
    job_id = sample_id.rpartition("-")[0]
    return SampleSnapshot(audio_id=sample_id, job_id=job_id, prompt_id=prompt_id, model_id="noise")


def said(
    feedback_id: str, sample: str, other: str | None = None, *, prompt_id: str = "prompt", **fields: Any
) -> FeedbackGiven:
    if other is not None:
        fields = {"verdict": "preferred", "other": snapshot(other, prompt_id), **fields}
    return FeedbackGiven(feedback_id=feedback_id, sample=snapshot(sample, prompt_id), **fields)


async def create(parts: Parts, **fields: Any) -> httpx.Response:
    return await parts.http.post("/datasets", json={"name": "liked", "type": "supervised", **fields})


async def built(parts: Parts, **fields: Any) -> dict[str, Any]:
    """The dataset once it has been built or has failed."""
    answer = await create(parts, **fields)
    assert answer.status_code == 202, answer.text
    return await settled(parts, answer.json()["id"])


async def settled(parts: Parts, dataset_id: str) -> dict[str, Any]:
    async def is_over() -> dict[str, Any] | None:
        body = (await parts.http.get(f"/datasets/{dataset_id}")).json()
        return body if body["status"] in {"built", "failed"} else None

    body = await eventually(is_over)
    assert body is not None
    return body


async def items(parts: Parts, dataset_id: str, **params: Any) -> list[dict[str, Any]]:
    answer = await parts.http.get(f"/datasets/{dataset_id}/items", params={"limit": 200, **params})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def exported(parts: Parts, dataset_id: str, wanted: str) -> dict[str, Any]:
    answer = await parts.http.post(f"/datasets/{dataset_id}/export", json={"format": wanted})
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/datasets/{dataset_id}/exports/{wanted}"

    async def is_over() -> dict[str, Any] | None:
        export = (await parts.http.get(f"/datasets/{dataset_id}")).json()["exports"][wanted]
        return export if export["status"] in {"exported", "failed"} else None

    export = await eventually(is_over)
    assert export is not None
    return export


async def archive(parts: Parts, dataset_id: str, wanted: str) -> zipfile.ZipFile:
    export = await exported(parts, dataset_id, wanted)
    assert export["status"] == "exported", export
    answer = await parts.http.get(export["url"])
    assert answer.status_code == 200
    assert sha256(answer.content).hexdigest() == export["sha256"]
    return zipfile.ZipFile(io.BytesIO(answer.content))


def rows(zipped: zipfile.ZipFile, split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in zipped.read(f"data/{split}/metadata.jsonl").splitlines()]


def reactions(parts: Parts) -> Reactions:
    return Reactions(
        parts.journal,
        parts.store,
        parts.host,
        [
            ExportOfDatasets(parts.journal, parts.store, parts.objects, parts.folder / "scratch"),
            ErasureFromDatasets(parts.journal, parts.store, parts.objects, parts.host, parts.folder / "scratch"),
        ],
    )


def builder(parts: Parts) -> "asyncio.Task[None]":
    made = building.worker(
        parts.journal, parts.store, parts.objects, parts.folder / "scratch", lease=LEASE, backoff=0.05
    )
    return asyncio.create_task(made.run())


@pytest.fixture
async def studio(parts: Parts) -> AsyncIterator[Parts]:
    """With a builder and the reactions of datasets."""
    running = [builder(parts), asyncio.create_task(reactions(parts).run())]
    yield parts
    await stop(*running)


async def test_a_dataset_is_created_from_feedback(studio: Parts) -> None:
    await song(studio, "job")
    await studio.journal.append(
        said("f1", "job-0", rating=5.0, tags=("warm",), user_id="ann"),
        said("f2", "job-0", rating=4.0, user_id="bob"),
        said("f3", "job-1", rating=2.0, user_id="ann"),
    )
    answer = await create(studio, filter_query={"min_rating": 4}, description="January")
    body = answer.json()
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/datasets/{body['id']}"
    assert (body["status"], body["digest"], body["sample_count"]) == ("queued", None, None)
    body = await settled(studio, body["id"])
    assert (body["status"], body["sample_count"], body["judgements"]) == ("built", 1, 3)
    assert body["left_out"] == {"rating": 1}
    assert body["filter_query"] == {"min_rating": 4.0}
    assert body["positions"] == {"abtests/0": 0, "feedback/0": 3, "jobs/0": 5}
    assert (body["erased_since"]["count"], body["exports"], body["notice"]) == (0, {}, None)
    assert body["agreement"]["listeners"] == 2
    (item,) = await items(studio, body["id"])
    assert (item["kind"], item["sample"]["sample_id"], item["rating_mean"], item["n_ratings"]) == (
        "sample",
        "job-0",
        4.5,
        2,
    )
    assert item["tags"] == ["warm"]
    assert "ann" not in json.dumps(item)
    listed = (await studio.http.get("/datasets", params={"type": "supervised", "status": "built"})).json()
    assert [each["id"] for each in listed["items"]] == [body["id"]]
    assert (await studio.http.get("/datasets", params={"type": "preference"})).json()["total"] == 0
    card = (await studio.http.get(f"/datasets/{body['id']}/card")).text
    assert "January" in card
    assert body["digest"] in card
    stored = b"".join([chunk async for chunk in studio.objects.read(await list_of(studio, body["id"]))])
    assert sha256(stored).hexdigest() == body["digest"]


async def list_of(parts: Parts, dataset_id: str) -> str:
    dataset = await document(parts, dataset_id)
    assert dataset.built is not None
    assert dataset.built.items.endswith(f"{dataset.built.digest}.jsonl")
    return dataset.built.items


async def document(parts: Parts, dataset_id: str) -> Dataset:
    await parts.host.caught_up(10)
    return (await parts.store.get(DATASETS, [dataset_id]))[dataset_id]


async def test_conflicting_preferences_are_settled_by_net_votes_and_ties_make_no_pair(studio: Parts) -> None:
    for name in ("job", "tied", "bad"):
        await song(studio, name)
    await studio.journal.append(
        said("f1", "job-0", "job-1", user_id="ann"),
        said("f2", "job-1", "job-0", user_id="bob"),
        said("f3", "job-0", "job-1", user_id="cid"),
        said("f4", "tied-0", "tied-1", user_id="ann"),
        said("f5", "tied-1", "tied-0", user_id="bob"),
        said("f6", "bad-0", "bad-1", user_id="ann", verdict="both_bad"),
    )
    body = await built(studio, type="preference")
    assert body["left_out"] == {"tied": 1}
    bad, pair = await items(studio, body["id"])
    assert (bad["kind"], bad["n_votes"]) == ("both_bad", 1)
    sides = pair["first"]["sample_id"], pair["second"]["sample_id"]
    assert (pair["kind"], *sides, pair["weight"], pair["n_votes"]) == ("pair", "job-0", "job-1", 1, 3)
    zipped = await archive(studio, body["id"], "preference")
    (row,) = rows(zipped)
    assert row == {
        "chosen_file_name": "audio/job-0.flac",
        "rejected_file_name": "audio/job-1.flac",
        "prompt": "words of prompt",
        "model_prompt": "words of prompt",
        "prompt_id": "prompt",
        "chosen_id": "job-0",
        "rejected_id": "job-1",
        "model_id": NOISE.id,
        "seed": 0,
        "weight": 1,
        "n_votes": 3,
    }
    zipped = await archive(studio, body["id"], "unpaired")
    assert {(row["sample_id"], row["label"]) for row in rows(zipped)} == {
        ("job-0", True),
        ("job-1", False),
        ("bad-0", False),
        ("bad-1", False),
    }
    assert zipped.read("data/train/audio/bad-1.flac") == CLIPS[1]


def vote(pair: int, voter: str, choice: Choice, **fields: Any) -> ABVoteCast:
    """With A on the left."""
    ident = vote_id("test", pair, voter, fields.get("catch"))
    return ABVoteCast(ab_test_id="test", vote_id=ident, pair=pair, voter=voter, choice=choice, left="A", **fields)


async def test_votes_of_blind_tests_are_preferences(studio: Parts) -> None:
    pairs = [Pair(prompt_id="blues", prompt="slow blues", seed=seed) for seed in range(3)]
    await studio.journal.append(
        ABTestCreated(ab_test_id="test", test_name="blind", pairs=tuple(pairs), model_id="noise", duration=0.5)
    )
    jobs = {(pair, arm): job_id("test", pair, arm) for pair in range(3) for arm in ARMS}
    for id_ in jobs.values():
        await song(studio, id_, samples=1, prompt_id="blues", ab_test_id="test")
    await studio.journal.append(
        ABTestReady(ab_test_id="test"),
        vote(0, "ann", "right"),
        vote(0, "bob", "right"),
        vote(0, "cid", "left"),
        vote(1, "ann", "left", seconds_left=0.1, seconds_right=0.1),
        vote(2, "ann", "both_bad"),
        vote(2, "dan", "tie"),
        vote(0, "ann", "tie", catch="A"),
        vote(0, "ann", "left"),  # the first one counts
    )
    body = await built(studio, type="preference", filter_query={"sources": "votes"})
    assert body["left_out"] == {"catch_trial": 1, "little_listening": 1, "tied": 1}
    assert (body["agreement"]["caught"], body["agreement"]["passed"], body["judgements"]) == (1, 1, 5)
    (pair,) = await items(studio, body["id"])
    assert (pair["first"]["job_id"], pair["weight"], pair["n_votes"]) == (jobs[0, "B"], 1, 3)
    none = await built(studio, name="feedback alone", type="preference", filter_query={"sources": "feedback"})
    assert none["sample_count"] == 0
    await studio.journal.append(JobDeleted(job_id=jobs[0, "A"]))
    assert (await erased_since(studio, body["id"], 1))["sample_count"] == 0


@pytest.mark.parametrize(
    ("fields", "pointer", "says"),
    [
        ({"name": " "}, "/name", "1 to 100"),
        ({"held_out": 1}, "/held_out", "from 0 to 0.9"),
        ({"seed": -1}, "/seed", "4294967295"),
        ({"type": "ranking"}, "/type", "preference, supervised"),
        ({"filter_query": {"mood": "calm"}}, "/filter_query/mood", "filter_query takes min_rating"),
        ({"filter_query": {"min_rating": 6}}, "/filter_query/min_rating", "1 to 5"),
        ({"filter_query": {"min_rating": 4, "max_rating": 2}}, "/filter_query/min_rating", "above max_rating"),
        ({"filter_query": {"tags": ["x" * 51]}}, "/filter_query/tags/0", "51 characters"),
        ({"filter_query": {"user_ids": ["u"] * 1001}}, "/filter_query/user_ids", "limit is 1,000"),
        ({"filter_query": {"adapter_ids": ["a b"]}}, "/filter_query/adapter_ids/0", "no id is"),
        ({"filter_query": {"min_agreement": 1.5}}, "/filter_query/min_agreement", "from 0 to 1"),
        ({"filter_query": {"min_votes": 0}}, "/filter_query/min_votes", "1 to 1,000,000"),
        ({"filter_query": {"min_reliability": -1}}, "/filter_query/min_reliability", "from 0 to 1"),
        ({"filter_query": {"start_date": "soon"}}, "/filter_query/start_date", "2026-01-31"),
        ({"filter_query": {"start_date": "2026-02-01", "end_date": "2026-01-01"}}, "/filter_query/start_date", "after"),
        ({"filter_query": {"sources": "votes"}}, "/filter_query/sources", "rate nothing"),
    ],
)
async def test_what_is_out_of_bounds_is_named_with_its_limit(
    parts: Parts, fields: dict[str, Any], pointer: str, says: str
) -> None:
    answer = await create(parts, **fields)
    assert answer.status_code == 400, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert says in error["detail"]
    assert sum((await parts.log.ends("datasets")).values()) == 0


async def test_a_retry_under_one_key_is_the_same_dataset_and_a_name_is_given_once(parts: Parts) -> None:
    body = {"name": "liked", "type": "supervised"}
    first, again = [await parts.http.post("/datasets", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    other = await parts.http.post("/datasets", json={**body, "seed": 1}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    taken = await create(parts, name=" liked ")
    assert taken.status_code == 409
    assert first.json()["id"] in taken.json()["detail"]
    assert sum((await parts.log.ends("datasets")).values()) == 1


async def test_what_is_not_built_has_no_items_and_no_export(parts: Parts) -> None:
    ident = (await create(parts)).json()["id"]
    for answer in (
        await parts.http.get(f"/datasets/{ident}/items"),
        await parts.http.post(f"/datasets/{ident}/export", json={"format": "supervised"}),
    ):
        assert answer.status_code == 409
        assert "ask again when it is built" in answer.json()["detail"]
    wrong = await parts.http.post(f"/datasets/{ident}/export", json={"format": "preference"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (400, "/format")
    assert "supervised or unpaired" in wrong.json()["detail"]
    assert (await parts.http.get(f"/datasets/{ident}/exports/supervised")).status_code == 404
    for path in ("", "/items", "/card", "/exports/supervised"):
        assert (await parts.http.get(f"/datasets/nobody{path}")).status_code == 404
    assert (await parts.http.post("/datasets/nobody/export", json={"format": "supervised"})).status_code == 404


async def test_an_empty_dataset_says_which_filter_left_nothing(studio: Parts) -> None:
    empty = await built(studio)
    assert (empty["status"], empty["sample_count"]) == ("built", 0)
    assert "no listener has said anything" in empty["notice"]
    await song(studio, "job")
    await studio.journal.append(said("f1", "job-0", rating=2.0), said("f2", "job-1", rating=3.0))
    body = await built(studio, name="high", filter_query={"min_rating": 4})
    assert (body["sample_count"], body["left_out"]) == (0, {"rating": 2})
    assert "2 samples or pairs outside of min_rating" in body["notice"]
    refused = await studio.http.post(f"/datasets/{body['id']}/export", json={"format": "supervised"})
    assert refused.status_code == 409
    assert "has no items" in refused.json()["detail"]


async def test_items_come_in_pages_by_cursor_and_by_offset(studio: Parts) -> None:
    for number in range(5):
        await song(studio, f"job{number}", samples=1)
        await studio.journal.append(said(f"f{number}", f"job{number}-0", rating=4.0))
    ident = (await built(studio))["id"]
    path, found, cursor = f"/datasets/{ident}/items", [], None
    while True:
        page = (await studio.http.get(path, params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        assert (page["total"], page["limit"], page["offset"]) == (5, 2, 0)
        found += page["items"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == await items(studio, ident)
    assert [item["sample"]["sample_id"] for item in found] == [f"job{number}-0" for number in range(5)]
    assert await items(studio, ident, offset=3) == found[3:]
    assert await items(studio, ident, offset=5) == []
    for wrong in ("x", "MHxvdGhlcg=="):
        answer = await studio.http.get(path, params={"cursor": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/cursor")


async def test_an_export_has_rows_audio_a_manifest_and_a_card(studio: Parts) -> None:
    for number in range(6):
        await song(studio, f"job{number}", prompt_id=f"p{number}", samples=1)
        await studio.journal.append(
            said(f"f{number}", f"job{number}-0", rating=4.5, tags=("warm",), prompt_id=f"p{number}", user_id="ann")
        )
    body = await built(studio, held_out=0.5, seed=2)
    assert body["splits"]["train"] + body["splits"]["test"] == 6
    zipped = await archive(studio, body["id"], "supervised")
    manifest = json.loads(zipped.read("manifest.json"))
    assert {name: sha256(zipped.read(name)).hexdigest() for name in zipped.namelist() if name != "manifest.json"} == (
        manifest["files"]
    )
    assert (manifest["format"], manifest["dataset_id"], manifest["digest"], manifest["type"]) == (
        "text2song-dataset/1",
        body["id"],
        body["digest"],
        "supervised",
    )
    assert manifest["positions"] == body["positions"]
    train, test = rows(zipped), rows(zipped, "test")
    assert (len(train), len(test)) == (body["splits"]["train"], body["splits"]["test"])
    assert not {row["prompt_id"] for row in train} & {row["prompt_id"] for row in test}
    assert train[0]["rating_mean"] == 4.5
    assert train[0]["tags"] == ["warm"]
    assert list(train[0]) == [
        "file_name", "prompt", "model_prompt", "prompt_id", "sample_id", "job_id", "model_id", "adapter_id", "seed",
        "duration", "sample_rate", "sha256", "pcm_sha256", "rating_mean", "n_ratings", "tags",
    ]  # fmt: skip
    assert "ann" not in zipped.read("data/train/metadata.jsonl").decode()
    card = zipped.read("README.md").decode()
    assert card.startswith("---\n")
    assert "path: data/train/**" in card
    export = (await studio.http.get(f"/datasets/{body['id']}")).json()["exports"]["supervised"]
    part = await studio.http.get(export["url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"PK\3\4")
    again = await studio.http.post(f"/datasets/{body['id']}/export", json={"format": "supervised"})
    assert again.json()["exports"]["supervised"] == export


async def test_audio_that_is_gone_or_damaged_leaves_its_rows_out_and_is_named(studio: Parts) -> None:
    for number in range(3):
        await song(studio, f"job{number}")
        await studio.journal.append(said(f"f{number}", f"job{number}-0", f"job{number}-1"))
    body = await built(studio, type="preference")
    await studio.objects.delete("samples/job0/1/1/0.flac")
    await studio.objects.put("samples/job1/1/1/1.flac", CLIPS[1][:-1] + b"x")
    zipped = await archive(studio, body["id"], "preference")
    assert [row["chosen_id"] for row in rows(zipped)] == ["job2-0"]
    export = (await studio.http.get(f"/datasets/{body['id']}")).json()["exports"]["preference"]
    assert (export["rows"], export["left_out"]) == (1, {"audio_damaged": 1, "audio_gone": 1})
    missing = [{"sample_id": "job0-0", "reason": "audio_gone"}, {"sample_id": "job1-1", "reason": "audio_damaged"}]
    assert export["missing"] == json.loads(zipped.read("manifest.json"))["missing"] == missing


async def test_records_erased_before_the_build_are_not_in_it(studio: Parts, parts: Parts) -> None:
    await song(parts, "kept")
    await song(parts, "gone")
    await parts.journal.append(
        said("f1", "kept-0", rating=4.0), said("f2", "kept-1", rating=4.0), said("f3", "gone-0", rating=4.0)
    )
    await parts.journal.append(Erased(topic="feedback", key="f2", given_partition_key="kept"))
    await parts.journal.append(JobDeleted(job_id="gone"))
    body = await built(studio)
    assert (body["sample_count"], body["left_out"]) == (1, {"deleted": 1})
    assert body["erased_since"]["count"] == 0


async def erased_since(parts: Parts, dataset_id: str, count: int) -> dict[str, Any]:
    async def is_said() -> dict[str, Any] | None:
        body = (await parts.http.get(f"/datasets/{dataset_id}")).json()
        return body if body["erased_since"]["count"] == count else None

    body = await eventually(is_said)
    assert body is not None
    return body


async def test_a_dataset_says_what_was_erased_since_and_lets_go_of_it(studio: Parts) -> None:
    for name in ("job", "gone", "kept"):
        await song(studio, name)
    await studio.journal.append(
        said("f1", "job-0", rating=5.0, user_id="ann"),
        said("f2", "job-0", rating=3.0, user_id="bob"),
        said("f3", "job-1", rating=4.0, user_id="bob"),
        said("f4", "gone-0", rating=4.0, user_id="bob"),
        said("f5", "kept-0", rating=4.0, user_id="bob"),
    )
    body = await built(studio)
    ident, place = body["id"], (await list_of(studio, body["id"])).rpartition("/")[0]
    assert await studio.objects.stat(f"{place}/raters.jsonl")
    assert len(rows(await archive(studio, ident, "supervised"))) == 4
    old = (await document(studio, ident)).exports[0].made
    assert old is not None
    await studio.journal.append(
        Erased(topic="feedback", key="f1", given_partition_key="job"),
        Erased(topic="feedback", key="f3", given_partition_key="job"),
    )
    await studio.journal.append(JobDeleted(job_id="gone"))
    body = await erased_since(studio, ident, 3)
    assert body["erased_since"] == {"count": 3, "feedback_ids": ["f1", "f3"], "job_ids": ["gone"]}
    assert (body["sample_count"], body["exports"]["supervised"]["status"]) == (2, "outdated")
    left = await items(studio, ident)
    assert [(item["sample"]["sample_id"], item["rating_mean"]) for item in left] == [("job-0", 3.0), ("kept-0", 4.0)]

    async def is_gone() -> bool:
        there = [stored.key for stored in await studio.objects.list(folder(ident))]
        name = await list_of_name(studio, ident)
        # The erasures are named before what they take leaves the list.
        stored = b"".join([chunk async for chunk in studio.objects.read(name)])
        return there == [name] and b'"f1"' not in stored and b"gone-0" not in stored

    await eventually(is_gone)
    refused = await studio.http.get(f"/datasets/{ident}/exports/supervised")
    assert refused.status_code == 409
    assert "were erased" in refused.json()["detail"]
    assert len(rows(await archive(studio, ident, "supervised"))) == 2
    found = await find(studio.journal, ident)
    again = await rebuild(studio.journal, studio.store, studio.objects, found, studio.folder / "scratch")
    assert (again.same, again.erased, again.deleted_jobs) == (False, ("f1", "f3"), ("gone",))


@pytest.mark.parametrize("cause", [Erased, DatasetBuilt])
@pytest.mark.parametrize("call", ["put_file", "delete"])
async def test_an_erasure_that_is_killed_once_it_is_named_is_finished_and_spares_later_exports(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, cause: type[Any], call: str
) -> None:
    """Killed before it writes the list, or before it first deletes something."""
    await song(parts, "job")
    await parts.journal.append(
        said("f1", "job-0", rating=5.0, user_id="ann"), said("f2", "job-0", rating=3.0, user_id="bob")
    )
    exports = ExportOfDatasets(parts.journal, parts.store, parts.objects)
    running = [
        builder(parts),
        asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, [exports]).run()),
    ]
    ident = (await built(parts))["id"]
    await archive(parts, ident, "supervised")
    await parts.journal.append(Erased(topic="feedback", key="f1", given_partition_key="job"))
    assert await parts.host.caught_up(10)
    log = [decode(record) for topic in ("feedback", "datasets") for record in await records(parts.log, topic)]
    batch = [recorded for recorded in log if isinstance(recorded.event, cause)]
    erasing = ErasureFromDatasets(parts.journal, parts.store, parts.objects, parts.host)
    stopped = asyncio.Event()

    async def stop_for_good(*_: Any) -> None:
        stopped.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(parts.objects, call, stop_for_good)
    killed = asyncio.create_task(erasing.react(batch))
    async with asyncio.timeout(30):
        await stopped.wait()
    killed.cancel()
    monkeypatch.undo()
    assert (await document(parts, ident)).erased_feedback == ("f1",)
    await erasing.react(batch)
    name = await list_of_name(parts, ident)
    assert [stored.key for stored in await parts.objects.list(folder(ident))] == [name]
    assert b'"f1"' not in b"".join([chunk async for chunk in parts.objects.read(name)])
    export = await exported(parts, ident, "supervised")
    assert await parts.host.caught_up(10)
    await erasing.react(batch)
    assert (await parts.http.get(export["url"])).status_code == 200
    assert (await document(parts, ident)).erasures == 1
    await stop(*running)


async def test_an_export_that_is_made_just_before_an_erasure_is_named_goes_with_it(
    studio: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await song(studio, "job")
    await studio.journal.append(said("f1", "job-0", rating=5.0), said("f2", "job-0", rating=3.0))
    ident = (await built(studio))["id"]
    append = studio.journal.append

    async def export_first(*events: Any, **options: Any) -> Any:
        if isinstance(events[0], DatasetRecordsErased):
            assert (await exported(studio, ident, "supervised"))["status"] == "exported"
        return await append(*events, **options)

    monkeypatch.setattr(studio.journal, "append", export_first)
    await append(Erased(topic="feedback", key="f1", given_partition_key="job"))
    await erased_since(studio, ident, 1)
    name = await list_of_name(studio, ident)

    async def is_gone() -> bool:
        return [stored.key for stored in await studio.objects.list(folder(ident))] == [name]

    await eventually(is_gone, 20)


async def test_an_erasure_beyond_those_that_can_be_named_leaves_the_list_and_holds_up_no_other(
    studio: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_erasures, "MAX_ERASURES", 1)
    await song(studio, "job")
    await studio.journal.append(*(said(f"f{number}", "job-0", rating=4.0, user_id=f"u{number}") for number in range(3)))
    full = await built(studio)
    await studio.journal.append(Erased(topic="feedback", key="f0", given_partition_key="job"))
    await erased_since(studio, full["id"], 1)
    other = await built(studio, name="other")
    await studio.journal.append(Erased(topic="feedback", key="f1", given_partition_key="job"))
    assert (await erased_since(studio, other["id"], 1))["erased_since"]["feedback_ids"] == ["f1"]
    name = await list_of_name(studio, full["id"])

    async def has_gone_on() -> bool:
        progress = await studio.store.get(PROGRESS, ["dataset-erasures/feedback/0"])
        stored = b"".join([chunk async for chunk in studio.objects.read(name)])
        end = (await studio.journal.log.ends("feedback"))[0]
        return progress["dataset-erasures/feedback/0"].position == end and b'"f1"' not in stored

    await eventually(has_gone_on, 20)
    assert (await erased_since(studio, full["id"], 1))["erased_since"]["feedback_ids"] == ["f0"]


async def list_of_name(parts: Parts, dataset_id: str) -> str:
    dataset = await document(parts, dataset_id)
    assert dataset.built is not None
    return dataset.built.items


async def test_a_rebuild_gives_the_same_digest_whatever_was_said_since(studio: Parts) -> None:
    await song(studio, "job")
    await studio.journal.append(said("f1", "job-0", "job-1", user_id="ann"), said("f2", "job-1", "job-0"))
    await studio.journal.append(said("f3", "job-0", "job-1", user_id="cid"))
    body = await built(studio, type="preference")
    await song(studio, "later")
    await studio.journal.append(said("f1", "job-1", "job-0", user_id="ann"), said("f9", "later-0", "later-1"))
    found = await find(studio.journal, body["id"])
    again = await rebuild(studio.journal, studio.store, studio.objects, found, studio.folder / "scratch")
    assert (again.same, again.summary.digest) == (True, body["digest"])
    await studio.journal.append(Erased(topic="feedback", key="f2", given_partition_key="job"))
    await erased_since(studio, body["id"], 1)
    found = await find(studio.journal, body["id"])
    again = await rebuild(studio.journal, studio.store, studio.objects, found)
    assert (again.same, again.erased, again.revised) == (False, ("f2",), ())
    assert again.summary.count == 1


async def test_a_build_that_was_killed_is_done_by_another_worker(parts: Parts) -> None:
    await song(parts, "job")
    await parts.journal.append(said("f1", "job-0", rating=4.0))
    ident = (await create(parts)).json()["id"]
    await parts.journal.append(DatasetStarted(dataset_id=ident, attempt=1, worker_id="killed"))
    await parts.objects.put(f"{folder(ident)}/1-1/left-behind.jsonl", b"x")
    running = builder(parts)
    body = await settled(parts, ident)
    assert (body["status"], body["sample_count"]) == ("built", 1)
    await stop(running)
    assert await parts.history(ident, "datasets") == [
        f"dataset.{name}.v1" for name in ("created", "started", "started", "built")
    ]
    place = (await list_of(parts, ident)).rpartition("/")[0]
    assert {stored.key.rpartition("/")[0] for stored in await parts.objects.list(folder(ident))} == {place}
    assert [*(parts.folder / "scratch").iterdir()] == []


# A builder that stops for good at a moment, and says so.
BUILDER = """
import asyncio, sys, threading
from pathlib import Path
from infra.storage.file_objects import FileObjects
from tests.local.parts import open_parts
from tests.local.test_datasets import builder
from workers.dataset_replay import Replay

def stop():
    print("here", flush=True)
    threading.Event().wait()

async def put_file(*arguments, **options):
    await stored(*arguments, **options)
    stop()

async def main():
    async with open_parts(Path(sys.argv[1])) as parts:
        await builder(parts)

stored = FileObjects.put_file
if sys.argv[2] == "reading":
    Replay.take = lambda *_: stop()
else:
    FileObjects.put_file = put_file
asyncio.run(main())
"""


async def test_a_build_whose_process_is_killed_twice_ends_once_with_the_list_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    """While it reads the log, and once the list is stored but no event names it."""
    async with open_parts(tmp_path) as parts:
        for number in range(4):
            await song(parts, f"job{number}", prompt_id=f"p{number}")
            await parts.journal.append(said(f"f{number}", f"job{number}-0", rating=4.0, user_id="ann"))
        ident = (await create(parts)).json()["id"]
    for moment in ("reading", "stored"):
        command = [sys.executable, "-c", BUILDER, str(tmp_path), moment]
        child = await asyncio.create_subprocess_exec(
            *command, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"here\n"
        child.kill()
        assert await child.wait() == -signal.SIGKILL
    async with open_parts(tmp_path) as parts:
        left = await parts.objects.list(folder(ident))
        running = builder(parts)
        body = await settled(parts, ident)
        await stop(running)
        assert len(left) == 1
        assert (body["status"], body["sample_count"]) == ("built", 4)
        assert await parts.history(ident, "datasets") == [
            f"dataset.{name}.v1" for name in ("created", "started", "started", "started", "built")
        ]
        place = (await list_of(parts, ident)).rpartition("/")[0]
        assert {stored.key.rpartition("/")[0] for stored in await parts.objects.list(folder(ident))} == {place}
        assert left[0].key.rpartition("/")[0] != place
        assert left[0].key.rpartition("/")[2] == f"{body['digest']}.jsonl"
        assert (await rebuild(parts.journal, parts.store, parts.objects, await find(parts.journal, ident))).same
        assert [*(tmp_path / "scratch").iterdir()] == []


async def test_an_export_that_was_killed_is_made_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await song(parts, "job")
    await parts.journal.append(said("f1", "job-0", rating=4.0))
    running = builder(parts)
    ident = (await built(parts))["id"]
    await stop(running)
    await parts.http.post(f"/datasets/{ident}/export", json={"format": "supervised"})
    stored = asyncio.Event()
    put_file = parts.objects.put_file

    async def put_and_wait(*args: Any, **options: Any) -> Any:
        await put_file(*args, **options)
        stored.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(parts.objects, "put_file", put_and_wait)
    exporting = asyncio.create_task(reactions(parts).run())
    async with asyncio.timeout(30):
        await stored.wait()
    exporting.cancel()
    monkeypatch.undo()
    async with asyncio.timeout(30):
        # Two at once, as after a start of several processes.
        both = [asyncio.create_task(reactions(parts).run()) for _ in range(2)]
        export = await exported(parts, ident, "supervised")
        await stop(*both)
    assert (export["status"], export["rows"]) == ("exported", 1)
    assert len(await parts.objects.list(f"{folder(ident)}/exports")) == 1
    exporting.cancel()


async def test_a_list_that_is_damaged_fails_the_export_and_says_so(studio: Parts) -> None:
    await song(studio, "job")
    await studio.journal.append(said("f1", "job-0", rating=4.0))
    ident = (await built(studio))["id"]
    key = await list_of(studio, ident)
    sound = b"".join([chunk async for chunk in studio.objects.read(key)])
    for damaged in (sound.replace(b"4.0", b"5.0"), sound[:-10], b"{}\n"):
        await studio.objects.put(key, damaged)
        export = await exported(studio, ident, "supervised")
        assert export["status"] == "failed"
        assert "Put a sound copy back" in export["error"]
    await studio.objects.delete(key)
    assert (await studio.http.get(f"/datasets/{ident}/items")).status_code == 410
    await studio.objects.put(key, sound)
    assert (await exported(studio, ident, "supervised"))["status"] == "exported"


async def test_a_strangers_events_hurt_no_reader(studio: Parts) -> None:
    await song(studio, "job")
    await studio.journal.append(
        said("f1", "job-0", "job-1", rating=4.0),
        said("f2", "nobody-0", "job-0"),
        FeedbackGiven(
            feedback_id="f3", sample=snapshot("job-0"), other=snapshot("job-1", "elsewhere"), verdict="preferred"
        ),
        said("f4", "job-1", "job-1", verdict="tie"),
    )
    ident = (await create(studio, type="preference")).json()["id"]
    await settled(studio, ident)
    list_elsewhere = DatasetBuilt(
        dataset_id=ident,
        attempt=1,
        items="datasets/other/list.jsonl",
        size=1,
        digest=f"{1:064}",
        sample_count=9,
        positions={},
        splits={},
    )
    await studio.journal.append(list_elsewhere)
    body = await settled(studio, ident)
    assert (body["sample_count"], body["left_out"]) == (1, {"not_comparable": 2, "unknown_sample": 1})


async def test_the_same_events_in_another_order_make_the_same_list(tmp_path: Path) -> None:
    digests = []
    for order in (1, -1):
        async with open_parts(tmp_path / str(order)) as parts:
            for name in ("a", "b", "c")[::order]:
                await song(parts, name)
            events: Sequence[FeedbackGiven] = [
                said("f1", "a-0", "a-1", user_id="ann", rating=4.0),
                said("f2", "a-1", "a-0", user_id="bob"),
                said("f3", "a-0", "a-1", user_id="cid", tags=("warm",)),
                said("f4", "b-0", "b-1", user_id="ann"),
                said("f5", "c-0", "c-1", verdict="both_bad"),
            ]
            await parts.journal.append(*events[::order])
            running = builder(parts)
            digests.append((await built(parts, type="preference"))["digest"])
            await stop(running)
    assert digests[0] == digests[1]


async def test_a_backup_has_the_list_and_the_exports_of_a_dataset(studio: Parts, tmp_path: Path) -> None:
    await song(studio, "job")
    await studio.journal.append(said("f1", "job-0", rating=4.0))
    ident = (await built(studio))["id"]
    await archive(studio, ident, "supervised")
    copy, back = tmp_path / "copy", tmp_path / "back"
    report = await asyncio.to_thread(back_up, studio.folder, copy, studio.journal.now(), lambda *_: None)
    assert [fault for fault in report.faults if "dataset" in fault] == []
    report = await asyncio.to_thread(restore, copy, back, lambda *_: None)
    assert [fault for fault in report.faults if "dataset" in fault] == []
    dataset = await document(studio, ident)
    assert dataset.built is not None
    assert dataset.exports[0].made is not None
    there = [(back / "objects" / key).is_file() for key in (dataset.built.items, dataset.exports[0].made.archive)]
    assert there == [True, True]


@pytest.mark.parametrize("is_linked_first", [True, False])
async def test_a_backup_has_the_list_without_what_is_erased_while_it_is_made(
    studio: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linked_first: bool
) -> None:
    """Just before the list is linked, or just after, when a job that is deleted meanwhile has all copied again."""
    for job in ("job", "other"):
        await song(studio, job)
        for index in (0, 1):
            await studio.objects.put(waveform(f"samples/{job}/1/1/{index}.flac"), b"{}")
    await studio.journal.append(said("f1", "job-0", rating=5.0), said("f2", "job-0", rating=3.0))
    ident = (await built(studio))["id"]
    name = await list_of(studio, ident)
    link, loop, links = os.link, asyncio.get_running_loop(), list[Path]()

    async def lose_job() -> None:
        await studio.journal.append(JobDeleted(job_id="other"))
        await studio.objects.delete("samples/other")

    async def erase() -> None:
        await studio.journal.append(Erased(topic="feedback", key="f1", given_partition_key="job"))

        async def is_rewritten() -> bool:
            return b'"f1"' not in b"".join([chunk async for chunk in studio.objects.read(name)])

        await eventually(is_rewritten)

    def slow(source: Path, target: Path) -> None:
        links.append(source)
        is_list = source.suffix == ".jsonl" and sum(each.suffix == ".jsonl" for each in links) == 1
        if len(links) == 1 and is_linked_first:
            asyncio.run_coroutine_threadsafe(lose_job(), loop).result()
        if is_list and not is_linked_first:
            asyncio.run_coroutine_threadsafe(erase(), loop).result()
        link(source, target)
        if is_list and is_linked_first:
            asyncio.run_coroutine_threadsafe(erase(), loop).result()

    monkeypatch.setattr(os, "link", slow)
    copy, back = tmp_path / "copy", tmp_path / "back"
    report = await asyncio.to_thread(back_up, studio.folder, copy, studio.journal.now(), lambda *_: None)
    monkeypatch.undo()
    assert report.faults == []
    report = await asyncio.to_thread(restore, copy, back, lambda *_: None)
    assert report.faults == []
    stored = (back / "objects" / name).read_bytes()
    assert b'"f2"' in stored
    assert b'"f1"' not in stored


async def test_a_list_that_is_damaged_is_not_backed_up_and_named(studio: Parts, tmp_path: Path) -> None:
    await song(studio, "job")
    await studio.journal.append(said("f1", "job-0", rating=4.0))
    ident = (await built(studio))["id"]
    name = await list_of(studio, ident)
    await studio.objects.put(name, b"{}\n")
    report = await asyncio.to_thread(back_up, studio.folder, tmp_path / "copy", studio.journal.now(), lambda *_: None)
    assert f"A file of dataset {ident} is damaged and was left out: {name}." in report.faults
    assert not (tmp_path / "copy" / "objects" / name).exists()


async def test_each_filter_takes_in_what_it_says(studio: Parts) -> None:
    """One built dataset a filter would take long: the replay is the same, so the list is asked of it directly."""
    await song(studio, "a", model_id="other", campaign_id="spring", client_id="acme", collection="best")
    await song(studio, "b", prompt_id="p2")
    await studio.journal.append(
        said("f1", "a-0", rating=4.0, user_id="ann", tags=("warm",), created_at="2026-01-10T00:00:00.000000Z"),
        said("f2", "b-0", rating=4.0, user_id="bob", prompt_id="p2", created_at="2026-02-10T00:00:00.000000Z"),
        said("f3", "b-0", rating=2.5, user_id="cid", prompt_id="p2", created_at="2026-02-10T00:00:00.000000Z"),
    )
    only_a = ["a-0"]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["a-0", "b-0"]),
        ({"user_ids": ("ann",)}, only_a),
        ({"expert_ids": ("ann", "dan")}, only_a),
        ({"user_ids": ("ann", "bob"), "expert_ids": ("bob",)}, ["b-0"]),
        ({"tags": ("warm", "cold")}, only_a),
        ({"model_ids": ("other",)}, only_a),
        ({"adapter_ids": (None,)}, ["a-0", "b-0"]),
        ({"adapter_ids": ("jazz",)}, []),
        ({"campaign_ids": ("spring", "fall")}, only_a),
        ({"client_ids": ("acme",)}, only_a),
        ({"collections": ("best",)}, only_a),
        ({"end_date": "2026-01-31T00:00:00.000000Z"}, only_a),
        ({"start_date": "2026-02-01T00:00:00.000000Z"}, ["b-0"]),
        ({"min_rating": 3.5}, only_a),
        ({"max_rating": 3.5}, ["b-0"]),
        ({"min_votes": 2}, ["b-0"]),
        ({"min_agreement": 1.0}, ["a-0", "b-0"]),
        ({"min_reliability": 0.4}, only_a),
    ]
    for fields, expected in cases:
        request = DatasetCreated(dataset_id="d", dataset_name="d", kind="supervised", filters=Filters(**fields))
        async with building.replayed(studio.journal, request, None) as made:
            made.file.seek(0)
            found = [json.loads(line)["sample"]["sample_id"] for line in made.file]
        assert found == expected, fields
