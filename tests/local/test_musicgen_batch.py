"""Many takes in one batch: none may hear its company."""

import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from transformers import MusicgenForConditionalGeneration

from domain.events.jobs import Sampling
from domain.lora import CONFIG
from domain.models import NANO, NOISE
from tests.local.adapters import adapted, lora
from workers.engine import Adapter, Clip, EngineError, EngineRequest, Failure, Progress, Take, Update
from workers.engines import noise
from workers.engines.checkpoints import resolve
from workers.engines.musicgen import crew
from workers.engines.musicgen.engine import STEPS_PER_ADVANCE, MusicgenEngine, read

pytestmark = pytest.mark.usefixtures("one_thread")

CPU: Final = torch.device("cpu")
PROMPTS: Final = ("slow dub techno with a warm bass", "a piano", "loud, 130 bpm, brass")
GREEDY: Final = Sampling(temperature=0.0)

Audio = NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def side_by_side() -> Iterator[None]:
    """Batches are made in parts where there is more than one core, as small as they are here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(crew, "ROWS_EACH", 1)
        yield


def engine(rows: int = 4, *, channels: int = 1) -> MusicgenEngine:
    network, tokenizer = noise.build(channels=channels)
    return MusicgenEngine(network, tokenizer, NOISE, CPU, rows)


@pytest.fixture(scope="module")
def loaded() -> MusicgenEngine:
    return engine()


def request(
    ident: str, *seeds: int, duration: float = 0.5, prompt: str = PROMPTS[0], sampling: Sampling | None = None
) -> EngineRequest:
    takes = [Take(index, seed) for index, seed in enumerate(seeds)]
    return EngineRequest(id=ident, prompt=prompt, duration=duration, takes=takes, sampling=sampling or Sampling())


def finish(engine: MusicgenEngine, owed: int) -> Iterator[Update]:
    while owed:
        for update in engine.advance():
            owed -= isinstance(update, Clip)
            assert not isinstance(update, Failure), update.error
            yield update


def sing(engine: MusicgenEngine, *requests: EngineRequest) -> dict[tuple[str, int], Audio]:
    for each in requests:
        engine.admit(each)
    owed = sum(len(each.takes) for each in requests)
    clips = (update for update in finish(engine, owed) if isinstance(update, Clip))
    return {(clip.request_id, clip.index): clip.pcm for clip in clips}


def generated(network: Any, tokenizer: Any, request: EngineRequest) -> Audio:
    """The same by transformers' generate(), greedy."""
    frames = math.ceil(request.duration * network.config.audio_encoder.frame_rate)
    codebooks = network.config.decoder.num_codebooks // network.config.decoder.audio_channels
    with torch.inference_mode():
        audio = network.generate(
            **tokenizer(request.prompt, return_tensors="pt"),
            do_sample=False,
            guidance_scale=request.sampling.guidance_scale,
            max_new_tokens=frames + codebooks - 1,
        )
    found: Audio = audio[0].numpy()
    peak = float(np.abs(found).max())
    return found / np.float32(max(1.0, peak))


def shaped(hidden: int, layers: int, heads: int, text: int, channels: int) -> tuple[Any, Any]:
    """A model of random weights whose text encoder is wider or narrower than its decoder."""
    network, tokenizer = noise.build(channels=channels)
    config: Any = network.config
    config.decoder.update({"hidden_size": hidden, "ffn_dim": 3 * hidden, "num_hidden_layers": layers})
    config.decoder.num_attention_heads = heads
    config.text_encoder.d_model = text
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(hidden)
        made: Any = MusicgenForConditionalGeneration(config)
        for head in made.decoder.lm_heads:
            head.weight.mul_(20)
        for layer in made.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    made.generation_config.update(pad_token_id=noise.CODES, bos_token_id=noise.CODES)
    made.generation_config.decoder_start_token_id = noise.CODES
    return made.eval(), tokenizer


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "text", "channels"), [(64, 2, 4, 32, 1), (64, 2, 4, 32, 2), (96, 3, 6, 96, 1)]
)
def test_greedy_takes_of_mixed_lengths_and_guidance_are_those_of_generate(
    hidden: int, layers: int, heads: int, text: int, channels: int
) -> None:
    """One other token would differ by far more than rounding."""
    network, tokenizer = shaped(hidden, layers, heads, text, channels)
    requests = [
        request(
            f"{number}", 0, duration=duration, prompt=PROMPTS[number % 3], sampling=replace(GREEDY, guidance_scale=g)
        )
        for number, (duration, g) in enumerate([(1.0, 3.0), (0.5, 1.0), (2.5, 5.0), (0.7, 1.0), (1.3, 2.0)])
    ]
    engine = MusicgenEngine(copy.deepcopy(network), tokenizer, replace(NOISE, channels=channels), CPU, 4)
    made = sing(engine, *requests)
    for each in requests:
        expected = generated(network, tokenizer, each)
        assert np.abs(made[each.id, 0] - expected[:, : made[each.id, 0].shape[1]]).max() < 1e-5


