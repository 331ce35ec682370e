"""What the losses are made of: labels beside the library's own tokens, and sums beside plain ones in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.models import NOISE
from workers.engines.checkpoints import Checkpoint
from workers.training import losses
from workers.training.labels import IGNORED, inputs, labels, of_frames
from workers.training.network import Network
from workers.training.taste import first_weight

PROMPTS = ["a slow tune", "drums"]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.set_num_threads(1)
    found = Network(Checkpoint(model=NOISE))
    found.adapt(2, 4.0, 0)
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))
    return found


def generated(network: Network, prompts: list[str]) -> torch.Tensor:
    """The codes `[clips, books, frames]` that `generate()` makes of itself, the likeliest each time."""
    heard: list[torch.Tensor] = []
    whole, decode = network._whole, network.codec.decode

    def listening(audio_codes: torch.Tensor, *rest: Any, **more: Any) -> Any:
        heard.append(audio_codes[0])
        return decode(audio_codes, *rest, **more)

    network.codec.decode = listening
    try:
        tokens = network._tokenizer(prompts, padding=True, return_tensors="pt")
        whole.generate(**tokens, do_sample=False, guidance_scale=1.0, max_new_tokens=24)
    finally:
        network.codec.decode = decode
    if network.channels == 1:
        return torch.cat(heard)
    left, right = heard
    return torch.stack([left, right], dim=2).flatten(1, 2)


@pytest.mark.parametrize("channels", [1, 2])
def test_delay_pattern_labels_are_the_tokens_that_generate_makes(channels: int) -> None:
    """Each code, the last ones of each codebook too, is what the decoder says after those before it."""
    network = Network(Checkpoint(model=NOISE), channels=channels)
    codes = generated(network, PROMPTS)
    states, mask = network.texts(PROMPTS)
    with torch.no_grad():
        said = network.logits(codes, states, mask).argmax(-1)
    assert codes.shape[1] == 4 * channels
    assert torch.equal(said, codes)


@pytest.mark.parametrize("channels", [1, 2])
def test_inputs_are_as_the_library_delays_them(channels: int) -> None:
    network = Network(Checkpoint(model=NOISE), channels=channels)
    codes = torch.arange(4 * channels * 9).view(1, -1, 9) % 64
    ours = inputs(labels(codes, channels), network.pad)
    started = torch.nn.functional.pad(codes.flatten(0, 1), (1, 0), value=network.pad)
    _, delayed = network.decoder.build_delay_pattern_mask(started, network.pad, max_length=9 + 4)
    known = delayed[:, : ours.shape[1]] != -1
    assert torch.equal(ours[known], delayed[:, : ours.shape[1]][known])


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.sampled_from([1, 2]))
def test_labels_have_each_code_once(clips: int, books: int, frames: int, channels: int) -> None:
    codes = torch.arange(clips * books * channels * frames).view(clips, books * channels, frames)
    found = labels(codes, channels)
    assert sorted(found[found != IGNORED].tolist()) == sorted(codes.flatten().tolist())
    assert torch.equal(of_frames(found, frames, channels), codes)


def reference(network: Network, codes: np.ndarray[Any, Any], prompt: str) -> list[float]:
    """The log-probability of each code, in plain sums, from what the decoder gives for the codes before it."""
    states, mask = network.texts([prompt])
    books, frames = codes.shape
    found = []
    with torch.no_grad():
        steps = np.full((books, frames + books - 1), network.pad)
        for book in range(books):
            steps[book, book : book + frames] = codes[book]
        fed = np.concatenate([np.full((books, 1), network.pad), steps[:, :-1]], axis=1)
        out = (
            network.decoder(input_ids=torch.from_numpy(fed), encoder_hidden_states=states, encoder_attention_mask=mask)
            .logits.numpy()
            .astype(np.float64)
        )
    for book in range(books):
        for frame in range(frames):
            row = out[book, frame + book]
            found.append(float(row[codes[book, frame]] - row.max() - math.log(np.exp(row - row.max()).sum())))
    return found


def test_dpo_is_what_it_is_by_hand(network: Network) -> None:
    dice = np.random.default_rng(0)
    chosen, rejected = dice.integers(0, 64, (2, 2, 4, 6))
    beta, smoothing, weights = 3.0, 0.1, [1.0, 2.0]
    total = 0.0
    for place, prompt in enumerate(PROMPTS):
        own = [reference(network, side[place], prompt) for side in (chosen, rejected)]
        with network.base():
            before = [reference(network, side[place], prompt) for side in (chosen, rejected)]
        gains = [sum(a - b for a, b in zip(*pair, strict=True)) / 24 for pair in zip(own, before, strict=True)]
        margin = beta * (gains[0] - gains[1])
        total += weights[place] * (
            (1 - smoothing) * math.log1p(math.exp(-margin)) + smoothing * math.log1p(math.exp(margin))
        )
    states, mask = network.texts(PROMPTS)
    sides = [torch.from_numpy(side) for side in (chosen, rejected)]
    now = [losses.log_probabilities(network.logits(side, states, mask), side) for side in sides]
    with network.base():
        base = [losses.log_probabilities(network.logits(side, states, mask), side) for side in sides]
    found = losses.dpo(losses.margins(*now, *base), beta, smoothing, torch.tensor(weights))
    assert float(found.detach()) == pytest.approx(total / sum(weights), rel=1e-5)


def test_sft_is_what_it_is_by_hand(network: Network) -> None:
    codes = np.random.default_rng(1).integers(0, 64, (2, 4, 6))
    wanted = -np.mean([reference(network, each, prompt) for each, prompt in zip(codes, PROMPTS, strict=True)])
    states, mask = network.texts(PROMPTS)
    found = losses.sft(
        losses.log_probabilities(network.logits(torch.from_numpy(codes), states, mask), torch.from_numpy(codes))
    )
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)


def test_gain_is_what_it_is_by_hand() -> None:
    dice = np.random.default_rng(2)
    own, base, rewards = dice.normal(size=(3, 2, 4, 5, 7))
    gains, divergences = [], []
    for place in np.ndindex(2, 4, 5):
        p, q = (np.exp(each[place]) / np.exp(each[place]).sum() for each in (own, base))
        gains.append(((p - q) * rewards[place]).sum())
        divergences.append((p * np.log(p / q)).sum())
    found = losses.gain(*(torch.from_numpy(each) for each in (own, base, rewards)))
    assert float(found[0]) == pytest.approx(np.mean(gains))
    assert float(found[1]) == pytest.approx(np.mean(divergences))


def test_only_the_lora_learns(network: Network) -> None:
    codes = torch.randint(0, 64, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    states, mask = network.texts(PROMPTS)
    likely = losses.log_probabilities(network.logits(codes, states, mask), codes)
    losses.sft(likely).backward()  # type: ignore[no-untyped-call]
    learning = {name for name, each in network.decoder.named_parameters() if each.grad is not None}
    everywhere = [*network._whole.named_parameters(), *network.decoder.named_parameters()]
    assert learning
    assert all("lora_" in name for name in learning)
    assert all(each.grad is None for name, each in everywhere if "lora_" not in name)
    # Two matrices for each of the ten modules of a layer.
    assert len(learning) == 2 * 10 * 2


def test_a_new_adapter_changes_nothing_and_the_base_is_the_reference(network: Network) -> None:
    fresh = Network(Checkpoint(model=NOISE))
    codes = torch.randint(0, 64, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    states, mask = fresh.texts(PROMPTS)
    with torch.no_grad():
        bare = fresh.logits(codes, states, mask)
        fresh.adapt(2, 4.0, 0)
        assert torch.equal(fresh.logits(codes, states, mask), bare)
        assert not torch.equal(network.logits(codes, states, mask), bare)
    with network.base():
        assert torch.equal(network.logits(codes, states, mask), bare)


def test_a_prompt_left_out_is_the_empty_prompt_of_guidance(network: Network) -> None:
    codes = torch.randint(0, 64, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    states, mask = network.texts(PROMPTS, [True, False])
    with torch.no_grad():
        mixed = network.logits(codes, states, mask)
        nothing = network.logits(codes[1:], torch.zeros(1, 1, states.shape[2]), torch.zeros(1, 1, dtype=torch.long))
    assert torch.allclose(mixed[1:], nothing, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.002, 0.1))
def test_the_kls_weight_starts_where_the_best_policy_has_the_kl_that_was_asked_for(target: float) -> None:
    """For rewards of spread one, softmax(reward / weight) has about that KL to a uniform base."""
    rewards = torch.randn(1, 1, 50, 400, generator=torch.Generator().manual_seed(0))
    base = torch.zeros(1, 1, 50, 400)
    _, divergence = losses.gain(rewards / first_weight(target), base, rewards)
    assert float(divergence) == pytest.approx(target, rel=0.25)
