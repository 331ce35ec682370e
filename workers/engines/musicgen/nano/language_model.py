"""Trains nano's text encoder and decoder on the codes of synthesised songs, and writes the checkpoint.

`python -m workers.engines.musicgen.nano.language_model FOLDER --codec CODEC` goes on where it was stopped.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional
from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration, T5Config

from workers.engines.musicgen.nano import codec, words
from workers.engines.musicgen.nano.codec import BOOKS, CODES, encode
from workers.engines.musicgen.nano.descriptions import describe
from workers.engines.musicgen.nano.instruments import FRAMES
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import FASTEST, SECONDS, SLOWEST, compose, play

STEPS: Final = 2_500
CLIPS: Final = 6_000
FIRST: Final = 1_000_000
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


def prepare(folder: Path, weights: Path, clips: int) -> torch.Tensor:
    """The codes `[clips, BOOKS, frames]` of the songs from FIRST on, made by all cores and kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(folder / f"codes-{first}.npy", weights, first) for first in range(FIRST, FIRST + clips, CHUNK)]
    missing = [chunk for chunk in chunks if not chunk[0].exists()]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for done, _ in enumerate(pool.imap_unordered(_prepare, missing), start=1):
            print(f"{time.strftime('%H:%M:%S')} codes {done * CHUNK} of {len(missing) * CHUNK}", flush=True)
    return torch.from_numpy(np.concatenate([np.load(path) for path, _, _ in chunks]))


@torch.inference_mode()
def _prepare(chunk: tuple[Path, Path, int]) -> None:
    path, weights, first = chunk
    torch.set_num_threads(1)
    network, quantiser = codec.load(weights)
    songs = (torch.from_numpy(play(compose(seed)))[None] for seed in range(first, first + CHUNK))
    codes = [quantiser(encode(network, song))[0] for song in songs]
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


def text(network: Any, tokenizer: Any, prompts: list[str], keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the prompts, zero where not kept, and the mask of their tokens."""
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    hidden = network.text_encoder(**tokens).last_hidden_state
    return network.enc_to_dec_proj(hidden) * keep[:, None, None], tokens.attention_mask


def losses(network: Any, tokenizer: Any, codes: torch.Tensor, prompts: list[str], keep: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each codebook, `[BOOKS]`."""
    inputs, labels = delayed(codes.long())
    with torch.autocast("cpu", torch.bfloat16):
        hidden, mask = text(network, tokenizer, prompts, keep)
        logits = network.decoder(
            inputs, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
        ).logits
    logits = logits.float().view(len(codes), BOOKS, -1, CODES)
    books = [
        functional.cross_entropy(logits[:, book].flatten(0, 1), labels[:, book].flatten(), ignore_index=IGNORED)
        for book in range(BOOKS)
    ]
    return torch.stack(books)


def train(folder: Path, weights: Path, steps: int = STEPS, clips: int = CLIPS) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    codes = prepare(folder / "codes", weights, clips)
    songs = [compose(seed) for seed in range(FIRST, FIRST + clips)]
    listener, quantiser = codec.load(weights)
    network, tokenizer = build(quantiser.books)
    network.audio_encoder.load_state_dict(listener.state_dict())
    network.audio_encoder.requires_grad_(False)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if parameter.dim() > 1]
    vectors = [parameter for parameter in learning if parameter.dim() == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    run = Run(folder, steps, network=network, optimiser=optimiser)
    known = clips - HELD_OUT
    network.train()
    for step in run:
        for group in optimiser.param_groups:
            group["lr"] = run.rate(PEAK)
        rng = np.random.default_rng(step)
        chosen = rng.integers(known, size=BATCH)
        prompts = [_forget(describe(songs[index], rng), rng) for index in chosen]
        keep = torch.from_numpy(rng.random(BATCH) > UNTEXTED)
        heard = SHORT if step < SHORT_SHARE * steps else codes.shape[2]
        loss = losses(network, tokenizer, codes[chosen, :, :heard], prompts, keep).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        if step % 100 == 0:
            rng = np.random.default_rng(0)
            network.eval()
            with torch.inference_mode():
                prompts = [describe(song, rng) for song in songs[known:]]
                told = losses(network, tokenizer, codes[known:], prompts, torch.ones(HELD_OUT))
                untold = losses(network, tokenizer, codes[known:], prompts, torch.zeros(HELD_OUT))
            network.train()
            shown = f"held out {[round(value, 3) for value in told.tolist()]} without text {untold[0]:.3f}"
            print(f"{time.strftime('%H:%M:%S')} step {step} loss {loss.item():.3f} {shown}", flush=True)
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
    train(**vars(parser.parse_args()))
