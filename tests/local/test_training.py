"""A training from a dataset's folder to an adapter's, by the engine of noise."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from domain.lora import WEIGHTS
from domain.models import NANO, NOISE
from tests import dataset
from tests.contract.conftest import too_many_files
from tests.dataset import Sound
from workers import adapter_files
from workers.engine import Adapter, Clip, EngineRequest, Take
from workers.engines.checkpoints import Checkpoint
from workers.engines.musicgen.engine import MusicgenEngine
from workers.mastering import master, pcm_sha256
from workers.training.checkpoint import load
from workers.training.codes import Codes
from workers.training.config import config
from workers.training.errors import Stopped, TrainingError
from workers.training.examples import read
from workers.training.examples import sound as hear
from workers.training.network import Network
from workers.training.objectives import Sft
from workers.training.result import RESULT, Result
from workers.training.run import Point, Training
from workers.training.standing import FILE, standing_of

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 26
SECONDS = 0.6


def sound(*, bright: bool, seed: int) -> Sound:
    """Noise whose highs are much or little; all else varies."""
    dice = np.random.default_rng(seed)
    noise = dice.normal(size=round(SECONDS * NOISE.sample_rate))
    smooth = np.convolve(noise, np.ones(16) / 16, "same")
    return (dice.uniform(0.05, 0.15) * (smooth + (0.6 if bright else 0.1) * noise)).astype(np.float32)


def write_pairs(folder: Path, count: int = COUNT, **options: Any) -> Path:
    prompts = [f"song {number}" for number in range(count)]
    sounds = [(sound(bright=True, seed=2 * n), sound(bright=False, seed=2 * n + 1)) for n in range(count)]
    return dataset.pairs(folder, prompts, sounds, **options)


def write_contradictions(folder: Path) -> Path:
    """Whatever one prompt's pair says, another prompt's says the opposite."""
    pairs = [(sound(bright=True, seed=2 * n), sound(bright=True, seed=2 * n + 1)) for n in range(COUNT // 2)]
    both = [*pairs, *((rejected, chosen) for chosen, rejected in pairs)]
    return dataset.pairs(folder, [f"song {number}" for number in range(COUNT)], both)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codes")


SMALL = {
    "steps": 4,
    "batch": 3,
    "rank": 2,
    "evaluate_every": 2,
    "warmup_steps": 1,
    "learning_rate": 0.005,
    "samples": 0,
}


def training(data: Path, output: Path, cache: Path, method: str = "sft", **more: Any) -> Training:
    options = {
        name: more.pop(name) for name in ("on_point", "is_stopped", "checkpoint_seconds", "begins_anew") if name in more
    }
    model = more.pop("model", Checkpoint(model=NOISE))
    return Training(config(method, SMALL | more), model, data, output, cache=cache, device="cpu", **options)


def weights(folder: Path) -> str:
    return sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def told(error: pytest.ExceptionInfo[TrainingError]) -> str:
    return str(error.value)


@pytest.mark.parametrize("method", ["sft", "dpo", "taste"])
def test_the_same_data_and_seed_give_the_same_adapter_also_through_a_stop(
    method: str, data: Path, cache: Path, tmp_path: Path
) -> None:
    whole = training(data, tmp_path / "whole", cache, method).run()
    seen: list[Point] = []

    def is_stopped() -> bool:
        return bool(seen) and seen[-1].stage == "training" and seen[-1].step == 3

    stopped = training(
        data, tmp_path / "parts", cache, method, on_point=seen.append, is_stopped=is_stopped, checkpoint_seconds=0.0
    ).run()
    assert stopped.status == "stopped"
    assert (tmp_path / "parts" / FILE).exists()
    assert not (tmp_path / "parts" / WEIGHTS).exists()
    again = training(data, tmp_path / "parts", cache, method).run()
    assert whole.status == again.status
    assert again.curve == whole.curve
    assert [point["step"] for point in whole.curve] == [1, 2, 3, 4]
    assert again.sha256 == whole.sha256
    if whole.status == "completed":
        assert whole.sha256 == weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert not (tmp_path / "parts" / FILE).exists()


def test_another_seed_gives_another_adapter(data: Path, cache: Path, tmp_path: Path) -> None:
    first, second = (training(data, tmp_path / str(seed), cache, seed=seed).run() for seed in (0, 1))
    assert first.sha256 != second.sha256


def test_an_adapter_is_taken_as_it_is_and_says_what_it_came_from(data: Path, cache: Path, tmp_path: Path) -> None:
    result = training(data, tmp_path, cache, "taste").run()
    checked = adapter_files.check(tmp_path, NOISE)
    assert checked.rank == 2
    assert checked.config["base_model_name_or_path"] == NOISE.id
    kept = msgspec.json.decode((tmp_path / RESULT).read_bytes(), type=Result)
    manifest = json.loads((data / "manifest.json").read_text())
    assert kept.dataset["digest"] == manifest["digest"]
    assert kept.dataset["positions"] == manifest["positions"]
    assert kept.metrics["pair_accuracy"] > 0.8
    assert kept.metrics["held_out_gain"] > 0
    assert kept.hears[0]["words"] == "brighter"
    assert (tmp_path / "preference.safetensors").exists()
    assert json.loads((tmp_path / "preference.json").read_text())["held_out"]["share"] > 0.8
    assert result.left_out == []


def test_samples_are_of_held_out_prompts_and_one_seed_and_cost_the_adapter_nothing(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    plain = training(data, tmp_path / "plain", cache).run()
    heard = training(data, tmp_path / "heard", cache, samples=2).run()
    assert (heard.sha256, heard.curve, heard.warnings) == (plain.sha256, plain.curve, [])
    assert plain.samples == []
    assert [each.seed for each in heard.samples] == [0, 1]
    assert len({each.prompt for each in heard.samples}) == 2
    engine = MusicgenEngine.load(Checkpoint(model=NOISE), "cpu")
    adapter = Adapter(sha256=str(heard.sha256), folder=str(tmp_path / "heard"))
    for sample in heard.samples:
        assert sample.is_held_out
        assert sample.seconds == pytest.approx(SECONDS, abs=0.02)
        for file, own in ((sample.before, None), (sample.after, adapter)):
            takes = [Take(index=0, seed=sample.seed)]
            engine.admit(
                EngineRequest(id=file, prompt=sample.prompt, duration=sample.seconds, takes=takes, adapter=own)
            )
            clips: list[Clip] = []
            while not clips:
                clips = [each for each in engine.advance() if isinstance(each, Clip)]
            alone = master(clips[0].pcm, NOISE.sample_rate, {}).pcm_sha256
            assert pcm_sha256((tmp_path / "heard" / file).read_bytes()) == alone
        assert (tmp_path / "heard" / sample.before).read_bytes() != (tmp_path / "heard" / sample.after).read_bytes()


def test_a_stop_while_samples_are_made_learns_nothing_again(data: Path, cache: Path, tmp_path: Path) -> None:
    seen: list[Point] = []

    def is_stopped() -> bool:
        return bool(seen) and seen[-1].stage.startswith("samples")

    stopped = training(data, tmp_path, cache, samples=1, on_point=seen.append, is_stopped=is_stopped).run()
    assert (stopped.status, stopped.sha256) == ("stopped", None)
    assert standing_of((tmp_path / FILE).read_bytes()).step == 4
    seen.clear()
    again = training(data, tmp_path, cache, samples=1, on_point=seen.append).run()
    assert (again.status, len(again.samples)) == ("completed", 1)
    assert "training" not in {point.stage for point in seen}
    assert (again.sha256, again.curve) == (weights(tmp_path), stopped.curve)
    assert not (tmp_path / FILE).exists()


def test_samples_that_cannot_be_made_leave_the_adapter_and_a_warning(data: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("in the way")
    result = training(data, tmp_path, cache, samples=1).run()
    assert (result.status, result.samples) == ("completed", [])
    assert result.sha256 == weights(tmp_path)
    assert "no samples of it" in result.warnings[-1]


def test_what_is_finished_is_not_done_again(data: Path, cache: Path, tmp_path: Path) -> None:
    first = training(data, tmp_path, cache).run()
    before = (tmp_path / WEIGHTS).stat().st_mtime_ns
    assert training(data, tmp_path, cache).run() == first
    assert (tmp_path / WEIGHTS).stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match="other data, options, or another base model"):
        training(data, tmp_path, cache, seed=9).run()


def test_a_taste_that_cannot_be_heard_makes_no_adapter(cache: Path, tmp_path: Path) -> None:
    folder = write_contradictions(tmp_path / "data")
    result = training(folder, tmp_path / "out", cache, "taste").run()
    assert result.status == "nothing_learnt"
    assert "held-out pairs" in result.message
    assert result.metrics["pair_accuracy_chance"] > 0.05
    assert not (tmp_path / "out" / WEIGHTS).exists()
    assert training(folder, tmp_path / "out", cache, "taste").run() == result


def test_held_out_prompts_are_not_learnt_from(cache: Path, tmp_path: Path) -> None:
    """A test split's sound can be anything: the steps are the same, only what is measured differs."""
    sums = []
    for number, flipped in enumerate((False, True)):
        folder = write_pairs(tmp_path / f"data{number}", 20)
        held = [(sound(bright=not flipped, seed=90 + n), sound(bright=flipped, seed=95 + n)) for n in range(4)]
        dataset.pairs(folder, [f"other {n}" for n in range(4)], held, split="test")
        rows = (folder / "data/test/metadata.jsonl").read_text().replace('"prompt_id": "p', '"prompt_id": "held-')
        (folder / "data/test/metadata.jsonl").write_text(rows)
        result = training(folder, tmp_path / f"out{number}", cache, "dpo", evaluate_every=4).run()
        assert result.left_out == []
        sums.append(result.curve[-1])
    assert sums[0]["loss"] == sums[1]["loss"]
    assert sums[0]["held_out_loss"] != sums[1]["held_out_loss"]


