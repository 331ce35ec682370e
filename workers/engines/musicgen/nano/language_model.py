"""Trains nano's text encoder and decoder on the codes of synthesised songs, and writes the checkpoint.

`python -m workers.engines.musicgen.nano.language_model FOLDER --codec CODEC` goes on where it was stopped;
`--start` begins with the weights of a checkpoint's folder.
"""

import argparse
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional
from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration, T5Config

from workers.engines.musicgen.nano import codec, words
from workers.engines.musicgen.nano.codec import BOOKS, CODES, codes_of
from workers.engines.musicgen.nano.descriptions import describe
from workers.engines.musicgen.nano.instruments import FRAMES
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import (
    BEATS,
    EIGHTHS,
    FASTEST,
    LEADS,
    MODES,
    SECONDS,
    SLOWEST,
    STYLES,
    Song,
    compose,
    play,
)

STEPS: Final = 4_500
CLIPS: Final = 5_500
FIRST: Final = 1_000_000
# More songs of which only a second is learnt: in it, most of what a prompt says is decided.
BEGINNINGS: Final = 20_000
BEGINNINGS_FIRST: Final = 2_000_000
BEGINNING: Final = FRAMES
BEGINNINGS_BATCH: Final = 32
AHEAD: Final = 10
HELD_OUT: Final = 32
CHUNK: Final = 250
BATCH: Final = 16
UNTEXTED: Final = 0.12
UNHEARD: Final = 0.02
PEAK: Final = 1.5e-3
IGNORED: Final = -100
# At the classes' 0.02 the codes are drowned by the positions, whose waves have 0.65, for a thousand steps and more.
LOUD: Final = 0.5
SOFT: Final = 0.05
# Beginnings of clips teach nearly all there is to learn, in half the time.
SHORT: Final = 250
SHORT_SHARE: Final = 0.6
# The t-th frame counts 1 + EARLY / t: the first ones decide much of what a prompt says, and the rest follows them.
EARLY: Final = 20.0
PROBED: Final = 0.3
COUNTING: Final = 3
# So many clips are also counted with all codes hidden: whoever counts by prompt and position alone does not drift.
DEAF: Final = 4
ATTRIBUTES: Final[Mapping[str, Sequence[Any]]] = {
    "style": list(STYLES),
    "lead": list(LEADS),
    "mode": list(MODES),
    "drums": [False, True],
    "eighth": list(EIGHTHS),
}


def config(vocabulary: int) -> MusicgenConfig:
    return MusicgenConfig(
        text_encoder=T5Config(
            vocab_size=vocabulary, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
        ),
        audio_encoder=codec.config(),
        decoder=MusicgenDecoderConfig(
            vocab_size=CODES,
            hidden_size=256,
            ffn_dim=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_codebooks=BOOKS,
            # Ten seconds of frames, the codebooks' delay, and no more: positions beyond were never trained.
            max_position_embeddings=round(SECONDS * FRAMES) + BOOKS - 1,
            pad_token_id=CODES,
            bos_token_id=CODES,
            dropout=0.0,
        ),
    )


def build(books: torch.Tensor) -> tuple[Any, Any]:
    """An untrained network with its tokenizer, for codes that stand for `books`, `[BOOKS, CODES, WIDTH]`.

    The tempi's embeddings already lie in order, and codes that sound alike are alike to it from the beginning.
    """
    tokenizer: Any = words.build()
    kind: Any = MusicgenForConditionalGeneration
    network = kind(config(len(tokenizer)))
    network.decoder.set_attn_implementation("sdpa")
    network.generation_config.update(pad_token_id=CODES, bos_token_id=CODES, decoder_start_token_id=CODES)
    with torch.no_grad():
        tempi = _tempi(network, tokenizer)
        tempi.copy_(torch.from_numpy(words.scale(tempi.shape[1])))
        width = network.decoder.config.hidden_size
        for number, book in enumerate(books):
            alike = (book - book.mean(0)) / book.std() @ torch.randn(book.shape[1], width) / book.shape[1] ** 0.5
            network.decoder.model.decoder.embed_tokens[number].weight[:CODES] = LOUD * alike
            network.decoder.lm_heads[number].weight.copy_(SOFT * alike)
    return network, tokenizer


def _tempi(network: Any, tokenizer: Any) -> torch.Tensor:
    """The embeddings of words.NUMBERS, in their place."""
    embedding: torch.Tensor = network.text_encoder.get_input_embeddings().weight
    first = tokenizer.convert_tokens_to_ids(str(words.NUMBERS[0]))
    return embedding[first : first + len(words.NUMBERS)]


