"""What LoRA training of nano costs and brings: slow songs, which nano has never heard, and a step of all its weights.

STEPS says how many steps there are.
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
from workers.engines.musicgen.nano.language_model import losses
from workers.engines.musicgen.nano.songs import compose, play

STEPS: Final = int(os.environ.get("STEPS", "100"))
FIRST: Final = 6_000_000
SONGS: Final = 200
HELD_OUT: Final = 8
BATCH: Final = 8
SECONDS: Final = 5.0
TEMPO: Final = 50
EIGHTH: Final = 30


def main() -> None:
    torch.manual_seed(0)
    checkpoint = resolve(NANO.id)
    network, tokenizer = (
        MusicgenEngine.load(checkpoint, "cpu").network,
        AutoTokenizer.from_pretrained(checkpoint.folder),
    )
    songs = [replace(compose(seed), tempo=TEMPO, eighth=EIGHTH) for seed in range(FIRST, FIRST + SONGS)]
    audio = torch.from_numpy(np.stack([play(song, SECONDS) for song in songs]))
    with torch.no_grad():
        codes = codec.codes_of(network.audio_encoder, codec.quantiser_of(network.audio_encoder), audio)
    rng = np.random.default_rng(0)
    prompts = [describe(song, rng) for song in songs]

    def loss(chosen: list[int]) -> torch.Tensor:
        asked = [prompts[index] for index in chosen]
        return losses(network, tokenizer, codes[chosen], asked, torch.ones(len(chosen))).mean()

    def held_out() -> float:
        with torch.no_grad():
            return loss(list(range(SONGS - HELD_OUT, SONGS))).item()

    def step(optimiser: torch.optim.Optimizer) -> float:
        began = time.monotonic()
        optimiser.zero_grad()
        loss(torch.randint(SONGS - HELD_OUT, (BATCH,)).tolist()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return time.monotonic() - began

    def learning() -> list[Any]:
        return [parameter for parameter in network.decoder.parameters() if parameter.requires_grad]

    # Steps that change nothing, for their time alone.
    whole = _median(lambda: step(torch.optim.SGD(learning(), lr=0.0)))
    before = held_out()
    options = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    network.decoder = get_peft_model(network.decoder, options)
    optimiser = torch.optim.AdamW(learning(), lr=1e-3)
    adapter = sum(parameter.numel() for parameter in learning())
    spans = [step(optimiser) for _ in range(STEPS)]
    print(
        f"{STEPS} LoRA steps of {BATCH} x {SECONDS:g} s took {sum(spans) / 60:.1f} minutes; the adapter has {adapter}"
    )
    print(f"weights. Loss on {HELD_OUT} unheard songs at {TEMPO} bpm: {before:.3f} before, {held_out():.3f} after.")
    print(f"A LoRA step takes {np.median(spans) / whole:.2f} times a step of the whole decoder.")


def _median(measured: Callable[[], float]) -> float:
    return float(np.median([measured() for _ in range(7)]))
