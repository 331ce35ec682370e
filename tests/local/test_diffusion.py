"""What all engines of diffusion models have in common, shown with Stable Audio Open, whose pipeline is the plainest."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from domain.events.jobs import Sampling
from tests import diffusion
from tests.local.engine import updates
from workers.engine import Clip, EngineError, EngineRequest, Failure, Opening, Progress, Update
from workers.engine_process import EngineProcess
from workers.engines import loading, pipelines
from workers.engines.checkpoints import resolve
from workers.engines.diffusion.engine import DiffusionEngine

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS: Final = {"num_inference_steps": 4}


def request(*seeds: int, **fields: Any) -> EngineRequest:
    return diffusion.request(*seeds, **{"parameters": STEPS, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffusion.saved(diffusion.stable_audio(), tmp_path_factory.mktemp("pipelines") / "stable")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return diffusion.pipeline(folder)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> DiffusionEngine:
    return DiffusionEngine.load(resolve(str(folder)), "cpu")


@pytest.fixture
def engine(loaded: DiffusionEngine) -> Iterator[DiffusionEngine]:
    yield loaded
    loaded.cancel("r")


@pytest.mark.parametrize(("guidance", "without"), [(7.0, "drums"), (7.0, ""), (1.0, "")])
def test_takes_are_those_of_the_pipeline_itself(
    engine: DiffusionEngine, pipeline: Any, guidance: float, without: str
) -> None:
    made = diffusion.sing(
        engine,
        request(
            5,
            6,
            duration=1.3,
            sampling=Sampling(guidance_scale=guidance),
            parameters=STEPS | {"negative_prompt": without},
        ),
    )
    for seed, pcm in zip((5, 6), made, strict=True):
        expected = pipeline(
            "slow dub",
            audio_end_in_s=1.3,
            num_inference_steps=4,
            guidance_scale=guidance,
            negative_prompt=without or None,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).audios[0]
        assert np.array_equal(pcm, diffusion.leveled(expected.numpy()))
    assert np.abs(made[0] - made[1]).max() > 0.01


@pytest.mark.parametrize("duration", [0.5, 0.517, 1.00003, 2.9999])
def test_a_clip_has_exactly_the_length_that_was_asked_for(engine: DiffusionEngine, duration: float) -> None:
    (pcm,) = diffusion.sing(engine, request(duration=duration))
    assert pcm.shape == (2, round(duration * diffusion.RATE))
    assert (pcm.dtype, np.abs(pcm).max() <= 1) == (np.float32, True)


def test_progress_is_told_at_each_step_of_all_takes_and_only_goes_forward(engine: DiffusionEngine) -> None:
    seen = list(updates(engine, request(5, 6)))
    told = [update for update in seen if isinstance(update, Progress)]
    fractions = [update.fraction for update in told]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) == 1 + 2 * 5
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert [update.stage for update in told[:6]] == ["encoding", *["denoising"] * 3, "rendering", "rendering"]
    assert told[1].eta_seconds is not None


def calls() -> int:
    """How many are at work; libraries have threads of their own, which come and go."""
    return [thread.name for thread in threading.enumerate()].count("text2song-pipeline")


def test_a_cancelled_request_ends_between_two_steps_and_leaves_no_trace(engine: DiffusionEngine) -> None:
    (undisturbed,) = diffusion.sing(engine, request(5))
    engine.admit(request(9, parameters={"num_inference_steps": 1000}))
    engine.admit(replace(request(5), id="next"))
    for _ in range(3):
        engine.advance()
    assert calls() == 1
    engine.cancel("another")
    engine.cancel("r")
    made: list[Update] = []
    while not isinstance(made[-1] if made else None, Clip):
        made += engine.advance()
    assert {update.request_id for update in made} == {"next"}
    assert np.array_equal(made[-1].pcm, undisturbed)  # type: ignore[union-attr]
    assert calls() == 0
    assert engine.advance() == []


def test_an_engine_that_is_at_a_long_step_says_that_it_lives(folder: Path) -> None:
    """What comes after a request that was dropped waits until its step is done."""
    engine = DiffusionEngine.load(resolve(str(folder)), "cpu")
    (undisturbed,) = diffusion.sing(engine, request(5))
    engine._beat = 0.01
    go_on = threading.Event()

    def wait(*_: Any) -> None:
        assert go_on.wait(60)

    hook = network(engine, "transformer").register_forward_pre_hook(wait)
    engine.admit(request(1))
    seen = [*engine.advance(), *engine.advance(), *engine.advance()]
    assert [update.stage for update in seen if isinstance(update, Progress)] == ["encoding"] * 3
    engine.cancel("r")
    engine.admit(replace(request(5), id="next"))
    waiting = [*engine.advance(), *engine.advance()]
    assert [(update.request_id, update.stage) for update in waiting if isinstance(update, Progress)] == [
        ("next", "waiting"),
        ("next", "waiting"),
    ]
    go_on.set()
    made: list[Update] = []
    while not isinstance(made[-1] if made else None, Clip):
        made += engine.advance()
    hook.remove()
    assert {update.request_id for update in made} == {"next"}
    assert np.array_equal(made[-1].pcm, undisturbed)  # type: ignore[union-attr]


def test_requests_are_carried_out_in_the_order_in_which_they_came(engine: DiffusionEngine) -> None:
    engine.admit(replace(request(1, 2), id="one"))
    engine.admit(replace(request(3), id="two"))
    clips: list[Clip] = []
    while len(clips) < 3:
        clips += [update for update in engine.advance() if isinstance(update, Clip)]
    assert [(clip.request_id, clip.index, clip.seed) for clip in clips] == [("one", 0, 1), ("one", 1, 2), ("two", 0, 3)]


def test_what_the_model_cannot_do_is_refused_at_once(engine: DiffusionEngine) -> None:
    opening = Opening(pcm=np.zeros((2, 4000), np.float32), kept=2000)
    for fields, said in (
        ({"duration": 4.0}, "The duration is 4 s; .* makes clips of up to 3 s"),
        ({"opening": opening}, "cannot continue other audio"),
        ({"melody": (0, 4, 7)}, "follows no melody"),
        ({"is_judged": True}, "picks no best of several"),
        ({"lyrics": "la la"}, "sings no lyrics"),
        ({"parameters": {"alpha": 0.5}}, "`alpha`.* Its parameters are num_inference_steps, negative_prompt."),
        ({"parameters": {"num_inference_steps": 0}}, ">= 1"),
        ({"takes": []}, "no takes"),
    ):
        with pytest.raises(EngineError, match=said):
            engine.admit(replace(request(1), **fields))
    engine.admit(request(1))
    with pytest.raises(EngineError, match="already running"):
        engine.admit(request(2))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "cpu ran out of memory on a clip of 1 s."),
        (ZeroDivisionError("by zero"), "Generation failed: by zero"),
    ],
)
def test_a_step_that_fails_ends_the_request_alone(engine: DiffusionEngine, error: Exception, said: str) -> None:
    with failing(engine, error):
        *_, last = updates(engine, request(1))
    assert isinstance(last, Failure)
    assert (last.error, last.transient) == (said, True)
    assert len(diffusion.sing(engine, request(1))) == 1


def test_a_fault_of_the_device_ends_the_process(folder: Path) -> None:
    engine = DiffusionEngine.load(resolve(str(folder)), "cpu")
    with failing(engine, torch.AcceleratorError("illegal memory access")), pytest.raises(torch.AcceleratorError):
        list(updates(engine, request(1)))


def test_numbers_that_are_not_finite_are_no_fault_of_the_request(folder: Path) -> None:
    engine = DiffusionEngine.load(resolve(str(folder)), "cpu")
    network(engine, "vae").decoder.conv2.weight_g.data.fill_(torch.nan)
    *_, last = updates(engine, request(1))
    assert isinstance(last, Failure)
    assert (last.error, last.transient) == ("The model's output is not finite; its weights may be damaged.", True)


def network(engine: DiffusionEngine, part: str) -> Any:
    recipe: Any = engine._recipe
    return recipe._pipeline.components[part]


@contextmanager
def failing(engine: DiffusionEngine, error: Exception) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise error

    hook = network(engine, "transformer").register_forward_pre_hook(fail)
    yield
    hook.remove()


def test_a_folder_says_what_it_holds(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    model = checkpoint.model
    assert (model.family, model.sample_rate, model.channels, model.max_duration) == ("stable-audio", 4000, 2, 3.0)
    assert model.revision is not None
    assert model.id == f"local/stable@{model.revision[:12]}"
    assert checkpoint.folder == folder


def damaged(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to / "damaged")


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_other_weights_or_words_make_another_model(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    ids = {resolve(str(copy)).model.revision}
    changed(copy / "vae" / "config.json", sampling_rate=8000)
    ids.add(resolve(str(copy)).model.revision)
    changed(copy / "tokenizer" / "tokenizer.json", added_tokens=[])
    ids.add(resolve(str(copy)).model.revision)
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model_index.json", b"{", "broken model_index.json"),
        ("model_index.json", b'{"_class_name": "WanPipeline"}', "is a WanPipeline of diffusers; those that can be run"),
        ("vae/config.json", None, "no config.json in .*vae"),
        ("vae/config.json", b'{"sampling_rate": 0}', "broken config.json in .*vae"),
        ("transformer/diffusion_pytorch_model.safetensors", None, "no weights: .* is missing in .*transformer"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(
    folder: Path, tmp_path: Path, file: str, content: bytes | None, said: str
) -> None:
    copy = damaged(folder, tmp_path)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(EngineError, match=said):
        resolve(str(copy))


def test_a_folder_that_names_other_libraries_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    changed(copy / "model_index.json", scheduler=["antigravity", "Scheduler"])
    with pytest.raises(EngineError, match=r"its scheduler is said to come from \['antigravity'\]"):
        resolve(str(copy))


def test_damaged_weights_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"Model local/damaged@[0-9a-f]{12} cannot be loaded: "):
        DiffusionEngine.load(resolve(str(copy)), "cpu")


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_weights_that_lack_something_are_refused(folder: Path, tmp_path: Path, part: str) -> None:
    copy = damaged(folder, tmp_path)
    [weights] = (copy / part).glob("*.safetensors")
    state = load_file(weights)
    del state[max(state)]
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(EngineError, match=f"the weights of its {part} lack "):
        DiffusionEngine.load(resolve(str(copy)), "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "banana"])
def test_a_device_that_is_not_there_is_refused_by_name(folder: Path, device: str) -> None:
    with pytest.raises(EngineError, match=f"Device {device} cannot be used"):
        DiffusionEngine.load(resolve(str(folder)), device)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = resolve(str(folder))
    monkeypatch.setattr(loading, "NEEDED", ("diffusers", "diffusers_of_a_distant_day"))
    with pytest.raises(
        EngineError, match=r"takes further packages. .*: make install, .*: pip install '\.\[diffusion\]'"
    ):
        loading.load(checkpoint, "cpu")


async def test_in_another_process_a_request_ends_when_nobody_waits_for_it_any_more(
    folder: Path, engine: DiffusionEngine
) -> None:
    process = EngineProcess(loading.load, resolve(str(folder)), "cpu")
    await process.start()
    try:
        assert process.capacity == 1
        async with aclosing(process.generate(request(9, parameters={"num_inference_steps": 1000}))) as updates:
            told = [await anext(updates) for _ in range(3)]
        assert all(isinstance(update, Progress) and update.fraction < 0.1 for update in told)
        made = [update.pcm async for update in process.generate(request(5)) if isinstance(update, Clip)]
        await process.check()
    finally:
        await process.stop()
    # It has another number of threads.
    assert np.allclose(made, diffusion.sing(engine, request(5)), atol=1e-4)


def test_what_the_registry_allows_is_not_gone_beyond(folder: Path) -> None:
    found = pipelines.read("stable", folder, "")
    known = replace(resolve(str(folder)).model, max_duration=2.0, max_extended_duration=2.0)
    assert (found.model("stable", None).max_extended_duration, found.model("stable", known).max_duration) == (3.0, 2.0)


def test_a_studio_makes_music_with_it(folder: Path, tmp_path: Path) -> None:
    facts = diffusion.heard(folder, tmp_path, duration=1.3)
    assert facts == {"sample_rate": 4000, "channels": 2, "frames": 5200}
