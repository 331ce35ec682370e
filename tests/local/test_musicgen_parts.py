"""The parts of the MusicGen engine: draws, adapters' columns, pieces of audio."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from domain.events.jobs import Sampling
from tests.local.adapters import lora
from workers.engine import Adapter, EngineError
from workers.engines import noise
from workers.engines.musicgen import sampling
from workers.engines.musicgen.codec import Rendering
from workers.engines.musicgen.crew import Crew
from workers.engines.musicgen.decoder import Decoder
from workers.engines.musicgen.slots import COLUMNS, Slots, read

pytestmark = pytest.mark.usefixtures("one_thread")


def gumbel(codebooks: int, tokens: int, seeds: list[int], position: int) -> torch.Tensor:
    keys = torch.tensor([sampling.key(seed) for seed in seeds], dtype=torch.int32)
    return sampling.gumbel(sampling.labels(codebooks, tokens), keys, torch.full_like(keys, position))


def draw(logits: torch.Tensor, noise: torch.Tensor, settings: list[Sampling]) -> torch.Tensor:
    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(each, name) for each in settings])

    return sampling.draw(
        logits,
        noise,
        sampling.choice(settings),
        temperature=column("temperature"),
        top_k=column("top_k"),
        top_p=column("top_p"),
    )


@given(
    logits=st.lists(st.floats(-9, 9), min_size=2, max_size=12, unique=True),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    is_shared=st.booleans(),
)
def test_the_filter_keeps_the_likeliest_tokens_and_no_others(
    logits: list[float], top_k: int, top_p: float, is_shared: bool
) -> None:
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    total = sum(math.exp(logits[token]) for token in ranked)
    kept, mass = set(), 0.0
    for token in ranked:
        if abs(mass - top_p) < 1e-5:
            return  # which side of the border it is on is a matter of rounding
        if mass < top_p:
            kept.add(token)
        mass += math.exp(logits[token]) / total
    row = torch.tensor([[logits]], dtype=torch.float64)
    limit = top_k if is_shared else torch.tensor([[[top_k]]])
    filtered = sampling.keep(row, limit, torch.tensor([[[top_p]]], dtype=torch.float64) if top_p < 1 else None)
    assert set(filtered[0, 0].isfinite().nonzero().flatten().tolist()) == kept


def test_rows_draw_alone_as_they_draw_together() -> None:
    logits = torch.randn(4, 4, 64, generator=torch.Generator().manual_seed(0))
    noise = gumbel(4, 64, [1, 2, 3, 4], 9)
    settings = [Sampling(), Sampling(temperature=0.0), Sampling(top_k=5), Sampling(temperature=2.0, top_p=0.5)]
    together = draw(logits, noise, settings)
    for row, each in enumerate(settings):
        alone = draw(logits[row : row + 1], noise[row : row + 1], [each])
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[1], logits[1].argmax(-1))


def test_draws_follow_the_probabilities_of_the_tempered_logits() -> None:
    probability = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    logits = (probability.log() * 2).expand(1, 4, -1)
    settings = [Sampling(temperature=2.0)]
    drawn = torch.stack([draw(logits, gumbel(4, 5, [7], position), settings) for position in range(5000)])
    frequency = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    assert (frequency - probability).abs().max() < 0.015


def test_noise_is_finite_and_different_for_every_seed_position_codebook_and_token() -> None:
    rows = torch.cat([gumbel(4, 2048, [0, 1, 2**32 - 1], position).flatten(0, 1) for position in range(50)])
    assert rows.isfinite().all()
    assert rows.mean() == pytest.approx(0.5772, abs=0.01)
    assert rows.corrcoef().fill_diagonal_(0).abs().max() < 0.15


def test_noise_stays_what_it_is() -> None:
    """Or else a seed would give other audio after an update."""
    (drawn,) = gumbel(2, 3, [12345], 678)
    assert drawn.flatten().tolist() == pytest.approx(FROZEN, abs=1e-6)


FROZEN: Final = [0.982541, 0.616129, 2.291323, 1.541494, 0.720110, 2.267794]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    network: Any = noise.build()[0]
    return Decoder(network.decoder, Crew(torch.device("cpu")), 2, 100)


def slots(decoder: Decoder) -> Slots:
    return Slots(decoder.weights.shapes, len(decoder.weights.layers), decoder.weights.places)


def test_adapters_share_the_columns_and_the_least_recently_used_makes_room(decoder: Decoder, tmp_path: Path) -> None:
    held = slots(decoder)
    ranks = {"a": COLUMNS // 2, "b": COLUMNS // 4, "c": COLUMNS // 4, "d": COLUMNS // 2, "e": 2}
    adapters = {name: lora(tmp_path / name, seed, rank=rank) for seed, (name, rank) in enumerate(ranks.items())}
    places = {name: held.hold(adapters[name]) for name in "abc"}
    assert places == {"a": range(64), "b": range(64, 96), "c": range(96, 128)}
    assert held.hold(adapters["d"]) is None
    held.let_go(adapters["b"].sha256)
    assert held.hold(adapters["d"]) is None
    assert held.hold(adapters["e"]) == range(64, 66)
    held.let_go(adapters["a"].sha256)
    assert held.hold(adapters["d"]) == range(64)
    held.let_go(adapters["c"].sha256)
    # One that is still there is not loaded again.
    (tmp_path / "c" / "adapter_model.safetensors").unlink()
    assert held.hold(adapters["c"]) == range(96, 128)


def test_an_adapter_that_waits_for_room_is_not_read_again_until_there_is_some(decoder: Decoder, tmp_path: Path) -> None:
    held = slots(decoder)
    whole, waiting = (lora(tmp_path / name, number, rank=COLUMNS - number) for number, name in enumerate(("a", "b")))
    held.hold(whole)
    assert held.hold(waiting) is None
    weights = tmp_path / "b" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert held.hold(waiting) is None
    held.let_go(whole.sha256)
    weights.write_bytes(content)
    assert held.hold(waiting) == range(COLUMNS - 1)
    expected = loaded(decoder, waiting).down["qkv"][:, :, :-1]
    assert torch.equal(held.down["qkv"][:, :, :-1], expected)


def loaded(decoder: Decoder, adapter: Adapter) -> Slots:
    held = slots(decoder)
    held.hold(adapter)
    return held


class Short(torch.Tensor):
    """Out of memory at the `fails_at`-th matrix."""

    fails_at = 0

    def new_zeros(self, *shape: int) -> torch.Tensor:  # type: ignore[override]
        self.fails_at -= 1
        if self.fails_at == 0:
            raise torch.OutOfMemoryError("none is left")
        return torch.zeros(*shape, dtype=self.dtype)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 6])
def test_memory_that_ends_while_it_is_taken_leaves_the_columns_usable(
    decoder: Decoder, tmp_path: Path, fails_at: int
) -> None:
    like = torch.empty(0, dtype=decoder.weights.places.dtype).as_subclass(Short)
    like.fails_at = fails_at
    held = Slots(decoder.weights.shapes, len(decoder.weights.layers), like)
    adapter = lora(tmp_path, 0, rank=2)
    with pytest.raises(torch.OutOfMemoryError):
        held.hold(adapter)
    assert held.hold(adapter) is not None
    expected = loaded(decoder, adapter)
    for site, up in expected.up.items():
        assert torch.equal(held.up[site], up)
        assert torch.equal(held.down[site], expected.down[site])


def test_an_adapter_that_is_too_wide_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="The adapter has rank 129; a rank of up to 128 can be used") as caught:
        slots(decoder).hold(lora(tmp_path, 0, rank=COLUMNS + 1))
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 3}, r"fit the model: base_model.*lora_A.weight is \[4, 64\], and \[3, 64\] is expected"),
        ({"use_dora": True}, "no plain LoRA"),
        ({"peft_type": "LOHA"}, "no plain LoRA"),
        ({"r": "many"}, "cannot be read: Expected `int`, got `str`"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    decoder: Decoder, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    adapter = lora(tmp_path, 0, rank=4)
    path = tmp_path / "adapter_config.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | change))
    refuse(decoder, adapter, said)


FC1 = "base_model.model.model.decoder.layers.1.fc1.lora_"


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (FC1 + "B.weight", torch.zeros(128, 5), r"fc1.lora_B.weight is \[128, 5\], and \[128, 4\] is expected"),
        (FC1 + "A.weight", torch.full((4, 64), torch.nan), "fc1.lora_A.weight holds values that are not finite"),
        (FC1 + "A.weight", torch.zeros(4, 64, dtype=torch.int64), "fc1.lora_A.weight holds values"),
        (FC1 + "A.weight", None, "incomplete: model.decoder.layers.1.fc1 has lora_B only"),
        (FC1.replace("1.fc1", "2.fc1") + "A.weight", torch.zeros(4, 64), "but the model has 2 layers"),
        ("base_model.model.lm_heads.0.lora_A.weight", torch.zeros(4, 64), "lm_heads.0.lora_A.weight; only the decoder"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_the_tensors_name(
    decoder: Decoder, tmp_path: Path, name: str, tensor: torch.Tensor | None, said: str
) -> None:
    adapter = lora(tmp_path, 0, rank=4)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    refuse(decoder, adapter, said)


def test_files_that_are_no_adapter_are_refused(decoder: Decoder, tmp_path: Path) -> None:
    refuse(decoder, Adapter(sha256="0", folder=str(tmp_path)), "cannot be read", is_transient=True)
    adapter = lora(tmp_path, 0, rank=4)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refuse(decoder, adapter, "cannot be read")
    save_file({}, path)
    refuse(decoder, adapter, "is empty")


def refuse(decoder: Decoder, adapter: Adapter, said: str, *, is_transient: bool = False) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        read(adapter, decoder.weights.shapes, len(decoder.weights.layers))
    assert caught.value.transient is is_transient


@pytest.mark.parametrize(("frames", "channels"), [(25, 1), (250, 1), (777, 2)])
def test_audio_in_pieces_is_that_of_the_whole(frames: int, channels: int) -> None:
    network: Any = noise.build(channels=channels)[0]
    codec = network.audio_encoder
    codes = torch.randint(noise.CODES, (4 * channels, frames), generator=torch.Generator().manual_seed(0))
    rendering = Rendering(codec, channels, frames, frames * 640)
    pieces = 0
    with torch.inference_mode():
        while not rendering.is_done:
            rendering.render(codes[:, rendering.kept_from : rendering.needs])
            pieces += 1
        parts = [codes[channel::channels] for channel in range(channels)]
        whole = codec.decoder(codec.quantizer.decode(torch.stack(parts, dim=1)))[:, 0]
    assert pieces == math.ceil(frames / 250)
    assert np.abs(rendering.pcm - whole.numpy()).max() < 1e-5


@pytest.mark.parametrize("rows", [1, 7, 8, 15, 16, 17, 33, 64])
def test_parts_of_a_batch_hold_each_row_once_and_are_alike_in_size(rows: int) -> None:
    crew = Crew(torch.device("cpu"))
    crew.size = 3
    parts = crew.parts(range(rows))
    assert [row for part in parts for row in part] == list(range(rows))
    assert len(parts) == max(1, min(3, rows // 8))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_core_or_products_of_several_threads_leave_a_batch_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    several = Crew(torch.device("cpu"))
    assert several.parts(range(64)) == [range(64)]

    def fail() -> None:
        raise ValueError("no audio")

    done = several.begin(fail)
    assert done.done()
    assert str(done.exception()) == "no audio"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("workers.engines.musicgen.crew.usable_cores", lambda: 1)
    assert Crew(torch.device("cpu")).parts(range(64)) == [range(64)]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_part_that_fails_is_told_of_when_all_have_ended(broken: int) -> None:
    ended = []

    def part(number: int) -> None:
        if number == broken:
            raise RuntimeError(f"part {number}")
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(RuntimeError, match=f"part {broken}"):
        Crew(torch.device("cpu")).run([partial(part, number) for number in range(2)])
    assert ended == [1 - broken]
