"""The recipe of musicgen-nano: what it learns from, how its runs go on, and what it has learnt."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from msgspec.structs import replace
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from domain.models import NANO
from tests.conditions import eventually_sync
from tests.local.conftest import Running
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.nano import codec, words
from workers.engines.musicgen.nano.codec import BOOKS, CODES, WIDTH, Quantiser
from workers.engines.musicgen.nano.descriptions import describe, request
from workers.engines.musicgen.nano.evaluation import sing
from workers.engines.musicgen.nano.instruments import FRAMES, RATE
from workers.engines.musicgen.nano.judge import TOLERANCE, tempo
from workers.engines.musicgen.nano.language_model import IGNORED, delayed, forward, losses, text
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import EIGHTHS, STYLES, Song, compose, play

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


@pytest.fixture(scope="module")
def nano() -> MusicgenEngine:
    return MusicgenEngine.load(resolve(NANO.id), "cpu")


def test_the_codec_keeps_what_songs_are_made_of(nano: MusicgenEngine) -> None:
    network = nano.network.audio_encoder
    figures = codec.measure(network, codec.quantiser_of(network), codec.songs(UNHEARD[0], 6))
    assert figures["si_sdr"] > 3.7
    assert figures["log_spectral_distance"] < 0.75
    assert figures["chroma_cosine"] > 0.95
    assert figures["codes_used"] > 0.9


def test_a_song_surprises_nano_less_when_its_prompt_is_true(nano: MusicgenEngine) -> None:
    """In nats a song: what is false of a prompt is seen in the first second."""
    songs = [compose(seed) for seed in UNHEARD]
    audio = torch.from_numpy(np.stack([play(song, 1.2) for song in songs]))
    network, tokenizer = nano.network, AutoTokenizer.from_pretrained(resolve(NANO.id).folder)
    with torch.no_grad():
        found = codec.codes_of(network.audio_encoder, codec.quantiser_of(network.audio_encoder), audio)
    codes = found[:, :, :FRAMES]

    def surprise(told: list[Song]) -> float:
        prompts = [request(song, np.random.default_rng(0)) for song in told]
        with torch.no_grad():
            each, _ = forward(network, codes, *text(network, tokenizer, prompts))
        assert each.shape == codes.shape
        return float(each.sum()) / len(told)

    true = surprise(songs)
    assert surprise([replace(song, drums=not song.drums) for song in songs]) > true + 1
    faster = [replace(song, tempo=70 + (song.tempo - 35) % 71) for song in songs]
    assert surprise(faster) > true + 1
    assert surprise([replace(song, lead="bells" if song.lead != "bells" else "violin") for song in songs]) > true + 10


def test_the_same_seed_is_the_same_audio_and_another_is_not(nano: MusicgenEngine) -> None:
    first, again, other = (sing(nano, "happy folk, guitar", seed, 1.0) for seed in (1, 1, 2))
    assert first.shape == (RATE,)
    assert (first == again).all()
    assert not np.array_equal(first, other)


def test_nano_plays_drums_where_they_were_asked_for(nano: MusicgenEngine) -> None:
    """Their hiss is nearly all there is above 5 kHz."""

    def hiss(drums: str) -> float:
        clips = [sing(nano, f"rock, 120 bpm, {drums}, organ melody", seed, 4.0) for seed in (1, 2)]
        spectra = [np.abs(np.fft.rfft(clip)) ** 2 for clip in clips]
        return float(np.mean([power[5 * len(power) // 8 :].sum() / power.sum() for power in spectra]))

    assert hiss("with drums") > 3 * hiss("no drums")


def test_nano_keeps_the_tempo_that_was_asked_for(nano: MusicgenEngine) -> None:
    asked = (78, 96, 115, 134)
    heard = [tempo(sing(nano, f"{bpm} bpm, rock, with drums, guitar melody", bpm)) for bpm in asked]
    assert sum(abs(found / bpm - 1) < TOLERANCE for found, bpm in zip(heard, asked, strict=True)) >= 3, heard


def test_an_adapter_learns_a_song_in_a_few_steps_and_the_model_below_it_stays(
    nano: MusicgenEngine, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    checkpoint = resolve(NANO.id).folder
    network, tokenizer = nano.network, AutoTokenizer.from_pretrained(checkpoint)
    audio = torch.from_numpy(play(compose(UNHEARD[0]), 3.0))[None]
    with torch.no_grad():
        codes = codec.codes_of(network.audio_encoder, codec.quantiser_of(network.audio_encoder), audio)
    batch, prompts, keep = codes.repeat(2, 1, 1), ["my song"] * 2, torch.ones(2)
    below = {name: value.clone() for name, value in network.state_dict().items()}

    def loss() -> torch.Tensor:
        return losses(network, tokenizer, batch, prompts, keep).mean()

    whole = network.decoder
    try:
        options = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
        network.decoder = get_peft_model(whole, options)
        before = loss().item()
        optimiser = torch.optim.AdamW([part for part in network.decoder.parameters() if part.requires_grad], lr=3e-3)
        for _ in range(20):
            optimiser.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        after = loss().item()
        assert after < 0.9 * before
        network.decoder.save_pretrained(tmp_path)
        whole = network.decoder.unload()
        network.decoder = whole
        assert loss().item() == pytest.approx(before)
        network.decoder = PeftModel.from_pretrained(whole, tmp_path)
        assert loss().item() == pytest.approx(after, abs=1e-4)
        whole = network.decoder.unload()
    finally:
        network.decoder = whole
    assert all((value == below[name]).all() for name, value in network.state_dict().items())


def test_what_a_studio_makes_of_a_prompt_is_nanos_music(tmp_path: Path) -> None:
    running = Running(tmp_path / "data", TEXT2SONG_MODEL=NANO.id)
    running.wait_until_ready()
    too_long = running.http.post("/generate", json={"prompt": "x", "duration": 11})
    assert "text2song/musicgen-nano makes from 0.5 s to 10 s" in too_long.json()["detail"]
    prompt = {"prompt": "jazz, 100 bpm, trumpet melody, with drums", "seed": 5, "duration": 2}
    url = f"/jobs/{running.http.post('/generate', json=prompt).json()['job_id']}"
    job = eventually_sync(lambda: (found := running.http.get(url).json())["status"] == "completed" and found)
    stream = running.http.get(f"/audio/{job['sample_ids'][0]}/stream", params={"format": "wav"})
    audio, rate = soundfile.read(io.BytesIO(stream.content), dtype="float32")
    assert (rate, len(audio)) == (RATE, 2 * RATE)
    assert running.stop() == 0
    made = sing(MusicgenEngine.load(resolve(NANO.id), "cpu"), str(prompt["prompt"]), 5, 2.0)
    alike = np.dot(audio, made) / (np.linalg.norm(audio) * np.linalg.norm(made))
    assert alike > 0.99