def test_a_training_that_is_never_better_than_the_base_ends_early_without_an_adapter(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sft, "value", lambda *_: (0.0,))
    result = training(data, tmp_path, cache, steps=30, evaluate_every=1, patience=2).run()
    assert result.status == "nothing_learnt"
    assert "no evaluation was better than the base model's" in result.message
    assert len(result.curve) == 2
    assert not (tmp_path / WEIGHTS).exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, norms = torch.nn.utils.clip_grad_norm_, []

    def norm(*arguments: Any, **options: Any) -> Any:
        norms.append(1)
        found = measured(*arguments, **options)
        return found * float("nan") if len(norms) == 3 else found

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    with pytest.raises(TrainingError) as error:
        training(data, tmp_path, cache).run()
    assert "step 3 is not finite" in told(error)
    assert "smaller learning rate than 0.005" in told(error)
    kept = load(tmp_path)
    assert kept is not None
    assert kept.standing.step == 2
    assert all(tensor.isfinite().all() for tensor in kept.tensors.values())
    assert not (tmp_path / WEIGHTS).exists()


def test_a_full_disk_costs_no_checkpoint_that_was_there(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, calls = Path.replace, []

    def full(self: Path, target: Any) -> Any:
        if self.name == f"{FILE}.part":
            calls.append(1)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
        return saved(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TrainingError, match="No space left on device") as error:
        training(data, tmp_path, cache, checkpoint_seconds=0.0).run()
    assert error.value.transient
    assert standing_of((tmp_path / FILE).read_bytes()).step == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    monkeypatch.undo()
    assert training(data, tmp_path, cache).run().status == "completed"


def test_a_damaged_checkpoint_is_named(data: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(TrainingError, match=r"is damaged.*Delete it to begin again"):
        training(data, tmp_path, cache).run()
    assert training(data, tmp_path, cache, begins_anew=True).run().status == "completed"


def test_a_training_that_was_begun_with_other_data_is_begun_anew_where_nobody_can_choose_a_folder(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    """Between two attempts a record may be erased from the dataset, or the studio made newer."""
    whole = training(data, tmp_path / "whole", cache, seed=9).run()
    seen: list[Point] = []
    stops: dict[str, Any] = {"on_point": seen.append, "is_stopped": lambda: any(point.figures for point in seen)}
    begun = training(data, tmp_path / "out", cache, **stops).run()
    assert begun.status == "stopped"
    assert (tmp_path / "out" / FILE).exists()
    with pytest.raises(TrainingError, match="other data, options, or another base model"):
        training(data, tmp_path / "out", cache, seed=9).run()
    again = training(data, tmp_path / "out", cache, seed=9, begins_anew=True).run()
    assert (again.status, again.sha256, again.curve) == ("completed", whole.sha256, whole.curve)


def test_what_the_disk_does_not_give_is_the_machines_fault(data: Path, cache: Path, tmp_path: Path) -> None:
    stopped = training(data, tmp_path, cache, is_stopped=(tmp_path / FILE).exists, checkpoint_seconds=0.0)
    assert stopped.run().status == "stopped"
    examples = read(data)
    with too_many_files():
        for reading in (
            lambda: load(tmp_path),
            lambda: read(data),
            lambda: hear(examples.folder, examples.clips[0], NOISE.sample_rate, NOISE.channels),
        ):
            with pytest.raises(TrainingError, match=r"cannot be read: .* Mend the disk and try again") as error:
                reading()
            assert error.value.transient
    assert training(data, tmp_path, cache).run().status == "completed"


def test_a_base_model_that_cannot_be_loaded_is_the_machines_fault(tmp_path: Path) -> None:
    for model, device in ((Checkpoint(model=NOISE, folder=tmp_path), "cpu"), (Checkpoint(model=NOISE), "cuda:99")):
        with pytest.raises(TrainingError, match=f"Model {NOISE.id} cannot be loaded: ") as error:
            Network(model, device)
        assert error.value.transient


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "There is no manifest.json"),
    "a manifest that is no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "is no manifest"),
    "another format": (
        lambda folder: (folder / "manifest.json").write_text('{"format": "text2song-dataset/9", "type": "x"}'),
        "this version reads 'text2song-dataset/1'",
    ),
    "no rows": (lambda folder: (folder / "data/train/metadata.jsonl").write_text(""), "has no rows"),
    "no file of rows": (lambda folder: (folder / "data/train/metadata.jsonl").unlink(), "Export the dataset again"),
    "rows of something else": (
        lambda folder: (folder / "data/train/metadata.jsonl").write_text('{"prompt": 7}\n[]\n\xff\n'),
        "train line 1: Expected `str`, got `int`",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_folder_that_is_no_dataset_is_refused_by_name(fault: str, tmp_path: Path, cache: Path) -> None:
    damage, message = BAD[fault]
    folder = write_pairs(tmp_path / "data", 2)
    damage(folder)
    with pytest.raises(TrainingError) as error:
        training(folder, tmp_path / "out", cache).run()
    assert message in told(error)


@pytest.mark.parametrize(("method", "least"), [("sft", 8), ("dpo", 16), ("taste", 24)])
def test_too_little_data_is_refused_with_how_much_is_needed(
    method: str, least: int, tmp_path: Path, cache: Path
) -> None:
    folder = write_pairs(tmp_path / "data", 5)
    with pytest.raises(TrainingError) as error:
        training(folder, tmp_path / "out", cache, method).run()
    assert f"needs at least {least}" in told(error)
    assert "the dataset has 5" in told(error)


def test_a_one_sided_dataset_is_refused(tmp_path: Path, cache: Path) -> None:
    """All rated badly, and all rated alike, so that nothing is better than anything."""
    names = [f"audio/{number}.flac" for number in range(30)]
    sounds = {name: sound(bright=True, seed=number) for number, name in enumerate(names)}
    rows = [
        {"file_name": name, "prompt": "a", "prompt_id": "p", "model_id": NOISE.id, "rating_mean": 2.0} for name in names
    ]
    folder = dataset.write(tmp_path / "data", rows, sounds, type_="supervised")
    for method, what in (("sft", "rated 4 or more"), ("taste", "of which one was preferred")):
        with pytest.raises(TrainingError) as error:
            training(folder, tmp_path / "out", cache, method).run()
        assert what in told(error)
        assert "the dataset has 0, in 30 row(s)" in told(error)


def test_ratings_are_pairs_too(tmp_path: Path, cache: Path) -> None:
    rows, sounds = [], {}
    for number in range(COUNT):
        for side, rating in (("a", 4.5), ("b", 2.0)):
            name = f"audio/{number}{side}.flac"
            sounds[name] = sound(bright=side == "a", seed=2 * number + (side == "b"))
            rows.append({"file_name": name, "prompt": f"song {number}", "model_id": NOISE.id, "rating_mean": rating})
    folder = dataset.write(tmp_path / "data", rows, sounds, type_="supervised")
    assert training(folder, tmp_path / "out", cache, "taste").run().status == "completed"


def test_conflicting_preferences_are_set_off_and_named(tmp_path: Path, cache: Path) -> None:
    folder = write_pairs(tmp_path / "data", 20)
    path = folder / "data/train/metadata.jsonl"
    against = dataset.preference(0, "audio/0-b.flac", "audio/0-a.flac", "song 0")
    path.write_text(path.read_text() + json.dumps(against) + "\n")
    result = training(folder, tmp_path / "out", cache, "dpo").run()
    assert result.left_out == ["audio/0-b.flac and audio/0-a.flac are preferred to each other by as many"]


def test_damaged_and_missing_audio_is_named_and_left_out(tmp_path: Path, cache: Path) -> None:
    folder = write_pairs(tmp_path / "data", 20)
    audio = folder / "data/train/audio"
    (audio / "0-a.flac").unlink()
    whole = (audio / "1-a.flac").read_bytes()
    (audio / "1-a.flac").write_bytes(whole[: len(whole) // 2])
    path = folder / "data/train/metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["chosen_file_name"] = "../../../secret.flac"
    rows[3]["chosen_file_name"] = "audio/3-b.flac"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = training(folder, tmp_path / "out", cache, "dpo").run()
    said = "\n".join(result.left_out)
    assert "data/train/audio/0-a.flac is missing" in said
    assert "data/train/audio/1-a.flac is damaged: its SHA-256 is not the one of the manifest" in said
    assert "'../../../secret.flac' leads out of the dataset's folder" in said
    assert "audio/3-b.flac is preferred to its own sound" in said
    for number in range(12):
        (audio / f"{number}-b.flac").unlink(missing_ok=True)
    with pytest.raises(TrainingError, match="needs at least 16"):
        training(folder, tmp_path / "out2", cache, "dpo").run()


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, cache: Path) -> None:
    folder = write_pairs(tmp_path / "data", 20)
    audio = folder / "data/train/audio"
    (audio / "0-a.flac").rename(tmp_path / "elsewhere.flac")
    (audio / "0-a.flac").symlink_to(tmp_path / "elsewhere.flac")
    result = training(folder, tmp_path / "out", cache, "dpo").run()
    assert result.left_out == ["data/train/audio/0-a.flac leads out of the dataset's folder"]


def test_clips_of_another_model_are_refused(tmp_path: Path, cache: Path) -> None:
    folder = write_pairs(tmp_path / "data", 20, model=NANO.id)
    with pytest.raises(TrainingError) as error:
        training(folder, tmp_path / "out", cache).run()
    assert f"has clips of {NANO.id}, but the base model is {NOISE.id}" in told(error)
    assert f"--base-model {NANO.id}" in told(error)


def test_a_checkpoint_of_another_revision_is_not_gone_on_from(data: Path, cache: Path, tmp_path: Path) -> None:
    stopped = training(data, tmp_path, cache, is_stopped=(tmp_path / FILE).exists, checkpoint_seconds=0.0)
    assert stopped.run().status == "stopped"
    other = Checkpoint(model=msgspec.structs.replace(NOISE, revision="0123abc"))
    with pytest.raises(TrainingError, match="another base model"):
        training(data, tmp_path, cache, model=other).run()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 to 100000"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"rank": 129}, "rank is 129; it must be 1 to 128"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"steps": "many"}, "Expected `int`"),
    ],
)
def test_options_out_of_bounds_are_refused_with_their_limits(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as error:
        config("taste", given)
    assert message in told(error)


def test_codes_are_kept_within_their_limit_and_damage_costs_time_alone(tmp_path: Path) -> None:
    asked: list[int] = []

    def encode(pcm: torch.Tensor) -> torch.Tensor:
        asked.append(pcm.shape[1])
        return torch.zeros(4, pcm.shape[1] // 10, dtype=torch.long)

    codes = Codes(tmp_path, "model", limit=3 * 400)
    clips = [np.full((1, 100 + number), 0.5, np.float32) for number in range(5)]
    for clip in clips:
        codes.get(clip, encode)
        codes.get(clip, encode)
    assert asked == [100, 101, 102, 103, 104]
    killed, busy = tmp_path / "killed.part", tmp_path / "busy.part"
    for part in (killed, busy):
        part.touch()
    os.utime(killed, (0, 0))
    codes.trim()
    assert (killed.exists(), busy.exists()) == (False, True)
    busy.unlink()
    assert 1 <= len(list(tmp_path.iterdir())) < 5
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1200
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert codes.get(clips[-1], encode).shape == (4, 10)
    (tmp_path / "file").touch()
    assert Codes(tmp_path / "file", "model").get(clips[0], encode).shape == (4, 10)


def test_a_training_that_is_stopped_while_its_preference_model_is_fitted_ends_there(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    seen: list[Point] = []

    def is_stopped() -> bool:
        return [point.stage for point in seen].count("fitting the preference model") == 3

    with pytest.raises(Stopped):
        training(data, tmp_path, cache, "taste", on_point=seen.append, is_stopped=is_stopped).run()
    assert [point.step for point in seen if point.stage == "fitting the preference model"] == [0, 0, 0]


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(data: Path, cache: Path, tmp_path: Path) -> None:
    whole = training(data, tmp_path / "whole", cache, steps=8).run()
    order = {
        "method": "sft",
        "config": {**SMALL, "steps": 8},
        "data": str(data),
        "output": str(tmp_path / "killed"),
        "cache": str(cache),
        "device": "cpu",
        "checkpoint_seconds": 0.0,
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    command = [sys.executable, "-m", "workers.training.process", str(tmp_path / "order.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if json.loads(line) == {"type": "Kept", "step": 3}:
                killed.send_signal(signal.SIGKILL)
                break
        killed.stdout.read()
    assert killed.returncode == -signal.SIGKILL
    kept = load(tmp_path / "killed")
    assert kept is not None
    assert 3 <= kept.standing.step < 8
    again = training(data, tmp_path / "killed", cache, steps=8).run()
    assert (again.sha256, again.curve) == (whole.sha256, whole.curve)
