"""Decoding by the engine, against transformers' `generate()` and PEFT's `adapter_names` on the same machine.

The variables: ROUNDS; DEVICE, a torch device; THREADS, by default as many as the engine takes; MODEL, nano or small,
which has random weights; BATCHES and SECONDS for small.
"""

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from msgspec.structs import replace
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from domain.models import NANO, NOISE
from tests.bench.busy_core import busy
from tests.bench.long_clips import resident
from tests.local.adapters import fill
from workers.engine import Adapter, Clip, EngineRequest, Failure, Take
from workers.engines import memory, noise
from workers.engines.checkpoints import resolve
from workers.engines.loading import load
from workers.engines.musicgen.decoder import Decoder
from workers.engines.musicgen.engine import MusicgenEngine

ROUNDS: Final = int(os.environ.get("ROUNDS", "3"))
DEVICE: Final = os.environ.get("DEVICE", "cpu")
MODEL: Final = os.environ.get("MODEL", "nano")
BATCHES: Final = [int(size) for size in os.environ.get("BATCHES", "1,8,32").split(",")]
SECONDS: Final = float(os.environ.get("SECONDS", "10"))
PROMPT: Final = "warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm"
MODULES: Final = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]

numbers: Iterator[int] = iter(range(1_000_000_000))


def sing(engine: MusicgenEngine, durations: list[float], adapters: list[Adapter | None]) -> float:
    """Seconds until all clips, each a request of its own, are there."""
    began = time.perf_counter()
    for duration, adapter in zip(durations, adapters, strict=True):
        number = next(numbers)
        engine.admit(
            EngineRequest(id=f"{number}", prompt=PROMPT, duration=duration, takes=[Take(0, number)], adapter=adapter)
        )
    owed = len(durations)
    while owed:
        for update in engine.advance():
            assert not isinstance(update, Failure), update.error
            owed -= isinstance(update, Clip)
    return time.perf_counter() - began


def generate(engine: MusicgenEngine, network: Any, rows: int, seconds: float, names: list[str] | None = None) -> float:
    """The same by the library, with a network of its own. `names` are PEFT's, one a clip."""
    began = time.perf_counter()
    encoded = engine._tokenizer([PROMPT] * rows, return_tensors="pt", padding=True).to(engine.device)
    frames = round(seconds * network.config.audio_encoder.frame_rate)
    options: dict[str, Any] = {"do_sample": True, "guidance_scale": 3.0, "top_k": 250, "max_new_tokens": frames + 3}
    # generate() takes no names of adapters where only the decoder is PEFT's. Guidance doubles the clips.
    named = network.decoder._enable_peft_forward_hooks(adapter_names=names * 2) if names else nullcontext()
    with torch.inference_mode(), named:
        network.generate(**encoded, **options)
        if engine.device != "cpu":
            torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(name: str, one: Callable[[], float], other: Callable[[], float], unit: float = 0.0) -> None:
    """In turn; the ratio is of the medians. `unit` is the seconds of audio that both make."""
    pairs = [(one(), other()) for _ in range(ROUNDS)]
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    made = f"{unit / first:8.2f} and {unit / second:8.2f} audio seconds a second" if unit else ""
    print(f"{name:58} {second / first:6.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})  {made}", flush=True)


def adapters(network: Any, folder: Path, rank: int = 8) -> list[Adapter]:
    """Two with random weights, of a network that still has its own."""
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        options = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=MODULES)
        wrapped: Any = get_peft_model(network.decoder, options)
        fill(wrapped, 0.01)
        wrapped.save_pretrained(folder / f"{seed}")
        network.decoder = wrapped.unload()
        made.append(Adapter(sha256=f"{seed}", folder=str(folder / f"{seed}")))
    return made


@contextmanager
def peft(network: Any, made: list[Adapter]) -> Iterator[Any]:
    """The network with the adapters in PEFT's hands."""
    whole = network.decoder
    wrapped: Any = PeftModel.from_pretrained(whole, made[0].folder, adapter_name="0")
    for number, each in enumerate(made[1:], start=1):
        wrapped.load_adapter(each.folder, adapter_name=f"{number}")
    try:
        network.decoder = wrapped
        yield network
    finally:
        network.decoder = wrapped.unload()