def test_greedy_nano_is_that_of_generate() -> None:
    folder = resolve(NANO.id).folder
    assert folder is not None
    network, tokenizer = read(folder)
    requests = [
        request(f"{number}", 0, duration=duration, prompt=prompt, sampling=GREEDY)
        for number, (duration, prompt) in enumerate([(2.0, "jazz, 100 bpm, piano"), (1.0, "rock, with drums")])
    ]
    made = sing(MusicgenEngine(copy.deepcopy(network), tokenizer, NANO, CPU, 2), *requests)
    for each in requests:
        assert np.abs(made[each.id, 0] - generated(network, tokenizer, each)).max() < 1e-4


@pytest.mark.parametrize("channels", [1, 2])
def test_greedy_adapters_and_the_base_in_one_batch_are_those_of_peft(channels: int, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": 8, "use_rslora": True, "targets": ["q_proj", "v_proj"]},
        {"rank": 6, "rank_pattern": {"fc1": 3, "layers.1.self_attn.k_proj": 9}, "alpha_pattern": {"q_proj": 20}},
    ]
    networks = [adapted(tmp_path / f"{n}", n, channels=channels, **kind) for n, kind in enumerate(kinds)]
    adapters: list[Adapter | None] = [Adapter(sha256=f"{n}", folder=str(tmp_path / f"{n}")) for n in range(3)]
    requests = [
        replace(request(f"{n}", 0, duration=1.0 + n / 5, sampling=GREEDY), adapter=adapter)
        for n, adapter in enumerate([*adapters, None])
    ]
    base, tokenizer = noise.build(channels=channels)
    made = sing(engine(channels=channels), *requests)
    for each, network in zip(requests, [*networks, base], strict=True):
        assert np.abs(made[each.id, 0] - generated(network, tokenizer, each)).max() < 1e-5
    assert len({pcm[:, :32000].tobytes() for pcm in made.values()}) == len(made)


def test_an_adapters_scale_is_its_weight(loaded: MusicgenEngine, tmp_path: Path) -> None:
    adapter = lora(tmp_path, 0, rank=4)
    plain = request("plain", 1, sampling=GREEDY)
    scaled = [replace(plain, id=f"{scale}", adapter=replace(adapter, scale=scale)) for scale in (0.0, 0.5, 1.0)]
    made = sing(loaded, plain, *scaled)
    assert np.array_equal(made["plain", 0], made["0.0", 0])
    assert len({pcm.tobytes() for pcm in made.values()}) == 3


@pytest.mark.parametrize("is_there", [True, False])
def test_an_adapter_that_cannot_be_used_fails_its_request_alone(
    is_there: bool, loaded: MusicgenEngine, tmp_path: Path
) -> None:
    """Files that are damaged stay so; what the disk does not give may come with another try."""
    if is_there:
        (tmp_path / CONFIG).write_bytes(b"{")
    loaded.admit(replace(request("bad", 1, 2), adapter=Adapter(sha256="none", folder=str(tmp_path))))
    loaded.admit(request("good", 3))
    first = loaded.advance()
    assert [update.request_id for update in first if isinstance(update, Failure)] == ["bad"]
    assert next(update for update in first if isinstance(update, Failure)).transient is not is_there
    clips = [update for update in finish(loaded, 1) if isinstance(update, Clip)]
    assert [clip.request_id for clip in clips] == ["good"]


