"""`text2song loop` against a whole studio, with a simulated listener, killed in the middle and gone on with."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from api.app import create_app
from api.http.hosts import AllowedHosts
from domain.contract.datasets import BUILT, CREATED
from domain.contract.trainings import COMPLETED
from domain.events.datasets import DatasetStarted
from domain.events.trainings import TrainingRequested, TrainingStarted
from infra.cli import loop_prompts
from infra.cli.listener import TASTES, Listener
from infra.cli.loop import TASTES as OFFERED
from infra.cli.loop_listening import Person as Listening
from infra.cli.loop_listening import Simulated
from infra.cli.loop_picture import curves
from infra.cli.loop_report import Clips, Told, report
from infra.cli.loop_state import FILE, Folder, Judgement, Options, Turn, gone_on
from infra.cli.loop_steps import Loop
from tests import adapter as made_adapter
from tests.conditions import eventually_sync
from tests.local.conftest import Running
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts
from tests.local.terminal import Person, player, served
from tests.local.test_cli import text2song
from tests.local.test_reactions import reacting
from text2song.client import AsyncStudio, ClientError
from workers.ab_tests import ABTestReaction

OPTIONS = Options(
    pairs=24,
    duration=1.0,
    method="dpo",
    simulate="brighter",
    errors=0.0,
    test_pairs=2,
    seed=7,
    steps=2,
    user="simulated-brighter",
    prompts=(),
)
RATE = 16_000


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A studio of which every job is of this file."""
    running = Running(tmp_path_factory.mktemp("loop") / "data")
    running.wait_until_ready()
    yield running
    assert running.stop() == 0, running.errors()