def nano() -> None:
    engine = load(resolve(NANO.id), DEVICE)
    assert isinstance(engine, MusicgenEngine)
    if threads := os.environ.get("THREADS"):
        torch.set_num_threads(int(threads))
    print(f"{NANO.id} on {engine.device}, {torch.get_num_threads()} thread(s), {engine.capacity} rows\n")
    network: Any = MusicgenForConditionalGeneration
    network = network.from_pretrained(
        resolve(NANO.id).folder, dtype=torch.float32, attn_implementation={"decoder": "sdpa"}
    )
    network.eval().to(DEVICE)
    none: list[Adapter | None] = [None]
    mixed = [4.0 + number % 4 * 2.0 for number in range(16)]
    sing(engine, [1.0], none)
    generate(engine, network, 1, 1.0)
    for rows in (1, 8):
        compare(
            f"{rows} clip(s) of 10 s: the engine, and generate()",
            partial(sing, engine, [10.0] * rows, none * rows),
            partial(generate, engine, network, rows, 10.0),
            unit=10.0 * rows,
        )
    with tempfile.TemporaryDirectory() as folder:
        made = adapters(network, Path(folder))
        kinds: list[Adapter | None] = [None, made[0], made[1], made[0]]
        compare(
            "16 clips of 4 to 10 s: the base, and with adapters mixed",
            partial(sing, engine, mixed, none * 16),
            partial(sing, engine, mixed, kinds * 4),
            unit=sum(mixed),
        )

    def beside() -> float:
        with busy(1):
            return sing(engine, [10.0], none)

    compare("1 clip of 10 s: alone, and beside a busy core", partial(sing, engine, [10.0], none), beside, unit=10.0)


def small() -> None:
    """The shape of facebook/musicgen-small, whose time does not depend on what its weights are."""
    tokenizer = noise.build()[1]
    config = MusicgenConfig(
        text_encoder=T5Config(vocab_size=len(tokenizer), d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12),
        audio_encoder=EncodecConfig(
            sampling_rate=32000,
            upsampling_ratios=[8, 5, 4, 4],
            target_bandwidths=[2.2],
            codebook_size=2048,
            hidden_size=128,
            num_filters=64,
            use_causal_conv=False,
            use_conv_shortcut=False,
        ),
        decoder=MusicgenDecoderConfig(hidden_size=1024, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16),
    )
    network: Any = MusicgenForConditionalGeneration(config)
    network.generation_config.update(pad_token_id=2048, bos_token_id=2048, decoder_start_token_id=2048)
    other = copy.deepcopy(network).eval().to(DEVICE)
    if DEVICE != "cpu":
        other.decoder.to(torch.bfloat16)
    # The memory of as many rows as are asked for is taken whether it is there or not, so it is not for longer clips.
    model = replace(NOISE, id="small", max_duration=max(1.0, SECONDS))
    engine = MusicgenEngine(network, tokenizer, model, torch.device(DEVICE), max(BATCHES))
    print(f"the shape of musicgen-small on {engine.device}, {torch.get_num_threads()} thread(s)\n")
    rows_of = (max(BATCHES) + 1) * Decoder.row_bytes(network.decoder, engine._window) / 1e6
    print(f"the engine keeps room for its rows, which it takes as they come: {rows_of:.0f} MB\n")
    steps = SECONDS * 50 + 3
    with tempfile.TemporaryDirectory() as folder:
        made = adapters(other, Path(folder), rank=16)
        for rows in BATCHES:
            kinds: list[Adapter | None] = [[None, *made][number % 3] for number in range(rows)]
            names = ["__base__" if kind is None else kind.sha256 for kind in kinds]
            base: list[Adapter | None] = [None] * rows
            sing(engine, [1.0] * rows, base)
            generate(engine, other, rows, 1.0)
            for title, asked in (("base", base), ("adapters", kinds)):
                _told(f"{rows} rows, {title}", steps, partial(sing, engine, [SECONDS] * rows, asked))
            _told(f"{rows} rows, generate()", steps, partial(generate, engine, other, rows, SECONDS))
            compare(
                f"{rows} clip(s) of {SECONDS:g} s: the engine, and generate()",
                partial(sing, engine, [SECONDS] * rows, base),
                partial(generate, engine, other, rows, SECONDS),
                unit=SECONDS * rows,
            )
            with peft(other, made) as wrapped:
                _told(f"{rows} rows, PEFT", steps, partial(generate, engine, wrapped, rows, SECONDS, names))
                compare(
                    f"{rows} clip(s) with adapters: the engine, and PEFT",
                    partial(sing, engine, [SECONDS] * rows, kinds),
                    partial(generate, engine, wrapped, rows, SECONDS, names),
                    unit=SECONDS * rows,
                )


def _told(what: str, steps: float, call: Callable[[], float]) -> None:
    """Milliseconds a step, and the most memory that the call takes beyond what is there before, as the weights are."""
    if DEVICE == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, spent = resident(), call()
        most = memory.peak(DEVICE) / 1e6
    else:
        torch.cuda.reset_peak_memory_stats()
        before, spent = torch.cuda.memory_allocated() / 1e6, call()
        most = torch.cuda.max_memory_allocated() / 1e6
    print(f"{what}: {spent * 1000 / steps:.2f} ms a step with audio, {most - before:+.0f} MB", flush=True)


def main() -> None:
    {"nano": nano, "small": small}[MODEL]()