def test_adapters_that_do_not_fit_side_by_side_wait_for_each_other(tmp_path: Path) -> None:
    adapters = [lora(tmp_path / f"{seed}", seed, rank=80) for seed in range(3)]
    requests = [replace(request(adapter.sha256, 1), adapter=adapter) for adapter in adapters]
    together = sing(engine(), *requests)
    for each in requests:
        assert np.array_equal(sing(engine(1), each)[each.id, 0], together[each.id, 0])


def test_a_seed_gives_the_same_audio_alone_together_late_and_after_a_restart(tmp_path: Path) -> None:
    adapter = lora(tmp_path, 0, rank=4)
    kinds = [
        Sampling(),
        Sampling(guidance_scale=1.0),
        Sampling(top_p=0.8, top_k=0),
        Sampling(temperature=0.7, top_k=20),
    ]
    requests = [
        request(f"{n}", n, duration=0.5 + n / 10, prompt=PROMPTS[n % 3], sampling=kinds[n % 4]) for n in range(7)
    ]
    requests = [replace(each, adapter=adapter) if each.id in "356" else each for each in requests]
    first = engine(3)
    together = sing(first, *requests)
    # Later, while others are under way, in another order.
    first.admit(request("long", 99, duration=3.0))
    for _ in range(3):
        first.advance()
    late: dict[str, Audio] = {}
    for each in reversed(requests):
        first.admit(each)
    for update in finish(first, 8):
        if isinstance(update, Clip):
            late[update.request_id] = update.pcm
    second = engine(3)
    for each in requests:
        alone = sing(second, each)[each.id, 0]
        assert np.array_equal(alone, together[each.id, 0])
        assert np.array_equal(alone, late[each.id])


def test_takes_spread_over_free_rows_and_later_requests_wait_their_turn(loaded: MusicgenEngine) -> None:
    order = [
        clip
        for clip, _ in sing(loaded, request("a", *range(6)), request("b", 1, duration=0.6), request("c", 1)).items()
    ]
    assert [clip for clip in order if clip[0] == "a"] == [("a", index) for index in range(6)]
    assert order[:4] == [("a", 0), ("a", 1), ("a", 2), ("a", 3)]
    loaded.admit(request("a", *range(6), duration=3.0))
    loaded.admit(request("b", 1))
    loaded.advance()
    assert len(loaded._decoding) == loaded.capacity
    assert {take.owner.request.id for take in loaded._decoding} == {"a"}
    loaded.cancel("a")
    assert [update.request_id for update in finish(loaded, 1) if isinstance(update, Clip)] == ["b"]
    assert loaded.advance() == []


def test_every_request_under_way_tells_of_its_progress_each_time(loaded: MusicgenEngine) -> None:
    assert STEPS_PER_ADVANCE <= 25
    for name in "ab":
        loaded.admit(request(name, 1, duration=2.0))
    for _ in range(5):
        told = {update.request_id for update in loaded.advance() if isinstance(update, Progress)}
        assert told == {"a", "b"}
    for name in "ab":
        loaded.cancel(name)


DURATIONS: Final = (0.5, 0.9)
known: dict[tuple[int, float], Audio] = {}


def expected(seed: int, duration: float) -> Audio:
    if (seed, duration) not in known:
        known[seed, duration] = sing(engine(1), request("x", seed, duration=duration))["x", 0]
    return known[seed, duration]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("admit"), st.integers(1, 4), st.sampled_from(DURATIONS)),
            st.tuples(st.just("advance"), st.integers(1, 2), st.just(0.0)),
            st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0.0)),
        ),
        max_size=10,
    )
)
def test_whatever_comes_and_goes_every_take_that_stays_comes_out_once(
    loaded: MusicgenEngine, steps: Iterable[tuple[str, int, float]]
) -> None:
    numbers = count()
    owed: dict[str, dict[int, float]] = {}

    def hear(updates: Iterable[Update]) -> None:
        for update in updates:
            assert update.request_id in owed
            assert not isinstance(update, Failure)
            if isinstance(update, Clip):
                assert np.array_equal(update.pcm, expected(update.seed, owed[update.request_id].pop(update.index)))
                if not owed[update.request_id]:
                    del owed[update.request_id]

    for what, number, duration in steps:
        if what == "admit":
            ident = str(next(numbers))
            owed[ident] = dict.fromkeys(range(number), duration)
            loaded.admit(request(ident, *range(number), duration=duration))
        elif what == "advance":
            for _ in range(number):
                hear(loaded.advance())
        elif list(owed)[number : number + 1]:
            ident = list(owed)[number]
            loaded.cancel(ident)
            del owed[ident]
    for _ in range(200):
        if not owed:
            break
        hear(loaded.advance())
    assert not owed
    assert loaded.advance() == []