def going_on(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A turn to its end, which is longer than other commands take."""
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def turned(folder: Path) -> dict[str, Any]:
    path = folder / "text2song-loop" / FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def total(running: Running, path: str) -> int:
    found: int = running.http.get(path, params={"limit": 1}).json()["total"]
    return found


def test_a_turn_that_is_killed_at_every_step_is_gone_on_with_and_nothing_is_doubled(
    own: Running, tmp_path: Path
) -> None:
    command = ["loop", "--url", own.url, "--simulate", "brighter", "--method", "sft", "--pairs", "16", "--seed", "3"]
    command += ["--duration", "1", "--steps", "20", "--test-pairs", "2"]
    reached = (
        lambda turn: len(turn.get("jobs", [])) >= 4,
        lambda turn: len(turn.get("judged", {})) >= 3,
        lambda turn: turn.get("training_id"),
        lambda turn: turn.get("ab_test_id"),
    )
    for is_reached in reached:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
        )
        try:
            eventually_sync(lambda: process.poll() is not None or is_reached(turned(tmp_path)), 900)  # noqa: B023
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    done = going_on(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    turn = turned(tmp_path)
    assert set(turn["ended"]) == {"preferences", "dataset", "training", "test"}
    for path, count in (("/feedback", 16), ("/datasets", 1), ("/trainings", 1), ("/adapters", 1), ("/ab-tests", 1)):
        assert total(own, path) == count, path
    assert total(own, "/jobs") == 16 + 2 * 2
    results = own.http.get(f"/ab-tests/{turn['ab_test_id']}/results").json()
    assert (results["cast"], results["votes"]) == (2, 2)
    test = own.http.get(f"/ab-tests/{turn['ab_test_id']}").json()
    assert (test["adapter_a"], test["adapter_b"]) == (None, turn["adapter_id"])
    rated = {own.http.get(f"/jobs/{id_}").json()["prompt"] for id_ in turn["jobs"]}
    assert len(rated) == 16
    assert not rated & {pair["prompt"] for pair in test["pairs"]}
    page = (tmp_path / "loop.html").read_text(encoding="utf-8")
    assert page.count("data:audio/mpeg") == 4
    for id_ in (turn["dataset_id"], turn["training_id"], turn["adapter_id"], turn["ab_test_id"]):
        assert id_ in page

    train = ("train", "--url", own.url, "--method", "sft", "--steps", "2", "--output", "mine", "--dataset")
    trained = text2song(*train, turn["dataset_id"], cwd=tmp_path)
    assert trained.returncode in {0, 3}, trained.stdout + trained.stderr
    manifest = json.loads((tmp_path / "mine/dataset/manifest.json").read_text())
    assert manifest["dataset_id"] == turn["dataset_id"]
    assert json.loads((tmp_path / "mine/training.json").read_text())["dataset"]["digest"] == manifest["digest"]
    another = text2song(*train, "another", cwd=tmp_path)
    assert another.returncode == 2
    assert "Choose another --output" in " ".join(another.stderr.replace("│", " ").split())

    again = going_on(command, tmp_path)
    assert again.returncode == 0, again.stderr
    assert total(own, "/jobs") == 16 + 2 * 2
    other = text2song(*command, "--errors", "0.2", cwd=tmp_path)
    assert other.returncode == 1
    assert "begun with another --errors: 0.0, not 0.2" in other.stderr


def test_a_listener_who_guesses_teaches_nothing_and_the_turn_says_so(own: Running, tmp_path: Path) -> None:
    before = total(own, "/ab-tests")
    command = ["loop", "--url", own.url, "--simulate", "bass", "--errors", "0.5", "--pairs", "24", "--duration", "0.5"]
    done = going_on([*command, "--seed", "1", "--report", "none.html"], tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Nothing learnt" in done.stdout
    assert "Nothing was learnt" in (tmp_path / "none.html").read_text(encoding="utf-8")
    assert total(own, "/ab-tests") == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--simulate", "louder"), 2, "'louder' is not one of 'brighter', 'darker', 'bass', 'dynamics', 'denser'"),
        (("--simulate", "bass", "--pairs", "8"), 2, "--pairs is 8; the method taste learns from 24 or more"),
        (("--errors", "0.2"), 2, "--errors is for a simulated listener"),
        (("--simulate", "bass", "--errors", "2"), 2, "2.0 is not in the range"),
        (("--simulate", "bass", "--url", "http://127.0.0.1:9"), 1, "No studio answers at http://127.0.0.1:9"),
        (("--simulate", "bass", "--folder", "/dev/null/x"), 1, "cannot be written to"),
        (("--url", "http://127.0.0.1:9"), 1, "Choose a simulated listener with --simulate"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    done = text2song("loop", *arguments, cwd=tmp_path, sent="")
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_training_needs_one_dataset(tmp_path: Path) -> None:
    for named in ((), ("--data", "here", "--dataset", "there")):
        done = text2song("train", "--output", "mine", *named, cwd=tmp_path)
        assert done.returncode == 2
        assert "--dataset" in done.stderr
        assert not list(tmp_path.iterdir())


def test_a_request_that_the_studio_refuses_ends_the_turn_with_its_sentence(own: Running, tmp_path: Path) -> None:
    done = text2song("loop", "--url", own.url, "--simulate", "bass", "--duration", "301", cwd=tmp_path)
    assert done.returncode == 1
    assert "The requested duration is 301 s" in done.stderr


def test_more_pairs_are_asked_for_until_there_is_a_dataset(tmp_path: Path) -> None:
    turn = Turn.begun(OPTIONS)
    turn.jobs = ["job"] * 24
    assert gone_on(turn, {"pairs": 40}, tmp_path).options.pairs == 40
    with pytest.raises(ClientError, match="24 are asked for already: --pairs 20 is too late"):
        gone_on(turn, {"pairs": 20}, tmp_path)
    turn.dataset_id = "d1"
    with pytest.raises(ClientError, match="its dataset is made already: --pairs 60 is too late"):
        gone_on(turn, {"pairs": 60}, tmp_path)
    with pytest.raises(ClientError, match="begun with another --prompts: 0 prompts, not 1 prompts"):
        gone_on(turn, {"prompts": ("rain",)}, tmp_path)


def test_the_state_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "turn")
    with folder.held():
        assert folder.read() is None
        turn = Turn.begun(OPTIONS)
        turn.judged[3] = Judgement(body={"audio_id": "a", "preferred_over": "b", "verdict": "tie"})
        folder.write(turn)
        assert folder.read() == turn
        assert turn.decided == 0
        with pytest.raises(ClientError, match="Another text2song loop works in"), folder.held():
            pass
    for content in (b"", b"\xff", b"[]", msgspec.json.encode(turn)[:-9]):
        (folder.path / FILE).write_bytes(content)
        with pytest.raises(ClientError, match="cannot be read"):
            folder.read()


def test_no_prompt_of_the_test_is_a_pair_s() -> None:
    prompts = tuple(f"song {number}" for number in range(12))
    for given in ((), prompts, prompts[:3]):
        options = msgspec.structs.replace(OPTIONS, prompts=given, pairs=40, test_pairs=9)
        rated, tested = loop_prompts.of_pairs(options), loop_prompts.of_test(options)
        assert len(rated) == 40
        assert tested
        assert not set(rated) & set(tested)
        more = msgspec.structs.replace(options, pairs=60)
        assert loop_prompts.of_pairs(more)[:40] == rated


class Clip(AsyncStudio):
    """A studio that has two clips."""

    def __init__(self, folder: Path, **sounds: Any) -> None:
        super().__init__("http://127.0.0.1:9")
        self._folder = folder
        for name, sound in sounds.items():
            soundfile.write(folder / f"{name}.wav", sound, RATE)

    async def content(self, path: str) -> bytes:
        return (self._folder / f"{path}.wav").read_bytes()


def sounds() -> dict[str, tuple[Any, Any]]:
    """Of each taste a clip that it prefers, and one that it does not."""
    time = np.arange(2 * RATE) / RATE
    high, low, deep = (np.sin(2 * np.pi * hertz * time) for hertz in (3000, 500, 100))
    dense, sparse = ((time % period < 0.05) * high for period in (0.2, 1.0))
    return {
        "brighter": (high, low),
        "darker": (low, high),
        "bass": (deep, low),
        "dynamics": ((0.05 + (time > 1)) * low, low),
        "denser": (dense + 0.001 * low, sparse + 0.001 * low),
    }


@pytest.mark.parametrize("taste", TASTES)
async def test_a_simulated_listener_prefers_what_it_is_named_after(taste: str, tmp_path: Path) -> None:
    assert tuple(TASTES) == OFFERED
    more, less = sounds()[taste]
    async with Clip(tmp_path, more=0.3 * more, less=0.1 * less, silence=0 * more) as client:
        right, wrong = Listener(taste, 0.0, 1), Listener(taste, 1.0, 1)
        assert await right.prefers(client, "more", "less", 0) == "left"
        assert await right.prefers(client, "less", "more", 0) == "right"
        assert await wrong.prefers(client, "less", "more", 0) == "left"
        assert await right.prefers(client, "silence", "silence", 0) == "tie"
        (tmp_path / "less.wav").write_bytes(b"no sound")
        with pytest.raises(ClientError, match="is no WAV file"):
            await right.prefers(client, "more", "less", 0)


async def test_errors_follow_from_the_seed_and_are_as_many_as_asked_for(tmp_path: Path) -> None:
    more, less = sounds()["brighter"]
    async with Clip(tmp_path, more=more[:2000], less=less[:2000]) as client:
        answers = [await Listener("brighter", 0.2, 4).prefers(client, "more", "less", n) for n in range(200)]
        again = [await Listener("brighter", 0.2, 4).prefers(client, "more", "less", n) for n in range(10)]
    assert 20 < answers.count("right") < 60
    assert again == answers[:10]


def test_the_report_runs_nothing_and_loads_nothing() -> None:
    hostile = "<script>alert(1)</script>"
    turn = Turn.begun(msgspec.structs.replace(OPTIONS, simulate=None, user=hostile))
    page = report(
        Told(
            turn=turn,
            dataset={"id": "d1", "sample_count": 24, "digest": "ab"},
            training={"id": "t1", "method": "taste", "message": hostile, "step": 0, "metrics": {}, "curve": []},
            adapter=None,
            asked=None,
            found=None,
            clips=[Clips(hostile, b"a", b"b")],
        ),
        "now",
    )
    tags, addresses = list[str](), list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            addresses.extend(value or "" for name, value in attrs if name in {"src", "href"} or name.startswith("on"))

    Reader().feed(page)
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert all(address.startswith("data:audio/mpeg;base64,") for address in addresses)
    assert page.count("&lt;script&gt;") == 3


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    sitting = Person(tmp_path)
    yield sitting
    sitting.close()


async def test_a_person_compares_pairs_at_a_terminal_stops_and_goes_on(
    parts: Parts, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in player(tmp_path).items():
        monkeypatch.setenv(name, setting)
    folder, report_file = Folder(tmp_path / "turn"), tmp_path / "loop.html"
    turn = Turn.begun(msgspec.structs.replace(OPTIONS, pairs=2, simulate=None, user="ann"))

    def going(url: str, turn: Turn) -> "asyncio.Task[str]":
        async def go() -> str:
            async with AsyncStudio(url) as client:
                judge = Listening(person.terminal, client, person.fd)
                return await Loop(person.terminal, client, folder, turn, judge).run(report_file)

        return asyncio.create_task(go())

    async with served(create_app(parts.services, AllowedHosts())) as url, parts.working(ScriptedEngine()):
        with folder.held():
            turning = going(url, turn)
            await person.sees("two clips of 1 s for each of 2 prompts", "Pair 1 of 2", "playing left")
            person.press("d")
            await person.sees("Pair 2 of 2", "playing right")
            person.press("q")
            assert await turning == "stopped"
            await person.sees("Stopped in the middle of the pairs; the same command goes on.")
            kept = folder.read()
            assert kept is not None
            [first] = (await parts.http.get("/feedback")).json()["items"]
            assert (first["verdict"], first["user_id"]) == ("preferred", "ann")
            heard = (await parts.http.get(f"/jobs/{kept.jobs[0]}")).json()["sample_ids"]
            assert [first["preferred_over"], first["audio_id"]] == heard
            assert first["heard_first"] == heard[0]

            # As if the process had been killed between writing an answer down and sending it.
            kept.judged[0] = Judgement(body=kept.judged[0].body)
            turning = going(url, kept)
            await person.sees("1 pairs to compare", "Pair 2 of 2", "playing right")
            person.press("t")
            with pytest.raises(ClientError, match="1 pairs say which clip is better, and dpo learns from 16 or more"):
                await turning
            assert (await parts.http.get("/feedback")).json()["total"] == 2

            kept.jobs[0] = "elsewhere"
            with pytest.raises(ClientError, match="was begun at another studio: There is no job 'elsewhere'"):
                await going(url, kept)


async def test_a_trained_adapter_is_tested_blindly_and_told_of(parts: Parts, person: Person, tmp_path: Path) -> None:
    """From the training's end on; the turn begins there once more, and casts no second vote."""
    adapter = (await parts.http.post("/adapters", **made_adapter.form())).json()["id"]
    await parts.journal.append(
        msgspec.structs.replace(CREATED, dataset_id="d1", kind="preference", request_digest=None),
        DatasetStarted(dataset_id="d1", attempt=1, worker_id="gone"),
        msgspec.structs.replace(BUILT, dataset_id="d1", items="datasets/d1/list.jsonl"),
    )
    await parts.journal.append(
        TrainingRequested(
            training_id="t1", dataset_id="d1", method="dpo", adapter_name="jazz", adapter_version="1.0.0"
        ),
        TrainingStarted(training_id="t1", attempt=1, worker_id="gone"),
        msgspec.structs.replace(COMPLETED, training_id="t1", adapter_id=adapter),
    )
    await parts.host.caught_up(10)
    turn = Turn.begun(OPTIONS)
    turn.dataset_id, turn.training_id = "d1", "t1"
    folder, report_file = Folder(tmp_path / "turn"), tmp_path / "loop.html"
    reaction = ABTestReaction(parts.journal, parts.store)
    async with (
        served(create_app(parts.services, AllowedHosts())) as url,
        reacting(parts, reaction),
        parts.working(ScriptedEngine()),
    ):
        for _ in range(2):
            with folder.held():
                async with AsyncStudio(url) as client:
                    judge = Simulated(client, Listener("brighter", 0.0, 1))
                    assert await Loop(person.terminal, client, folder, turn, judge).run(report_file) == "tested"
                kept = folder.read()
            assert kept is not None
            turn = kept
            assert turn.ab_test_id is not None
            test = (await parts.http.get(f"/ab-tests/{turn.ab_test_id}")).json()
            assert (test["adapter_a"], test["adapter_b"], test["pairs_generated"]) == (None, adapter, 2)
            results = (await parts.http.get(f"/ab-tests/{turn.ab_test_id}/results")).json()
            assert (results["cast"], results["voters"]) == (2, 1)
            page = report_file.read_text(encoding="utf-8")
            assert page.count("data:audio/mpeg") == 4
            assert all(id_ in page for id_ in ("d1", "t1", adapter, turn.ab_test_id))
        assert (await parts.http.get("/ab-tests")).json()["total"] == 1


def test_a_curve_is_drawn_of_what_was_measured() -> None:
    points = [
        {"step": float(step), "loss": 1 / step, **({"held_out_loss": 0.5} if step == 2 else {})} for step in (1, 2)
    ]
    [drawn] = curves(points)
    assert drawn.count("<polyline") == 2
    assert "Loss over the steps" in drawn
    assert curves([]) == curves(points[:1]) == []
