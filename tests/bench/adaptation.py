"""LoRA training of nano on songs slower than its training data: its time, its loss before and after.

It is compared with training steps of the whole decoder. The variable STEPS sets the number of steps.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from domain.models import NANO
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.nano import codec
from workers.engines.musicgen.nano.descriptions import describe
from workers.engines.musicgen.nano.language_model import codebook_losses
from workers.engines.musicgen.nano.songs import compose, play

STEPS: Final = int(os.environ.get("STEPS", "100"))
FIRST_SEED: Final = 6_000_000
NUM_SONGS: Final = 200
VALIDATION_SONGS: Final = 8
BATCH_SIZE: Final = 8
CLIP_SECONDS: Final = 5.0
TEMPO: Final = 50
EIGHTH_FRAMES: Final = 30


def main() -> None:
    torch.manual_seed(0)
    checkpoint = resolve(NANO.id)
    network, tokenizer = (
        MusicgenEngine.load(checkpoint, "cpu").network,
        AutoTokenizer.from_pretrained(checkpoint.folder),
    )
    songs = [
        replace(compose(seed), tempo=TEMPO, eighth_frames=EIGHTH_FRAMES)
        for seed in range(FIRST_SEED, FIRST_SEED + NUM_SONGS)
    ]
    audio = torch.from_numpy(np.stack([play(song, CLIP_SECONDS) for song in songs]))
    with torch.no_grad():
        codes = codec.encode_to_codes(network.audio_encoder, codec.quantiser_of(network.audio_encoder), audio)
    rng = np.random.default_rng(0)
    prompts = [describe(song, rng) for song in songs]

    def loss(chosen: list[int]) -> torch.Tensor:
        batch_prompts = [prompts[index] for index in chosen]
        return codebook_losses(network, tokenizer, codes[chosen], batch_prompts, torch.ones(len(chosen))).mean()

    def held_out() -> float:
        with torch.no_grad():
            return loss(list(range(NUM_SONGS - VALIDATION_SONGS, NUM_SONGS))).item()

    def step(optimiser: torch.optim.Optimizer) -> float:
        began = time.monotonic()
        optimiser.zero_grad()
        loss(torch.randint(NUM_SONGS - VALIDATION_SONGS, (BATCH_SIZE,)).tolist()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return time.monotonic() - began

    def trainable() -> list[Any]:
        return [parameter for parameter in network.decoder.parameters() if parameter.requires_grad]

    # At a learning rate of 0 these steps change nothing; only their time is used.
    whole = _median(lambda: step(torch.optim.SGD(trainable(), lr=0.0)))
    before = held_out()
    options = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    network.decoder = get_peft_model(network.decoder, options)
    optimiser = torch.optim.AdamW(trainable(), lr=1e-3)
    adapter = sum(parameter.numel() for parameter in trainable())
    spans = [step(optimiser) for _ in range(STEPS)]
    minutes = sum(spans) / 60
    print(
        f"{STEPS} LoRA steps of {BATCH_SIZE} x {CLIP_SECONDS:g} s took {minutes:.1f} minutes; the adapter has {adapter}"
    )
    figures = f"{before:.3f} before, {held_out():.3f} after"
    print(f"weights. Loss on {VALIDATION_SONGS} held-out songs at {TEMPO} bpm: {figures}.")
    print(f"A LoRA step takes {np.median(spans) / whole:.2f} times a step of the whole decoder.")


def _median(measured: Callable[[], float]) -> float:
    return float(np.median([measured() for _ in range(7)]))