def test_memory_that_runs_out_halves_the_rows_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sing(engine(), request("a", 1, 2, 3), request("b", 4))
    small = engine()
    run, fits = small._decoder.run, 1

    def hungry(steps: int) -> None:
        if len(small._decoder.live) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(steps)

    monkeypatch.setattr(small._decoder, "run", hungry)
    made = sing(small, request("a", 1, 2, 3), request("b", 4))
    assert small.capacity == 1
    assert all(np.array_equal(pcm, made[name]) for name, pcm in whole.items())
    fits = 0
    small.admit(request("c", 1))
    (failure,) = [update for update in small.advance() if isinstance(update, Failure)]
    assert failure.transient
    assert "ran out of memory" in failure.error


def test_takes_that_begin_again_while_their_audio_is_made_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sing(engine(2), request("a", 1, 2, duration=6.5))
    small = engine(2)
    run, begin = small._decoder.run, small._crew.begin
    begun = threading.Event()

    def late(job: Callable[[], None]) -> Future[None]:
        """Begins the audio when memory has run out and the takes have begun again."""
        begun.set()

        def wait_and_do() -> None:
            time.sleep(0.2)
            job()

        return begin(wait_and_do)

    def hungry(steps: int) -> None:
        if begun.is_set() and len(small._decoder.live) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(steps)

    monkeypatch.setattr(small._crew, "begin", late)
    monkeypatch.setattr(small._decoder, "run", hungry)
    made = sing(small, request("a", 1, 2, duration=6.5))
    assert small.capacity == 1
    assert all(np.array_equal(pcm, made[name]) for name, pcm in whole.items())


def test_a_piece_of_audio_for_which_memory_runs_out_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three, when all of the take is decoded."""
    asked = request("a", 1, duration=12.0)
    whole = sing(engine(2), asked)["a", 0]
    small = engine(2)
    layer = small.network.audio_encoder.decoder.layers[-1]
    forward, pieces = layer.forward, count(1)

    def hungry(piece: torch.Tensor) -> torch.Tensor:
        if next(pieces) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made: torch.Tensor = forward(piece)
        return made

    monkeypatch.setattr(layer, "forward", hungry)
    assert np.array_equal(sing(small, asked)["a", 0], whole)
    assert (small.capacity, next(pieces)) == (1, 5)


def test_numbers_that_are_not_finite_end_one_request_and_leave_nothing_behind(loaded: MusicgenEngine) -> None:
    before = sing(loaded, request("b", 7))["b", 0]
    loaded.admit(request("a", 1))
    loaded.admit(request("b", 7))
    updates = [*loaded.advance()]
    loaded._decoder._cache[:, :, 0, :, :, 3] = torch.nan
    while not any(isinstance(update, Clip) for update in updates):
        updates += loaded.advance()
    (failure,) = [update for update in updates if isinstance(update, Failure)]
    assert failure.request_id == "a"
    assert "not finite" in failure.error
    for _ in range(2):
        assert all(np.array_equal(before, pcm) for pcm in sing(loaded, request("b", 7, 7, 7, 7)).values())


@pytest.fixture(scope="module")
def short() -> MusicgenEngine:
    """A model whose window is 2 s, so that long clips have many."""
    network, tokenizer = noise.build()
    return MusicgenEngine(network, tokenizer, replace(NOISE, max_duration=2.0), CPU, 4)


@pytest.mark.parametrize("is_judged", [False, True])
def test_a_take_that_fails_as_another_of_its_request_ends_takes_it_along(
    short: MusicgenEngine, is_judged: bool
) -> None:
    """The other one's window ends in the very steps in which the first is found unsound."""
    asked = replace(request("a", 1, 2, duration=3.0), is_judged=is_judged)
    before = sing(short, request("b", 7, duration=3.0))["b", 0]
    short.admit(asked)
    first, other = short._active["a"].takes
    while first.row is None or other.row is None or short._decoder.left(other.row) > 20:
        list(short.advance())
    short._decoder._cache[:, :, short._decoder.live.index(first.row), :, :, 3] = torch.nan
    updates = list(short.advance())
    assert [update.request_id for update in updates if isinstance(update, Failure)] == ["a"]
    assert not short._waiting
    assert not short._decoding
    assert np.array_equal(sing(short, request("b", 7, duration=3.0))["b", 0], before)


