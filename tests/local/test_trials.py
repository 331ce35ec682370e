"""Blind trials over HTTP: what a listener is given, and that nothing of it tells which side is which."""

import asyncio
import io
import json
import re
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
import soundfile
from msgspec.structs import replace

import api.http.renditions
from api.http.sealing import Seal, Seals
from domain.ab_tests import ARMS, job_id
from domain.events import Event
from domain.events.ab_tests import ABTestClosed, ABTestCreated, ABTestReady, Pair
from domain.events.jobs import AdapterSnapshot, JobDeleted
from domain.models import NOISE
from domain.trials import Trial, trials
from infra.storage.file_objects import FileObjects
from tests import adapter as made_adapter
from tests.conditions import eventually
from tests.local.engine import RATE, ScriptedEngine
from tests.local.parts import Parts, submission
from workers.engine import Clip, EngineRequest, Progress
from workers.mastering import loudness
from workers.matching import matched
from workers.purging import PurgeOfDeleted
from workers.reactions import Reactions

SIDES: Final = ("left", "right")
ADAPTER: Final = AdapterSnapshot(
    id="adapter-seven",
    name="brushed-drums",
    version="3.1",
    base_model=NOISE.id,
    storage_path="adapters/seven",
    sha256=made_adapter.DIGEST,
)


