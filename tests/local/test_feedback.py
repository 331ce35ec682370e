"""Feedback over HTTP: given, revised, erased, listed, and counted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from domain.errors import UncertainError
from domain.events import Erased, Event
from domain.events.jobs import AdapterSnapshot, JobCancelRequested, JobCompleted, JobDeleted, JobPurged, JobStarted
from domain.feedback import FEEDBACK
from domain.ports import Message, Position
from projections import figures
from tests.history import sample
from tests.local.parts import Parts, open_parts

JAZZ = AdapterSnapshot(id="jazz", name="jazz", version="1.0.0", base_model="m", storage_path="adapters/jazz")
STEPS = [half / 2 for half in range(2, 11)]


async def append(parts: Parts, *events: Event) -> None:
    """Until this process has read them."""
    assert await parts.services.tail.wait(await parts.journal.append(*events), 10)


async def make(parts: Parts, job_id: str, samples: int = 2, **changes: Any) -> list[str]:
    """A completed job without audio; its samples' ids."""
    await parts.submit(job_id, seeds=list(range(samples)), **changes)
    ids = [f"{job_id}-{index}" for index in range(samples)]
    made = [sample(index, job_id=job_id, sample_id=ids[index], seed=index) for index in range(samples)]
    await append(
        parts, JobStarted(job_id=job_id, attempt=1, worker_id="w"), *made, JobCompleted(job_id=job_id, attempt=1)
    )
    return ids