def test_a_long_clip_begins_like_a_short_one_and_is_the_same_in_company(short: MusicgenEngine) -> None:
    long = request("long", 5, duration=9.3)
    alone = sing(short, long)["long", 0]
    assert alone.shape == (1, round(9.3 * 32000))
    first = sing(short, request("first", 5, duration=2.0))["first", 0]
    assert np.abs(alone[:, : 32000 + 16000] - first[:, : 32000 + 16000]).max() < 1e-5
    together = sing(short, request("a", 1, 2, duration=3.0), long, request("b", 6))
    assert np.array_equal(alone, together["long", 0])
    seconds = [np.sqrt(np.mean(part**2)) for part in np.split(alone[:, : 9 * 32000], 9, axis=1)]
    assert min(seconds) > 0.03


def test_the_windows_of_a_long_clip_are_those_of_generate_with_the_codes_before(short: MusicgenEngine) -> None:
    """`generate` gets the last 0.8 s of each window of 2 s as the prompt of the next."""
    short.admit(request("long", 0, duration=4.4, sampling=GREEDY))
    (take,) = short._active["long"].takes
    list(finish(short, 1))
    network: Any = noise.build()[0]
    window, given = 100, 40
    encoded = short._tokenizer(PROMPTS[0], return_tensors="pt")
    for start in (60, 120):
        prompt = take.codes[:, start : start + given]
        with torch.inference_mode():
            audio = network.generate(
                **encoded,
                decoder_input_ids=prompt,
                do_sample=False,
                guidance_scale=3.0,
                max_new_tokens=window - given + 3,
            )
        codes = take.codes[:, start : start + window]
        with torch.inference_mode():
            expected = network.audio_encoder.decode(codes[None, None], [None]).audio_values[0]
        assert np.abs((audio[0] - expected).numpy()).max() < 1e-5


def test_a_clip_that_is_too_long_is_refused(short: MusicgenEngine) -> None:
    with pytest.raises(
        EngineError, match=r"The duration is 300.5 s; text2song/wiring-noise makes clips of up to 300 s"
    ):
        short.admit(request("x", 1, duration=300.5))


LONGEST: Final = 300.0


def test_sixteen_samples_of_the_longest_duration_go_on_with_as_many_rows_as_the_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = engine(16)
    run = small._decoder.run

    def hungry(steps: int) -> None:
        if len(small._decoder.live) > 5:
            # As torch says it on a CPU.
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        run(steps)

    monkeypatch.setattr(small._decoder, "run", hungry)
    small.admit(request("long", *range(16), duration=LONGEST))
    updates = [update for _ in range(8) for update in small.advance()]
    assert not any(isinstance(update, Failure) for update in updates)
    assert small.capacity == 4
    assert len(small._decoding) == 4
    fractions = [update.fraction for update in updates if isinstance(update, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0
    small.cancel("long")
    assert sing(small, request("short", 1)).keys() == {("short", 0)}


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("place", ["codes", "audio", "step"])
def test_samples_that_no_memory_holds_fail_with_a_sentence_that_names_it(
    place: str, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = engine(4)

    def fail(*_: Any, **__: Any) -> Any:
        raise fault

    heard: list[str] = []
    with monkeypatch.context() as patched:
        if place == "codes":
            patched.setattr("workers.engines.musicgen.engine.activate", fail)
            with pytest.raises(EngineError) as caught:
                small.admit(request("long", *range(16), duration=LONGEST))
            assert caught.value.transient
            heard = [str(caught.value)]
        else:
            target: Any = small._decoder if place == "step" else small.network.audio_encoder.quantizer
            patched.setattr(target, "run" if place == "step" else "decode", fail)
            small.admit(request("long", *range(16), duration=LONGEST))
            for _ in range(60):
                heard += [update.error for update in small.advance() if isinstance(update, Failure)]
                if heard:
                    break
    assert heard == ["cpu ran out of memory on a clip of 300 s."]
    assert sing(small, request("short", 1)).keys() == {("short", 0)}
