"""The recipe of musicgen-nano: what it learns from, how its runs go on, and the codec it has come to so far."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.engines.musicgen.nano import codec, words
from workers.engines.musicgen.nano.codec import BOOKS, CODES, WIDTH, Quantiser
from workers.engines.musicgen.nano.descriptions import describe, request
from workers.engines.musicgen.nano.instruments import FRAMES, RATE
from workers.engines.musicgen.nano.judge import tempo
from workers.engines.musicgen.nano.language_model import IGNORED, delayed
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import EIGHTHS, STYLES, compose, play

WEIGHTS = Path(codec.__file__).with_name("codec.safetensors")
UNHEARD = range(7_500_000, 7_500_016)


def test_a_seed_always_gives_the_same_song() -> None:
    song = compose(5)
    audio = play(song, 2.0)
    assert compose(5) == song
    assert (play(song, 2.0) == audio).all()
    assert audio.shape == (2 * RATE,)
    assert 0.1 < np.abs(audio).max() < 0.95
    assert not np.array_equal(play(compose(6), 2.0), audio)


def test_the_tempo_that_was_played_is_heard() -> None:
    songs = [compose(seed) for seed in UNHEARD]
    assert len({song.style for song in songs}) > len(STYLES) / 2
    heard = [abs(tempo(play(song)) / song.tempo - 1) < 0.05 for song in songs]
    assert sum(heard) >= len(heard) - 1


def test_every_tempo_is_played_within_a_twentieth_and_begins_with_frames() -> None:
    for seed in range(500):
        song = compose(seed)
        assert abs(60 * FRAMES / (2 * song.eighth) / song.tempo - 1) < 0.05
    assert {compose(seed).eighth for seed in range(500)} == set(EIGHTHS)


def test_prompts_say_what_the_song_is_in_words_that_the_tokenizer_knows() -> None:
    tokenizer: Any = words.build()
    unknown = tokenizer.convert_tokens_to_ids(words.UNKNOWN)
    for seed in UNHEARD:
        rng, song = np.random.default_rng(seed), compose(seed)
        for prompt in (describe(song, rng), request(song, rng)):
            assert unknown not in tokenizer(prompt).input_ids, prompt
        assert f"{song.tempo} bpm" in request(song, rng)
    assert tokenizer.convert_ids_to_tokens(tokenizer("A SAD jazz-tune, 93bpm: xyzzy!").input_ids) == [
        *("a", "sad", "jazz", "tune", "93", "bpm", words.UNKNOWN, words.END)
    ]


def test_tempi_that_are_close_begin_with_embeddings_that_are_close() -> None:
    scale = words.scale(128)
    near = np.linalg.norm(scale[words.NUMBERS.index(100)] - scale[words.NUMBERS.index(101)])
    far = np.linalg.norm(scale[words.NUMBERS.index(100)] - scale[words.NUMBERS.index(120)])
    assert near < far / 2


def test_codebook_k_is_k_steps_late_and_each_step_sees_only_what_came_before() -> None:
    codes = torch.arange(2 * BOOKS * 5).view(2, BOOKS, 5)
    inputs, labels = delayed(codes)
    for book in range(BOOKS):
        assert labels[1, book].tolist() == [IGNORED] * book + codes[1, book].tolist() + [IGNORED] * (BOOKS - 1 - book)
    padded = torch.where(labels == IGNORED, CODES, labels)
    assert (inputs.view(2, BOOKS, -1)[..., 1:] == padded[..., :-1]).all()
    assert (inputs.view(2, BOOKS, -1)[..., 0] == CODES).all()


def test_each_codebook_takes_up_what_the_last_one_left() -> None:
    torch.manual_seed(0)
    quantiser, latents = Quantiser(), torch.randn(4000, 8) @ torch.randn(8, WIDTH)
    quantiser.start(latents)
    codes, quantised = quantiser.eval()(latents)
    rest, energy = latents, []
    for book, found in zip(quantiser.books, codes, strict=True):
        rest = rest - book[found]
        energy.append(float(rest.square().mean()))
    assert energy == sorted(energy, reverse=True)
    assert torch.allclose(quantised, latents - rest, atol=1e-4)


def test_a_code_out_of_use_starts_again_where_there_is_something() -> None:
    torch.manual_seed(0)
    quantiser, latents = Quantiser(), torch.randn(2000, WIDTH)
    quantiser.start(latents)
    quantiser.books[0, 7] = 1e3
    quantiser.sums[0, 7] = 1e3 * quantiser.counts[0, 7]
    for _ in range(260):
        quantiser(latents[torch.randint(2000, (64,))])
    assert quantiser.books[0, 7].abs().max() < 10


def steps(folder: Path, stop_at: int | None = None) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    run = Run(folder, 20, model=model, optimiser=optimiser)
    for step in run:
        if step == stop_at:
            break
        for group in optimiser.param_groups:
            group["lr"] = run.rate(0.1)
        loss = (model(torch.randn(8, 4)) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 5 == 4:
            run.step += 1
            run.save()
            run.step -= 1
    return [float(value) for value in model.weight.detach().flatten()]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    steps(tmp_path / "stopped", stop_at=13)
    assert steps(tmp_path / "stopped") == steps(tmp_path / "whole")


def test_a_run_of_another_length_is_refused(tmp_path: Path) -> None:
    steps(tmp_path)
    with pytest.raises(SystemExit, match="of a run of 20 steps, not 30"):
        Run(tmp_path, 30)


def test_the_codec_keeps_what_songs_are_made_of() -> None:
    figures = codec.measure(*codec.load(WEIGHTS), codec.songs(UNHEARD[0], 6))
    assert figures["si_sdr"] > 2.5
    assert figures["log_spectral_distance"] < 0.7
    assert figures["chroma_cosine"] > 0.95
    assert figures["codes_used"] > 0.9