class UnevenEngine(ScriptedEngine):
    """Makes noise whose length and loudness differ with the job."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        self.requests.append(request)
        for take in request.takes:
            draws = np.random.default_rng(list(request.id.encode()))
            level, seconds = draws.uniform(-40, -5), draws.uniform(0.5, 1.5)
            noise = draws.standard_normal((1, int(seconds * RATE))) * 10 ** (level / 20)
            yield Clip(
                request_id=request.id, index=take.index, seed=take.seed, sample_rate=RATE, pcm=noise.astype(np.float32)
            )


async def ready(
    parts: Parts, pairs: int = 3, *, test: str = "test-1", catch_trials: int = 0, fails: int | None = None
) -> None:
    """A test whose jobs have ended; both jobs of pair `fails` are cancelled."""
    await created(parts, pairs, test=test, catch_trials=catch_trials)
    await made_adapter.store(parts.objects, ADAPTER)
    for pair in range(pairs):
        for arm in ARMS:
            id_ = job_id(test, pair, arm)
            adapter = ADAPTER if arm == "B" else None
            await append(parts, submission(id_, seeds=[7], ab_test_id=test, adapter=adapter))
            if pair == fails:
                assert (await parts.http.delete(f"/generate/{id_}")).status_code in {200, 202}
    async with parts.working(UnevenEngine()):
        for pair in range(pairs):
            for arm in ARMS:
                await parts.when(job_id(test, pair, arm), "cancelled" if pair == fails else "completed")
    await append(parts, ABTestReady(ab_test_id=test, failed=() if fails is None else (fails,)))


async def append(parts: Parts, event: Event) -> None:
    assert await parts.services.views.show(await parts.journal.append(event))


async def created(parts: Parts, pairs: int = 3, *, test: str = "test-1", catch_trials: int = 0) -> None:
    await append(
        parts,
        ABTestCreated(
            ab_test_id=test,
            test_name="drums",
            pairs=tuple(Pair(prompt_id=f"prompt-{pair}", prompt=f"music {pair}", seed=7) for pair in range(pairs)),
            model_id=NOISE.id,
            duration=1.0,
            adapter_b=ADAPTER,
            catch_trials=catch_trials,
        ),
    )


async def ask(parts: Parts, voter: str = "anna", test: str = "test-1") -> httpx.Response:
    return await parts.http.get(f"/ab-tests/{test}/next", params={"voter": voter})


async def given(parts: Parts, voter: str = "anna", test: str = "test-1") -> dict[str, Any]:
    answer = await ask(parts, voter, test)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def opened(parts: Parts, trial_id: str) -> Trial:
    return (await parts.services.seals.get()).open(trial_id)


async def vote(parts: Parts, trial_id: str, test: str = "test-1") -> None:
    answer = await parts.http.post(f"/ab-tests/{test}/votes", json={"trial_id": trial_id, "choice": "left"})
    assert answer.status_code == 201, answer.text
    trial = await opened(parts, trial_id)
    assert (answer.json()["left_arm"], answer.json()["right_arm"]) == (trial.arm("left"), trial.arm("right"))


async def every(parts: Parts, voter: str = "anna", test: str = "test-1") -> list[dict[str, Any]]:
    """All that the voter is given, each voted on."""
    found = []
    while (answer := await ask(parts, voter, test)).status_code == 200:
        found.append(answer.json())
        await vote(parts, answer.json()["trial_id"], test)
    assert (answer.status_code, answer.content) == (204, b"")
    return found


async def sides(parts: Parts, trial: dict[str, Any], **headers: str) -> list[httpx.Response]:
    return [await parts.http.get(trial[side]["stream_url"], headers=headers) for side in SIDES]


def pcm(wav: bytes) -> Any:
    frames, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    assert rate == RATE
    return frames.T


async def test_scenario_a_listener_hears_every_pair_once_and_blind(parts: Parts) -> None:
    await ready(parts, 4)
    heard = await every(parts)
    assert sorted(trial["prompt"] for trial in heard) == [f"music {pair}" for pair in range(4)]
    assert [trial["remaining"] for trial in heard] == [4, 3, 2, 1]
    assert len({trial["trial_id"] for trial in heard}) == 4
    for trial in heard:
        left, right = await sides(parts, trial)
        assert (left.status_code, right.status_code) == (200, 200)
        assert len(left.content) == len(right.content) == int(left.headers["Content-Length"])
        one, other = pcm(left.content), pcm(right.content)
        assert one.shape == other.shape
        assert one.shape[1] / RATE == trial["left"]["duration_seconds"] == trial["right"]["duration_seconds"]
        levels = [loudness(side, RATE) for side in (one, other)]
        assert levels[0] is not None
        assert levels[1] is not None
        assert abs(levels[0] - levels[1]) <= 0.2


async def test_each_side_is_the_music_of_its_arm(parts: Parts) -> None:
    await ready(parts, 4)
    for trial in await every(parts):
        sealed = await opened(parts, trial["trial_id"])
        for side, answer in zip(SIDES, await sides(parts, trial), strict=True):
            arm = sealed.arm("left" if side == "left" else "right")
            (sample_id,) = (await parts.http.get(f"/jobs/{job_id('test-1', sealed.pair, arm)}")).json()["sample_ids"]
            master = await parts.http.get(f"/audio/{sample_id}/stream", params={"format": "flac"})
            one, other = pcm(answer.content)[0], pcm(master.content)[0]
            length = min(len(one), len(other)) - RATE // 100
            assert np.corrcoef(one[:length], other[:length])[0, 1] > 0.99


async def test_no_header_and_no_byte_tells_a_side_from_the_other(parts: Parts) -> None:
    """Every answer that a listener can get, the refusals too, is searched for all that names an arm."""
    await ready(parts, 2)
    words = {ADAPTER.id, ADAPTER.name, NOISE.id, "adapter", "job_id", "sample", '"seed', "renditions"}
    for pair in range(2):
        for arm in ARMS:
            job = (await parts.http.get(f"/jobs/{job_id('test-1', pair, arm)}")).json()
            (sample_id,) = job["sample_ids"]
            audio = (await parts.http.get(f"/audio/{sample_id}")).json()
            stream = await parts.http.get(audio["stream_url"])
            words |= {job["id"], sample_id, audio["sha256"], audio["sha256"][:16], stream.headers["ETag"].strip('"')}
            words |= {str(audio["loudness_lufs"]), audio["created_at"], audio["storage_path"], audio["pcm_sha256"]}
    secrets = {word.encode() for word in words}
    secrets |= {
        bytes.fromhex(hexadecimal)
        for word in words
        if re.fullmatch("[0-9a-f]{32,}", hexadecimal := word.replace("-", ""))
    }
    first = await ask(parts)
    trial = first.json()
    answers = [first, await ask(parts, "ben"), await ask(parts, "")]
    for headers in ({}, {"Range": "bytes=0-99"}, {"Range": "bytes=999999999-"}, {"If-None-Match": "*"}):
        answers += await sides(parts, trial, **headers)
    answers += [await parts.http.head(trial[side]["stream_url"]) for side in SIDES]
    left = trial["left"]["stream_url"]
    answers += [await parts.http.get(left.replace("/left", "/middle")), await parts.http.get(f"{left[:-6]}x/left")]
    path = next((parts.folder / "objects/samples").rglob("*.flac"))
    for damage in (path.read_bytes()[:-1], None):
        path.unlink()
        for kept in (parts.folder / "objects/renditions").rglob("*.wav"):
            kept.unlink()
        if damage:
            path.write_bytes(damage)
        sealed = (await parts.services.seals.get()).seal(
            Trial(ab_test_id="test-1", pair=pair_of(parts, path), voter="cleo", left="A")
        )
        answers += [await parts.http.get(f"/ab-tests/test-1/trials/{sealed}/{side}") for side in SIDES]
        assert [answer.status_code for answer in answers[-2:]] == [410, 410]
        answers.append(await ask(parts, "cleo"))
    for answer in answers:
        told = str(answer.headers).encode() + answer.content
        for text in re.findall("[A-Za-z0-9_-]{40,}", str(answer.request.url)):
            told += urlsafe_b64decode(text + "==")
        found = [secret for secret in secrets if secret in told]
        assert not found, (answer.request.url, found)
        assert "last-modified" not in answer.headers
        assert "x-event-position" not in answer.headers
    for at in range(3, 3 + 2 * 5, 2):
        one, other = ({**answer.headers} for answer in answers[at : at + 2])
        assert one.keys() == other.keys()
        assert {name for name in one if one[name] != other[name]} <= {"etag", "content-disposition", "x-request-id"}


def pair_of(parts: Parts, path: Path) -> int:
    owner = path.relative_to(parts.folder / "objects/samples").parts[0]
    return next(pair for pair in range(2) for arm in ARMS if job_id("test-1", pair, arm) == owner)


async def test_the_names_of_sides_are_neutral_and_their_etags_lead_nowhere(parts: Parts) -> None:
    await ready(parts, 1)
    anna, ben = await given(parts, "anna"), await given(parts, "ben")
    answers = await sides(parts, anna) + await sides(parts, ben)
    assert [answer.headers["Content-Disposition"] for answer in answers[:2]] == [
        'inline; filename="left.wav"',
        'inline; filename="right.wav"',
    ]
    etags = [answer.headers["ETag"] for answer in answers]
    assert len(set(etags)) == 4
    assert {len(etag) for etag in etags} == {34}
    assert {answer.headers["Cache-Control"] for answer in answers} == {"private, no-cache"}
    assert {answer.headers["Content-Type"] for answer in answers} == {"audio/wav"}
    with soundfile.SoundFile(io.BytesIO(answers[0].content)) as file:
        assert (file.subtype, file.copy_metadata()) == ("PCM_16", {})
    assert b"anna" not in urlsafe_b64decode(anna["trial_id"] + "==")


async def test_ranges_and_validators_are_those_of_every_audio(parts: Parts) -> None:
    await ready(parts, 1)
    url = (await given(parts))["right"]["stream_url"]
    whole = await parts.http.get(url)
    half = len(whole.content) // 2
    first = await parts.http.get(url, headers={"Range": f"bytes=0-{half - 1}"})
    rest = await parts.http.get(url, headers={"Range": f"bytes={half}-"})
    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.content + rest.content == whole.content
    assert first.headers["Content-Range"] == f"bytes 0-{half - 1}/{len(whole.content)}"
    same = await parts.http.get(url, headers={"If-None-Match": whole.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    changed = await parts.http.get(url, headers={"If-Range": '"old"', "Range": "bytes=0-0"})
    assert changed.status_code == 200
    beyond = await parts.http.get(url, headers={"Range": f"bytes={len(whole.content)}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(whole.content)}")
    head = await parts.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "Content-Type", "ETag", "Accept-Ranges"):
        assert head.headers[name] == whole.headers[name]


async def test_a_voter_who_asks_again_gets_the_same_open_trial_in_every_browser(parts: Parts) -> None:
    await ready(parts)
    answers = await asyncio.gather(*(given(parts) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    await vote(parts, answers[0]["trial_id"])
    following = await given(parts)
    assert following["trial_id"] != answers[0]["trial_id"]
    assert following["remaining"] == 2
    assert (await sides(parts, answers[0]))[0].status_code == 200


async def test_a_vote_of_one_voter_takes_nothing_from_another(parts: Parts) -> None:
    await ready(parts)
    assert len(await every(parts, "anna")) == 3
    assert len(await every(parts, "ben")) == 3


@pytest.mark.parametrize(
    "voter",
    [
        "Ána María",
        "日本語 🎧",
        "a b  c ",
        "a/b?c#d&e=f%20+",
        "\0",
        "x" * 200,
        "漢" * 200,
        "'; drop table votes --",
    ],
)
async def test_a_voter_may_have_any_name(parts: Parts, voter: str) -> None:
    await ready(parts, 2)
    heard = await every(parts, voter)
    assert len(heard) == 2
    for trial in heard:
        assert (await opened(parts, trial["trial_id"])).voter == voter
        assert {answer.status_code for answer in await sides(parts, trial)} == {200}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("voter=", "voter is ''"),
        ("voter=%20%09", "which is blank"),
        (f"voter={'x' * 201}", "200"),
    ],
)
async def test_a_voter_has_to_be_named(parts: Parts, query: str, words: str) -> None:
    await ready(parts, 1)
    answer = await parts.http.get(f"/ab-tests/test-1/next?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/voter")
    assert words in answer.json()["detail"]
    absent = await parts.http.get("/ab-tests/test-1/next")
    assert (absent.status_code, absent.json()["errors"]) == (
        400,
        [{"pointer": "/voter", "detail": "voter is missing."}],
    )


async def test_there_are_trials_only_while_a_test_is_ready(parts: Parts) -> None:
    assert (await ask(parts)).status_code == 404
    await created(parts)
    early = await ask(parts)
    assert (early.status_code, early.json()["detail"]) == (
        409,
        "A/B test test-1 is generating; ask again when it is ready.",
    )
    await ready(parts, test="test-2")
    trial = await given(parts, test="test-2")
    await append(parts, ABTestClosed(ab_test_id="test-2"))
    late = await ask(parts, test="test-2")
    assert (late.status_code, late.json()["detail"]) == (409, "A/B test test-2 is closed; it takes no more votes.")
    assert {answer.status_code for answer in await sides(parts, trial)} == {200}


async def test_pairs_that_failed_or_are_deleted_are_left_out_and_the_others_stay_as_they_were(parts: Parts) -> None:
    await ready(parts, 5, fails=2)
    before = await every(parts, "anna")
    assert len(before) == 4
    lost = await opened(parts, before[1]["trial_id"])
    await append(parts, JobDeleted(job_id=job_id("test-1", lost.pair, "B")))
    stale = await sides(parts, before[1])
    assert [answer.status_code for answer in stale] == [404, 404]
    assert stale[0].json()["detail"].startswith("There is no trial ")
    # The same order and sides for a voter who comes later, as for one who came before.
    expected = [await opened(parts, trial["trial_id"]) for trial in before if trial != before[1]]
    key = (await parts.services.seals.get()).key
    assert trials("test-1", "anna", [0, 1, 3, 4], 0, left_out=[lost.pair], key=key) == expected
    assert len(await every(parts, "ben")) == 3
    assert {(await opened(parts, trial["trial_id"])).pair for trial in await every(parts, "cleo")}.isdisjoint(
        {2, lost.pair}
    )


async def test_a_pair_whose_audio_is_damaged_holds_up_nobody(parts: Parts) -> None:
    await ready(parts, 3)
    first = await opened(parts, (await given(parts))["trial_id"])
    folder = parts.folder / "objects"
    [master] = (folder / "samples" / job_id("test-1", first.pair, "A")).rglob("*.flac")
    for kept in (folder / "renditions").rglob("*.wav"):
        kept.unlink()
    master.write_bytes(b"damaged")
    found = await every(parts)
    assert len(found) == 2
    assert first.pair not in {(await opened(parts, trial["trial_id"])).pair for trial in found}


async def test_where_no_trial_can_be_heard_the_voter_is_not_told_that_all_were(parts: Parts) -> None:
    await ready(parts, 2)
    for kept in (parts.folder / "objects").rglob("*.flac"):
        kept.unlink()
    answer = await parts.http.get("/ab-tests/test-1/next", params={"voter": "anna"})
    assert (answer.status_code, answer.json()["code"]) == (410, "damaged")
    assert answer.json()["detail"].startswith("anna has not voted on 2 trials")


async def test_what_is_kept_of_a_deleted_jobs_trials_goes_with_it(parts: Parts) -> None:
    await ready(parts, 1)
    await sides(parts, await given(parts))
    kept = parts.folder / "objects/renditions"
    names = {path.name for path in kept.rglob("*.wav")}
    assert len(list(kept.rglob("*.wav"))) == 2
    # Nobody who knows the test can tell the name.
    assert len(names) == 1
    assert len(names.pop()) == 36
    gone = job_id("test-1", 0, "A")
    await parts.http.delete(f"/jobs/{gone}")
    reaction = PurgeOfDeleted(parts.journal, parts.store, parts.objects)
    purging = asyncio.create_task(Reactions(parts.journal, parts.store, parts.host, [reaction]).run())
    try:
        await eventually(lambda: asyncio.to_thread(lambda: not (kept / gone).exists()))
    finally:
        purging.cancel()
    assert [path.parent.name for path in kept.rglob("*.wav")] == [job_id("test-1", 0, "B")]


async def test_forged_and_foreign_trial_ids_are_not_found(parts: Parts) -> None:
    await ready(parts, 1)
    await ready(parts, 1, test="test-2")
    trial_id = (await given(parts))["trial_id"]
    abroad = Seal(b"\1" * 32).seal(await opened(parts, trial_id))
    elsewhere = (await given(parts, test="test-2"))["trial_id"]
    absent = (await parts.services.seals.get()).seal(replace(await opened(parts, trial_id), pair=9))
    cut, changed = trial_id[:-2], trial_id[:5] + ("A" if trial_id[5] != "A" else "B") + trial_id[6:]
    for text in (abroad, elsewhere, absent, cut, changed, "x", "%00", "ä", "x" * 5_000, f"{trial_id}="):
        answer = await parts.http.get(f"/ab-tests/test-1/trials/{text}/left")
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json"), text
        assert answer.json()["detail"].startswith("There is no trial ")
    side = await parts.http.get(f"/ab-tests/test-1/trials/{trial_id}/middle")
    assert (side.status_code, side.json()["detail"]) == (400, "side is 'middle'; it is one of left, right.")


async def test_listeners_who_come_at_once_have_a_pair_made_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(one: bytes, other: bytes) -> tuple[bytes, bytes]:
        made.append(1)
        return matched(one, other)

    monkeypatch.setattr(api.http.renditions, "matched", counted)
    await ready(parts, 1)
    found = await asyncio.gather(*(given(parts, f"voter {number}") for number in range(6)))
    urls = [trial[side]["stream_url"] for trial in found for side in SIDES]
    answers = await asyncio.gather(*(parts.http.get(url) for url in urls))
    assert len(made) == 1
    assert len({answer.content for answer in answers}) == 2


async def test_catch_trials_are_two_sides_of_the_same_music_and_look_like_any_other(parts: Parts) -> None:
    await ready(parts, 9, catch_trials=3)
    found = await every(parts)
    caught = [trial for trial in found if (await opened(parts, trial["trial_id"])).catch]
    assert (len(found), len(caught)) == (10, 1)
    assert found[0] not in caught
    assert len({len(trial["trial_id"]) for trial in found}) == 1
    assert Counter(trial["prompt"] for trial in found)[caught[0]["prompt"]] == 2
    left, right = await sides(parts, caught[0])
    assert left.content == right.content
    assert left.headers["ETag"] != right.headers["ETag"]


async def test_processes_that_share_objects_open_each_others_trials(parts: Parts) -> None:
    both = [Seals(await FileObjects.open(parts.folder / "objects")) for _ in range(2)]
    one, other = await asyncio.gather(*(seals.get() for seals in both))
    trial = Trial(ab_test_id="t", pair=0, voter="v", left="A")
    assert other.open(one.seal(trial)) == trial
    assert (await parts.services.seals.get()).open(one.seal(trial)) == trial


async def test_a_damaged_secret_is_said_and_nothing_is_sealed_with_it(parts: Parts) -> None:
    await ready(parts, 1)
    await parts.objects.put("secrets/trials", b"short")
    answer = await ask(parts)
    assert (answer.status_code, answer.json()["code"]) == (410, "damaged")
    assert "'secrets/trials' is damaged: it has 5 bytes, not 32." in answer.json()["detail"]


async def test_no_route_serves_the_secret(parts: Parts) -> None:
    await ready(parts, 1)
    await given(parts)
    secret = (parts.folder / "objects/secrets/trials").read_bytes()
    described = json.loads((await parts.http.get("/schema/openapi.json")).content)
    asked = 0
    for path in described["paths"]:
        for value in ("secrets/trials", "..%2F..%2Fsecrets%2Ftrials"):
            if (url := re.sub(r"\{[^}]*\}", value, path)) != path:
                answer = await parts.http.get(url)
                assert secret not in answer.content
                asked += 1
    assert asked > 10