async def post(parts: Parts, audio_id: str, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await parts.http.post("/feedback", json={"audio_id": audio_id, **fields}, headers=headers)


async def give(parts: Parts, audio_id: str, **fields: Any) -> dict[str, Any]:
    answer = await post(parts, audio_id, **fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def get(parts: Parts, path: str, **params: Any) -> Any:
    answer = await parts.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def items(parts: Parts, path: str = "/feedback", **params: Any) -> list[str]:
    page = await get(parts, path, **params)
    assert page["total"] == len(page["items"])
    return [item["id"] for item in page["items"]]


async def records(parts: Parts) -> int:
    return sum((await parts.log.ends("feedback")).values())


async def test_feedback_has_the_documented_fields(parts: Parts) -> None:
    one, two = await make(parts, "j1")
    content = {
        "audio_id": one,
        "rating": 4.5,
        "preferred_over": two,
        "verdict": "preferred",
        "tags": ["warm", "tape"],
        "notes": "the bass is late",
        "user_id": "ann",
        "heard_first": two,
        "seconds_listened": {one: 2.0, two: 1.5},
    }
    answer = await parts.http.post("/feedback", json=content)
    body = answer.json()
    assert answer.status_code == 201
    assert {name: body.pop(name) for name in content} == content
    assert (body.pop("job_id"), body["created_at"]) == ("j1", body.pop("updated_at"))
    assert body.keys() == {"id", "created_at"}
    assert answer.headers["Location"] == f"/feedback/{body['id']}"
    assert await get(parts, answer.headers["Location"]) == answer.json()
    assert (await get(parts, "/feedback"))["items"] == [answer.json()]
    assert answer.headers["X-Event-Position"] == "feedback/0/0"


async def test_scenario_view_feedback_summary_in_job_status(parts: Parts) -> None:
    one, two = await make(parts, "j1")
    none = {"count": 0, "has_feedback": False, "mean_rating": None, "url": "/jobs/j1/feedback"}
    assert (await get(parts, "/jobs/j1"))["feedback"] == none
    await give(parts, one, rating=4)
    await give(parts, two, rating=1.5)
    await give(parts, two, preferred_over=one)
    for path in ("/jobs/j1", "/generate/j1"):
        summary = (await get(parts, path))["feedback"]
        assert summary == {"count": 3, "has_feedback": True, "mean_rating": 2.75, "url": "/jobs/j1/feedback"}
    assert len(await items(parts, summary["url"])) == 3


async def test_scenario_list_jobs_with_feedback_indicators(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (one,) = await make(parts, f"j{number:02}", 1)
        if number % 3 == 0:
            await give(parts, one, rating=1 + number % 5)
    reads: list[Sequence[str]] = []
    read = parts.store.get

    async def counting(view: Any, ids: Sequence[str]) -> Any:
        reads.append(ids)
        return await read(view, ids)

    assert await parts.host.caught_up(10)
    monkeypatch.setattr(parts.store, "get", counting)
    listed = (await get(parts, "/jobs", limit=200))["items"]
    assert len(reads) == 1, "one look for the whole page"
    assert {job["id"] for job in listed if job["feedback"]["has_feedback"]} == {f"j{n:02}" for n in range(0, 30, 3)}
    assert {job["id"]: job["feedback"]["mean_rating"] for job in listed}["j06"] == 2.0


async def test_jobs_are_listed_by_whether_they_have_feedback(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = []
    for number in range(6):
        filed = "odd" if number % 2 else "even"
        samples += await make(parts, f"j{number}", 1, collection=filed, prompt_id="shared")
    given = [await give(parts, samples[number], rating=3) for number in (0, 1, 4)]
    await give(parts, samples[5], preferred_over=samples[2])

    async def listed(**filters: Any) -> list[str]:
        found = await get(parts, "/jobs", **filters)
        walked = [job["id"] for job in found["items"]]
        assert found["total"] == len(walked)
        cursor, one_by_one = None, list[str]()
        while True:
            page = await get(parts, "/jobs", limit=1, **filters, **({"cursor": cursor} if cursor else {}))
            one_by_one += [job["id"] for job in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert one_by_one == walked
        assert all(job["feedback"]["has_feedback"] is filters["has_feedback"] for job in found["items"])
        return walked

    assert await listed(has_feedback=True) == ["j5", "j4", "j1", "j0"]
    assert await listed(has_feedback=False) == ["j3", "j2"]
    assert await listed(has_feedback=True, collection="even") == ["j4", "j0"]
    assert await listed(has_feedback=False, status="completed", collection="odd") == ["j3"]
    await parts.http.delete(f"/feedback/{given[1]['id']}")
    assert await listed(has_feedback=True) == ["j5", "j4", "j0"]
    monkeypatch.setattr(figures, "MAX_READ", 2)
    answer = await parts.http.get("/jobs", params={"has_feedback": True})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/has_feedback")


async def test_a_revision_replaces_the_whole_and_keeps_when_it_was_given(parts: Parts) -> None:
    one, two = await make(parts, "j1")
    first = await give(parts, one, rating=5, preferred_over=two, tags=["warm"], notes="yes", user_id="ann")
    path = f"/feedback/{first['id']}"
    answer = await parts.http.put(path, json={"rating": 2, "user_id": "ann"})
    revised = answer.json()
    assert answer.status_code == 200
    assert (revised["rating"], revised["preferred_over"], revised["verdict"], revised["tags"]) == (2, None, None, [])
    assert (revised["notes"], revised["audio_id"], revised["created_at"]) == (None, one, first["created_at"])
    assert revised["updated_at"] > first["updated_at"]
    assert await get(parts, path) == revised
    assert await items(parts) == [first["id"]]
    count = await records(parts)
    again = await parts.http.put(path, json={"rating": 2, "user_id": "ann", "audio_id": one})
    assert (again.status_code, again.json(), await records(parts)) == (200, revised, count)


async def test_a_revision_where_the_log_cannot_be_read_changes_nothing_and_says_so(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await make(parts, "j1")
    given, count = await give(parts, one, rating=4), await records(parts)

    async def late(*_: object) -> bool:
        return False

    monkeypatch.setattr(parts.services.tail, "wait", late)
    answer = await parts.http.put(f"/feedback/{given['id']}", json={"rating": 2})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "nothing was changed" in answer.json()["detail"]
    assert await records(parts) == count


async def test_a_revision_does_not_bring_back_what_is_erased_meanwhile(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await make(parts, "j1")
    id_ = (await give(parts, one, notes="secret"))["id"]
    append = parts.journal.append

    async def raced(*events: Any, event_id: str | None = None) -> Any:
        """Another API process erases it first."""
        monkeypatch.undo()
        await append(Erased(topic=FEEDBACK.name, key=id_, given_partition_key="j1"))
        await append(JobDeleted(job_id="unrelated"))
        return await append(*events, event_id=event_id)

    monkeypatch.setattr(parts.journal, "append", raced)
    answer = await parts.http.put(f"/feedback/{id_}", json={"rating": 2, "notes": "secret"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert await parts.host.caught_up(10)
    assert (await parts.http.get(f"/feedback/{id_}")).status_code == 404
    assert await parts.store.get(FEEDBACK, [id_]) == {}


async def test_what_is_erased_leaves_nothing_in_the_files(tmp_path: Path) -> None:
    secret = ["whispered-notes", "whispered-tag", "whispered-name"]
    async with open_parts(tmp_path) as parts:
        one, two = await make(parts, "j1")
        kept = await give(parts, one, rating=3)
        said = {"notes": secret[0], "tags": [secret[1]], "user_id": secret[2], "preferred_over": two}
        gone = await give(parts, one, **said)
        assert await parts.host.caught_up(10)
        assert all(word in _content(tmp_path) for word in secret)
        answer = await parts.http.delete(f"/feedback/{gone['id']}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await parts.http.get(f"/feedback/{gone['id']}")).status_code == 404
        assert await items(parts) == [kept["id"]]
        assert await get(parts, "/feedback/stats", group_by="tag") == {
            **await get(parts, "/feedback/stats"),
            "groups": [],
        }
        for repeated in (parts.http.delete, parts.http.get):
            assert (await repeated(f"/feedback/{gone['id']}")).status_code == 404
        assert (await parts.http.put(f"/feedback/{gone['id']}", json={"rating": 1})).status_code == 404
        assert await parts.host.caught_up(10)
    assert not [word for word in secret if word in _content(tmp_path)]


async def test_scenario_delete_a_completed_job(parts: Parts) -> None:
    """What is said of its samples, by themselves or beside others, is shown no more from then on."""
    (one,) = await make(parts, "j1", 1, prompt_id="shared")
    (two,) = await make(parts, "j2", 1, prompt_id="shared")
    about, beside = await give(parts, one, rating=2), await give(parts, two, preferred_over=one)
    stays = await give(parts, two, rating=4)
    await append(parts, JobDeleted(job_id="j1"))
    for id_, status in ((about["id"], 404), (beside["id"], 404), (stays["id"], 200)):
        assert (await parts.http.get(f"/feedback/{id_}")).status_code == status
        assert (await parts.http.put(f"/feedback/{id_}", json={"rating": 1})).status_code == status
    assert [item["id"] for item in (await get(parts, "/feedback"))["items"]] == [stays["id"]]
    assert (await parts.http.get("/jobs/j1/feedback")).status_code == 404
    assert (await get(parts, "/feedback/stats", job_id="j1"))["count"] == 0
    assert [item["id"] for item in (await get(parts, "/jobs/j2/feedback"))["items"]] == [stays["id"]]


async def test_lists_are_narrowed_by_every_filter_and_walked_either_way(parts: Parts) -> None:
    one, two = await make(parts, "j1", prompt_id="shared", model_id="m")
    (three,) = await make(parts, "j2", 1, prompt_id="shared", model_id="m", adapter=JAZZ)
    a = (await give(parts, one, rating=1, tags=["warm", "dull"], user_id="ann"))["id"]
    b = (await give(parts, two, rating=3.5, tags=["warm"], user_id="bob"))["id"]
    c = (await give(parts, three, rating=5, preferred_over=one, user_id="ann"))["id"]
    d = await give(parts, three, notes="no rating")
    newest = [d["id"], c, b, a]
    assert await items(parts) == newest
    assert await items(parts, audio_id=three) == [d["id"], c]
    assert await items(parts, job_id="j1") == [b, a]
    assert await items(parts, adapter_id="jazz") == [d["id"], c]
    assert await items(parts, model_id="m") == newest
    assert await items(parts, user_id="ann") == [c, a]
    assert await items(parts, tag="warm") == [b, a]
    assert await items(parts, tag="war") == []
    assert await items(parts, min_rating=3.5) == [c, b]
    assert await items(parts, max_rating=3.5) == [b, a]
    assert await items(parts, min_rating=1.1, max_rating=4.9) == [b]
    assert await items(parts, min_rating=1.1, max_rating=1.4) == []
    assert await items(parts, user_id="ann", min_rating=2) == [c]
    assert await items(parts, tag="warm", user_id="ann", job_id="j1", max_rating=2) == [a]
    assert await items(parts, start_date=d["created_at"]) == [d["id"]]
    assert await items(parts, end_date=d["created_at"], tag="dull") == [a]
    some: list[dict[str, Any]] = [{}, {"min_rating": 1}, {"model_id": "m"}]
    for filters in some:
        cursor, walked, skipped = None, list[str](), list[str]()
        for offset in range(4):
            after: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
            page = await get(parts, "/feedback", limit=1, **after, **filters)
            skipped += [
                item["id"] for item in (await get(parts, "/feedback", limit=1, offset=offset, **filters))["items"]
            ]
            walked += [item["id"] for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert walked == skipped == await items(parts, **filters)


async def test_a_retry_under_one_key_is_one_feedback(parts: Parts) -> None:
    one, _ = await make(parts, "j1")
    first = await post(parts, one, key="once", rating=3)
    again = await post(parts, one, key="once", rating=3)
    assert (first.status_code, again.status_code, first.json()) == (201, 201, again.json())
    await parts.http.put(f"/feedback/{first.json()['id']}", json={"rating": 4})
    assert (await post(parts, one, key="once", rating=3)).json()["rating"] == 4
    other = await post(parts, one, key="once", rating=1)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await records(parts) == 2


async def test_where_it_cannot_be_shown_yet_the_answer_says_so(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = await make(parts, "j1")

    async def late(_: object, __: float) -> bool:
        return False

    monkeypatch.setattr(parts.services.tail, "wait", late)
    answer = await post(parts, one, rating=3, tags=["warm"])
    assert answer.status_code == 202
    monkeypatch.undo()
    shown = await get(parts, answer.headers["Location"])
    times = {"created_at", "updated_at"}
    assert {k: v for k, v in answer.json().items() if k not in times} == {
        k: v for k, v in shown.items() if k not in times
    }


async def test_an_unsure_log_is_asked_again_under_the_key(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = await make(parts, "j1")
    append = parts.log.append

    async def losing(messages: Sequence[Message]) -> list[Position]:
        await append(messages)
        raise UncertainError("Kafka may not have taken the append.")

    with monkeypatch.context() as patch:
        patch.setattr(parts.log, "append", losing)
        assert (await post(parts, one, key="once", rating=3)).status_code == 503
    assert await parts.host.caught_up(10)
    assert (await post(parts, one, key="once", rating=3)).status_code == 201
    assert await records(parts) == 1


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"rating": 6}, "/rating", "rating is 6; give 1 to 5 in steps of a half, such as 3.5."),
        ({"rating": 0.5}, "/rating", "rating is 0.5; give 1 to 5"),
        ({"rating": "loud"}, "/rating", "rating is 'loud': Expected `float | null`, got `str`."),
        ({"rating": True}, "/rating", "rating is true: Expected `float | null`, got `bool`."),
        ({"preferred_over": "j1-0"}, "/preferred_over", "the sample itself; name another sample of the same prompt."),
        ({"preferred_over": "alien-0"}, "/preferred_over", "is of prompt 'another', and the sample of 'prompt'; only"),
        ({"preferred_over": "deleted-0"}, "/preferred_over", "There is no audio sample 'deleted-0' to compare with"),
        ({"preferred_over": "nobody"}, "/preferred_over", "There is no audio sample 'nobody' to compare with"),
        ({"verdict": "tie"}, "/verdict", "verdict is tie, which needs two samples; name the other one as preferred"),
        ({"verdict": "better"}, "/verdict", "verdict is 'better'; it is one of both_bad, preferred, tie."),
        ({"tags": ["x" * 51]}, "/tags/0", "The tag has 51 characters; it must have 1 to 50."),
        ({"tags": "warm"}, "/tags", "tags is 'warm'"),
        ({"notes": "x" * 4001}, "/notes", "notes has 4,001 characters; the limit is 4,000."),
        ({"stars": 5}, "/stars", "There is no field 'stars'; the body takes audio_id, rating, preferred_over, verd"),
        ({}, "", "This feedback says nothing; give at least a rating, preferred_over, tags or notes."),
    ],
)
async def test_bad_feedback_is_400_with_a_pointer_and_nothing_is_appended(
    parts: Parts, fields: dict[str, Any], pointer: str, words: str
) -> None:
    await make(parts, "j1")
    await make(parts, "alien", prompt_id="another")
    await make(parts, "deleted")
    await append(parts, JobDeleted(job_id="deleted"))
    kept = await give(parts, "j1-0", rating=1)
    for answer in (await post(parts, "j1-0", **fields), await parts.http.put(f"/feedback/{kept['id']}", json=fields)):
        assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json"), answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert words in answer.json()["errors"][0]["detail"] or pointer == "/stars"
    assert await records(parts) == 1


async def test_several_faults_are_listed_together(parts: Parts) -> None:
    one, _ = await make(parts, "j1")
    answer = await post(parts, one, rating=9, preferred_over=one, tags=[""], seconds_listened={"z": 1})
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [
        "/preferred_over",
        "/rating",
        "/tags/0",
        "/seconds_listened/z",
    ]


async def test_samples_that_cannot_be_heard_cannot_be_judged(parts: Parts) -> None:
    for job_id, event in (
        ("deleted", JobDeleted(job_id="deleted")),
        ("purged", JobPurged(job_id="purged")),
        ("unknown", None),
    ):
        if event is not None:
            await make(parts, job_id)
            await append(parts, event)
        answer = await post(parts, f"{job_id}-0", rating=3)
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no audio sample '{job_id}-0'.")
    await parts.submit("cancelled", seeds=[1])
    await append(parts, JobCancelRequested(job_id="cancelled"))
    assert (await post(parts, "cancelled-0", rating=3)).status_code == 404
    assert await records(parts) == 0


async def test_feedback_outlives_the_audio_that_it_is_about(parts: Parts) -> None:
    one, two = await make(parts, "j1")
    given = await give(parts, one, preferred_over=two)
    await append(parts, JobPurged(job_id="j1"))
    answer = await parts.http.put(f"/feedback/{given['id']}", json={"preferred_over": two, "notes": "still"})
    assert (answer.status_code, answer.json()["verdict"]) == (200, "preferred")


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("min_rating=0", "/min_rating"),
        ("max_rating=5.5", "/max_rating"),
        ("min_rating=4&max_rating=2", "/min_rating"),
        ("min_rating=x", "/min_rating"),
        ("start_date=yesterday", "/start_date"),
        ("stars=3", "/stars"),
        ("limit=0", "/limit"),
    ],
)
async def test_bad_filters_are_refused_by_lists_and_statistics_alike(parts: Parts, query: str, pointer: str) -> None:
    for path in ("/feedback", "/feedback/stats"):
        answer = await parts.http.get(f"{path}?{query}")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    answer = await parts.http.get("/feedback/stats?group_by=mood")
    assert answer.json()["detail"] == "group_by is 'mood'; it is one of audio, job, adapter, model, tag, user."


def recount(feedback: Sequence[dict[str, Any]], ours: dict[str, Any], **wanted: str) -> dict[str, Any]:
    """The figures as the documentation puts them, from what is listed; `ours` has each sample's groups."""
    counts: Counter[str] = Counter()
    ratings = []
    for each in feedback:
        sides = {side: each[name] for side, name in (("sample", "audio_id"), ("other", "preferred_over")) if each[name]}
        meant = {
            side for side, audio in sides.items() if all(ours[audio][name] == value for name, value in wanted.items())
        }
        if "sample" in meant:
            counts["count"] += 1
            ratings += [each["rating"]] if each["rating"] else []
        if each["verdict"] == "preferred":
            counts.update({"sample": "wins", "other": "losses"}[side] for side in meant)
        elif each["verdict"] and meant:
            counts[{"tie": "ties"}.get(each["verdict"], "both_bad")] += 1
    return {
        **{name: counts[name] for name in ("count", "wins", "losses", "ties", "both_bad")},
        "mean_rating": sum(ratings) / len(ratings) if ratings else None,
        "ratings": {f"{step:g}": ratings.count(step) for step in STEPS},
    }


async def check(parts: Parts, ours: dict[str, dict[str, Any]], group_by: str | None, **filters: Any) -> None:
    """Statistics against a recount of everything that is listed."""
    all_ = (await get(parts, "/feedback", limit=200))["items"]
    sides = {name: value for name, value in filters.items() if name in {"audio_id", "job_id", "adapter_id", "model_id"}}
    found = [
        each
        for each in all_
        if ("user_id" not in filters or each["user_id"] == filters["user_id"])
        and ("tag" not in filters or filters["tag"] in each["tags"])
        and ("min_rating" not in filters or (each["rating"] or 0) >= filters["min_rating"])
        and filters.get("start_date", "") <= each["created_at"]
    ]
    answer = await get(parts, "/feedback/stats", **({"group_by": group_by} if group_by else {}), **filters, limit=200)
    groups = {each.pop("key"): each for each in answer.pop("groups")}
    assert answer == recount(found, ours, **sides), filters
    expected = {}
    match group_by:
        case "tag":
            for tag in {tag for each in found for tag in each["tags"]}:
                expected[tag] = recount([each for each in found if tag in each["tags"]], ours, **sides)
        case "user":
            for user in {each["user_id"] for each in found}:
                expected[user] = recount([each for each in found if each["user_id"] == user], ours, **sides)
        case str():
            for key in {groups_[f"{group_by}_id"] for groups_ in ours.values()}:
                wanted = {**sides, f"{group_by}_id": key}
                if sides.get(f"{group_by}_id", key) == key:
                    expected[key] = recount(found, ours, **wanted)
    nothing = recount([], ours)
    assert groups == {key: value for key, value in expected.items() if value != nothing}, (group_by, filters)


async def test_statistics_are_a_recount_whatever_was_given_revised_and_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = Random(15)
    async with open_parts(tmp_path) as parts:
        ours: dict[str, dict[str, Any]] = {}
        for number in range(6):
            adapter = JAZZ if number % 2 else None
            for id_ in await make(
                parts, f"j{number}", 2, prompt_id="shared", model_id=f"m{number % 3}", adapter=adapter
            ):
                ours[id_] = {
                    "audio_id": id_,
                    "job_id": f"j{number}",
                    "model_id": f"m{number % 3}",
                    "adapter_id": "jazz" if adapter else None,
                }
        there: dict[str, str] = {}
        for turn in range(150):
            audio_id = dice.choice([*ours])
            if there and dice.random() < 0.5:
                id_ = dice.choice([*there])
                if dice.random() < 0.4:
                    assert (await parts.http.delete(f"/feedback/{id_}")).status_code == 204
                    del there[id_]
                    continue
                answer = await parts.http.put(f"/feedback/{id_}", json=opinion(dice, there[id_], ours))
            else:
                answer = await post(parts, audio_id, **opinion(dice, audio_id, ours))
                there[answer.json()["id"]] = audio_id
            assert answer.is_success, answer.text
            if turn % 30 == 0:
                await check(parts, ours, dice.choice(["audio", "job", "adapter", "model", "tag", "user"]))
        assert len(there) > 20
        await everything(parts, ours)
    async with open_parts(tmp_path) as parts:
        await everything(parts, ours)
        middle = (await get(parts, "/feedback", limit=10))["items"][-1]["created_at"]
        await check(parts, ours, "model", start_date=middle, adapter_id="jazz")
        monkeypatch.setattr(figures.counted, "__kwdefaults__", {"most": 5})
        answer = await parts.http.get("/feedback/stats?min_rating=1")
        assert "beyond the limit of 5. Narrow the dates" in answer.json()["detail"]


async def everything(parts: Parts, ours: dict[str, dict[str, Any]]) -> None:
    for group_by in (None, "audio", "job", "adapter", "model", "tag", "user"):
        await check(parts, ours, group_by)
        for filters in (
            {"audio_id": "j1-0"},
            {"job_id": "j2"},
            {"adapter_id": "jazz"},
            {"model_id": "m1"},
            {"user_id": "ann"},
            {"tag": "warm"},
            {"min_rating": 3.0},
            {"adapter_id": "jazz", "user_id": "bob"},
            {"job_id": "j1", "tag": "warm", "min_rating": 2.0},
            {"adapter_id": "jazz", "model_id": "m1"},
        ):
            await check(parts, ours, group_by, **filters)
    for job in (await get(parts, "/jobs"))["items"]:
        found = recount((await get(parts, "/feedback", job_id=job["id"], limit=200))["items"], ours, job_id=job["id"])
        assert (job["feedback"]["count"], job["feedback"]["mean_rating"]) == (found["count"], found["mean_rating"])


def opinion(dice: Random, audio_id: str, ours: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"notes": f"take {dice.random()}"}
    if dice.random() < 0.6:
        said["rating"] = dice.choice(STEPS)
    if dice.random() < 0.6:
        said["preferred_over"] = dice.choice([other for other in ours if other != audio_id])
        said["verdict"] = dice.choice(["preferred", "preferred", "tie", "both_bad"])
    if dice.random() < 0.6:
        said["user_id"] = dice.choice(["ann", "bob"])
    said["tags"] = dice.sample(["warm", "dull", "loud", "ä/'"], dice.randrange(4))
    return said


def _content(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in sorted(folder.glob("*.db*")))