def prepare(folder: Path, weights: Path, songs: range, frames: int) -> torch.Tensor:
    """The codes `[songs, BOOKS, frames]` of the songs' beginnings, made by all cores and kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(folder / f"codes-{song}.npy", weights, song, frames) for song in songs[::CHUNK]]
    missing = [chunk for chunk in chunks if not chunk[0].exists()]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for done, _ in enumerate(pool.imap_unordered(_prepare, missing), start=1):
            print(f"{time.strftime('%H:%M:%S')} codes {done * CHUNK} of {len(missing) * CHUNK}", flush=True)
    return torch.from_numpy(np.concatenate([np.load(chunk[0]) for chunk in chunks]))


@torch.inference_mode()
def _prepare(chunk: tuple[Path, Path, int, int]) -> None:
    path, weights, first, frames = chunk
    torch.set_num_threads(1)
    network, quantiser = codec.load(weights)
    # The codec looks ahead.
    seconds = min((frames + AHEAD) / FRAMES, SECONDS)
    songs = (torch.from_numpy(play(compose(seed), seconds))[None] for seed in range(first, first + CHUNK))
    codes = [codes_of(network, quantiser, song)[0, :, :frames] for song in songs]
    partial = path.with_suffix(".partial.npy")
    np.save(partial, torch.stack(codes).short().numpy())
    partial.replace(path)


def delayed(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs `[clips · BOOKS, steps]` and labels `[clips, BOOKS, steps]` of codes `[clips, BOOKS, frames]`.

    Codebook k is k steps late, and what it waits out is padding that is not learnt.
    """
    clips, books, frames = codes.shape
    labels = torch.full((clips, books, frames + books - 1), IGNORED)
    for book in range(books):
        labels[:, book, book : book + frames] = codes[:, book]
    inputs = functional.pad(labels, (1, -1), value=CODES)
    return inputs.masked_fill(inputs == IGNORED, CODES).reshape(clips * books, -1), labels


def text(network: Any, tokenizer: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the prompts, `[clips, tokens, width]`, and the mask of their tokens."""
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    return network.enc_to_dec_proj(network.text_encoder(**tokens).last_hidden_state), tokens.attention_mask


def forward(
    network: Any, codes: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each code, `[clips, BOOKS, frames]` as the codes are, and the hidden states of COUNTING.

    Those are `[clips, frames, width]`; that of a frame has seen the frames before.
    """
    inputs, labels = delayed(codes.long())
    frames = codes.shape[2]
    made = _decoded(network.decoder, inputs, hidden, mask)
    logits = made.logits.float().view(len(codes), BOOKS, -1, CODES)
    entropies = functional.cross_entropy(logits.movedim(-1, 1), labels, ignore_index=IGNORED, reduction="none")
    return (
        torch.stack([entropies[:, book, book : book + frames] for book in range(BOOKS)], dim=1),
        made.hidden_states[COUNTING][:, :frames].float(),
    )


def losses(network: Any, tokenizer: Any, codes: torch.Tensor, prompts: list[str], keep: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each codebook, `[BOOKS]`, the text zero where it is not kept."""
    hidden, mask = text(network, tokenizer, prompts)
    return forward(network, codes, hidden * keep[:, None, None], mask)[0].mean((0, 2))


def deaf(network: Any, frames: int, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The hidden states of COUNTING, `[clips, frames, width]`, had all codes been padding."""
    inputs = torch.full((len(hidden) * BOOKS, frames), CODES)
    made = _decoded(network.decoder.model.decoder, inputs, hidden, mask)
    counting: torch.Tensor = made.hidden_states[COUNTING].float()
    return counting


def _decoded(decoder: Any, inputs: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor) -> Any:
    """What the decoder, with its heads or without, makes of inputs that were prompted so."""
    with torch.autocast("cpu", torch.bfloat16):
        return decoder(
            inputs,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            use_cache=False,
            output_hidden_states=True,
        )


class Probe(torch.nn.Module):
    """Asks the network for what the codes teach too little of, as it is a small part of what they surprise with.

    From the text: what the song is like, for much of that is heard in every frame, and some, "no drums", hardly but at
    once. From the decoder: where in the bar it is, for only the frames in which a note begins depend on it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, len(values)) for values in ATTRIBUTES.values())
        self.frame = torch.nn.Linear(width, 2 * max(EIGHTHS))
        self.beat = torch.nn.Linear(width, BEATS)

    def told(self, hidden: torch.Tensor, mask: torch.Tensor, songs: list[Song]) -> torch.Tensor:
        """The mean cross-entropy of the attributes, from the text's hidden states `[songs, tokens, width]`."""
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        entropies = [
            functional.cross_entropy(head(mean), torch.tensor([values.index(getattr(song, name)) for song in songs]))
            for head, (name, values) in zip(self.heads, ATTRIBUTES.items(), strict=True)
        ]
        return torch.stack(entropies).mean()

    def counted(self, hidden: torch.Tensor, songs: list[Song]) -> torch.Tensor:
        """The cross-entropy of each frame's place in its beat, and in the bar, from hidden states of the decoder."""
        frames = torch.arange(hidden.shape[1])[None]
        beat = torch.tensor([2 * song.eighth for song in songs])[:, None]
        placed = functional.cross_entropy(self.frame(hidden).flatten(0, 1), (frames % beat).flatten())
        return placed + functional.cross_entropy(self.beat(hidden).flatten(0, 1), (frames // beat % BEATS).flatten())


def learn(
    network: Any, tokenizer: Any, probe: Probe, codes: torch.Tensor, asked: list[tuple[Song, str]]
) -> dict[str, torch.Tensor]:
    """The losses on codes `[songs, BOOKS, frames]` of songs, and of the probe."""
    songs = [song for song, _ in asked]
    hidden, mask = text(network, tokenizer, [prompt for _, prompt in asked])
    keep = torch.rand(len(asked)) > UNTEXTED
    surprise, heard = forward(network, codes, hidden * keep[:, None, None], mask)
    share = 1 + EARLY / torch.arange(1, codes.shape[2] + 1)
    blank = deaf(network, round(SECONDS * FRAMES), hidden[:DEAF], mask[:DEAF])
    return {
        "codes": (surprise * share / share.mean()).mean(),
        "told": PROBED * probe.told(hidden, mask, songs),
        "counted": PROBED * probe.counted(heard, songs),
        "counted_deaf": probe.counted(blank, songs[:DEAF]),
    }


def train(folder: Path, weights: Path, steps: int = STEPS, clips: int = CLIPS, *, start: Path | None = None) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    known = clips - HELD_OUT
    whole = range(FIRST, FIRST + clips)
    codes = prepare(folder / "codes", weights, whole, round(SECONDS * FRAMES))
    songs = [compose(seed) for seed in whole]
    begun = range(BEGINNINGS_FIRST, BEGINNINGS_FIRST + BEGINNINGS)
    beginnings = prepare(folder / "beginnings", weights, begun, BEGINNING)
    listener, quantiser = codec.load(weights)
    network, tokenizer = build(quantiser.books)
    if start is not None:
        kind: Any = MusicgenForConditionalGeneration
        network.load_state_dict(kind.from_pretrained(start, dtype=torch.float32).state_dict())
    network.audio_encoder.requires_grad_(False)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if parameter.dim() > 1]
    vectors = [parameter for parameter in learning if parameter.dim() == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    probe = Probe(network.decoder.config.hidden_size)
    probe_optimiser = torch.optim.AdamW(probe.parameters(), lr=PEAK)
    run = Run(folder, steps, network=network, optimiser=optimiser, probe=probe, probe_optimiser=probe_optimiser)
    # A run that is over takes another decoder of the same codes.
    network.audio_encoder.load_state_dict(listener.state_dict())
    network.train()
    for step in run:
        for group in optimiser.param_groups:
            group["lr"] = run.rate(PEAK)
        rng = np.random.default_rng(step)
        heard = SHORT if step < SHORT_SHARE * steps else codes.shape[2]
        chosen = rng.integers(known, size=BATCH)
        more = rng.integers(BEGINNINGS, size=BEGINNINGS_BATCH)
        optimiser.zero_grad(), probe_optimiser.zero_grad()
        for part, described in (
            (codes[chosen, :, :heard], [songs[index] for index in chosen]),
            (beginnings[more], [compose(begun[index]) for index in more]),
        ):
            asked = [(song, _forget(describe(song, rng), rng)) for song in described]
            parts = learn(network, tokenizer, probe, part, asked)
            torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step(), probe_optimiser.step()
        if step % 100 == 0:
            rng = np.random.default_rng(0)
            network.eval()
            with torch.inference_mode():
                prompts = [describe(song, rng) for song in songs[known:]]
                unheard = codes[known:, :, :heard]
                told = losses(network, tokenizer, unheard, prompts, torch.ones(HELD_OUT))
                untold = losses(network, tokenizer, unheard, prompts, torch.zeros(HELD_OUT))
            network.train()
            learnt = {name: round(value.item(), 3) for name, value in parts.items()}
            shown = f"held out {[round(value, 3) for value in told.tolist()]} without text {untold[0]:.3f}"
            print(f"{time.strftime('%H:%M:%S')} step {step} {learnt} {shown}", flush=True)
    write(network, tokenizer, folder / "checkpoint")


def write(network: Any, tokenizer: Any, folder: Path) -> None:
    """The checkpoint in half precision; a tempo beyond those of the songs is read as the nearest of them."""
    with torch.no_grad():
        tempi = _tempi(network, tokenizer)
        tempi.copy_(tempi[np.clip(words.NUMBERS, SLOWEST, FASTEST) - words.NUMBERS[0]])
    network.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget(prompt: str, rng: np.random.Generator) -> str:
    """Makes a word now and then one that the model does not know, so that such words lead nowhere."""
    kept = [words.UNKNOWN if rng.random() < UNHEARD else word for word in prompt.split()]
    return " ".join(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", dest="weights", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--start", type=Path)
    train(**vars(parser.parse_args()))
