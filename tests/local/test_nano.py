"""musicgen-nano: its training data, the resuming of its training runs, and the trained model."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from msgspec.structs import replace
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from domain.models import NANO
from tests.conditions import eventually_sync
from tests.local.conftest import Running
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.nano import codec, words
from workers.engines.musicgen.nano.codec import CODEBOOK_DIM, CODEBOOK_SIZE, NUM_CODEBOOKS, Quantiser
from workers.engines.musicgen.nano.descriptions import describe, request
from workers.engines.musicgen.nano.evaluation import WORDINGS, generate, worded
from workers.engines.musicgen.nano.heads import ATTRIBUTES, BARS, PROMPTED, AuxiliaryHeads
from workers.engines.musicgen.nano.instruments import FRAME_RATE, SAMPLE_RATE, Signal
from workers.engines.musicgen.nano.judge import TEMPO_TOLERANCE, section_likeness, tempo
from workers.engines.musicgen.nano.language_model import (
    IGNORE_INDEX,
    PIECE_FRAMES,
    WRONG_SHARE,
    apply_delay_pattern,
    build_model,
    codebook_losses,
    encode_text,
    forward,
    start_from,
    with_wrong_pieces,
)
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import (
    BARS_PER_SECTION,
    BEATS_PER_BAR,
    EIGHTH_FRAMES,
    LEADS,
    MODES,
    STYLES,
    Song,
    compose,
    play,
)

pytestmark = pytest.mark.usefixtures("one_thread")

UNSEEN_SEEDS = range(7_500_000, 7_500_016)


def test_a_seed_always_gives_the_same_song() -> None:
    song = compose(5)
    audio = play(song, 2.0)
    assert compose(5) == song
    assert (play(song, 2.0) == audio).all()
    assert audio.shape == (2 * SAMPLE_RATE,)
    assert 0.1 < np.abs(audio).max() < 0.95
    assert not np.array_equal(play(compose(6), 2.0), audio)


def test_the_first_section_of_a_song_returns_after_another() -> None:
    """AABA: the fourth section is the first once more, which the judge hears too."""
    for song in [compose(seed) for seed in UNSEEN_SEEDS[:4]]:
        size = song.eighth_frames * SAMPLE_RATE // FRAME_RATE * 2 * BEATS_PER_BAR * BARS_PER_SECTION
        sections = np.split(play(song, 4 * size / SAMPLE_RATE), 4)
        returned, contrast = section_likeness(np.concatenate(sections[:3]), song)
        assert returned > 0.9 > contrast, song
        assert section_likeness(np.concatenate([sections[3], sections[1], sections[2]]), song)[0] > 0.9, song


def test_the_judge_recognises_the_tempo_of_songs() -> None:
    songs = [compose(seed) for seed in UNSEEN_SEEDS]
    assert len({song.style for song in songs}) > len(STYLES) / 2
    correct = [abs(tempo(play(song)) / song.tempo - 1) < 0.05 for song in songs]
    assert sum(correct) >= len(correct) - 1


def test_a_song_is_played_within_a_twentieth_of_its_tempo() -> None:
    for seed in range(500):
        song = compose(seed)
        assert abs(60 * FRAME_RATE / (2 * song.eighth_frames) / song.tempo - 1) < 0.05
    assert {compose(seed).eighth_frames for seed in range(500)} == set(EIGHTH_FRAMES)


def test_the_tokenizer_knows_every_word_of_the_prompts() -> None:
    tokenizer: Any = words.build_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids(words.UNK)
    for seed in UNSEEN_SEEDS:
        rng, song = np.random.default_rng(seed), compose(seed)
        for prompt in (describe(song, rng), request(song, rng)):
            assert unknown not in tokenizer(prompt).input_ids, prompt
        assert f"{song.tempo} bpm" in request(song, rng)
    assert tokenizer.convert_ids_to_tokens(tokenizer("A SAD jazz-tune, 93bpm: xyzzy!").input_ids) == [
        *("a", "sad", "jazz", "tune", "93", "bpm", words.UNK, words.EOS)
    ]


def test_close_tempi_have_close_initial_embeddings() -> None:
    embeddings = words.tempo_embeddings(128)
    near = np.linalg.norm(embeddings[words.NUMBERS.index(100)] - embeddings[words.NUMBERS.index(101)])
    far = np.linalg.norm(embeddings[words.NUMBERS.index(100)] - embeddings[words.NUMBERS.index(120)])
    assert near < far / 2


def test_the_delay_pattern_delays_codebook_k_by_k_steps_and_inputs_are_labels_one_step_earlier() -> None:
    codes = torch.arange(2 * NUM_CODEBOOKS * 5).view(2, NUM_CODEBOOKS, 5)
    input_ids, labels = apply_delay_pattern(codes)
    for book in range(NUM_CODEBOOKS):
        assert labels[1, book].tolist() == [IGNORE_INDEX] * book + codes[1, book].tolist() + [IGNORE_INDEX] * (
            NUM_CODEBOOKS - 1 - book
        )
    padded = torch.where(labels == IGNORE_INDEX, CODEBOOK_SIZE, labels)
    assert (input_ids.view(2, NUM_CODEBOOKS, -1)[..., 1:] == padded[..., :-1]).all()
    assert (input_ids.view(2, NUM_CODEBOOKS, -1)[..., 0] == CODEBOOK_SIZE).all()


def test_the_codes_that_the_decoder_hears_have_pieces_of_another_clip_in_half_of_the_clips() -> None:
    torch.manual_seed(0)
    codes = torch.arange(64)[:, None, None].expand(-1, NUM_CODEBOOKS, 205)
    assert (with_wrong_pieces(codes, 0.0) == codes).all()
    heard = with_wrong_pieces(codes, WRONG_SHARE)
    wrong = heard != codes
    assert (heard[wrong] == codes.roll(1, 0)[wrong]).all()
    assert (wrong == wrong[:, :1]).all(), "all codebooks of a frame are of one clip"
    assert 0.3 < wrong.any((1, 2)).float().mean() < 0.6
    assert 0.02 < wrong.float().mean() < 0.2
    for frame in range(1, 205):
        if frame % PIECE_FRAMES:
            assert (wrong[:, 0, frame] == wrong[:, 0, frame - 1]).all()


def test_the_heads_are_asked_for_the_place_in_the_form_and_for_the_attributes_in_each_frame() -> None:
    torch.manual_seed(0)
    songs = [compose(seed) for seed in UNSEEN_SEEDS[:2]]
    width = 2 * max(EIGHTH_FRAMES) + BEATS_PER_BAR + BARS
    heads: Any = AuxiliaryHeads(width)
    states = torch.zeros(2, 1500, width)
    for clip, song in enumerate(songs):
        for frame in range(1500):
            beat, place = divmod(frame, 2 * song.eighth_frames)
            bar, beat = divmod(beat, BEATS_PER_BAR)
            known = (place, 2 * max(EIGHTH_FRAMES) + beat, 2 * max(EIGHTH_FRAMES) + BEATS_PER_BAR + bar % BARS)
            states[clip, frame, list(known)] = 1
    first = 0
    for head in (heads.frame, heads.beat, heads.bar):
        torch.nn.init.zeros_(head.weight)
        head.weight.data[:, first : first + head.out_features] = 50 * torch.eye(head.out_features)
        first += head.out_features
    assert heads.position_loss(states, songs) < 1e-6
    assert heads.position_loss(states.roll(1, 1), songs) > 10
    for head in [*heads.frames.values(), heads.key]:
        torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    sizes = [len(ATTRIBUTES[name]) for name in PROMPTED]
    for has_codes in (False, True):
        chance = float(np.mean(np.log([*sizes, 5] if has_codes else sizes)))
        assert heads.plan_loss(states, songs, has_codes=has_codes).item() == pytest.approx(chance, rel=1e-5)
    with torch.no_grad():
        heads.frames["lead"].bias[LEADS.index(songs[0].lead)] = 50
        heads.frames["mode"].bias[MODES.index(songs[0].mode)] = 50
    told = heads.plan_loss(states[:1], songs[:1], has_codes=False).item()
    assert told == pytest.approx(np.log([len(STYLES), 2]).sum() / len(sizes), rel=1e-4)


def test_training_that_starts_from_a_checkpoint_keeps_its_weights_and_the_words_that_it_knows(network: Any) -> None:
    folder = resolve(NANO.id).folder
    assert folder is not None
    fresh, tokenizer = build_model(codec.quantiser_of(network.audio_encoder).books)
    old = AutoTokenizer.from_pretrained(folder).get_vocab()
    tokenizer.add_tokens(["zither"])
    fresh.text_encoder.resize_token_embeddings(len(tokenizer))
    start_from(fresh, tokenizer, folder)
    table, before = (each.text_encoder.get_input_embeddings().weight for each in (fresh, network))
    for word in ("piano", "minor", "96", words.EOS):
        row = tokenizer.convert_tokens_to_ids(word)
        assert (table[row] == before[old[word]]).all(), word
    assert table[tokenizer.convert_tokens_to_ids("zither")].abs().sum() > 0
    own, wanted = fresh.decoder.state_dict(), network.decoder.state_dict()
    assert all((own[name] == value).all() for name, value in wanted.items())


def test_each_codebook_quantises_the_residual_of_the_ones_before() -> None:
    torch.manual_seed(0)
    quantiser, latents = Quantiser(), torch.randn(4000, 8) @ torch.randn(8, CODEBOOK_DIM)
    quantiser.init_codebooks(latents)
    codes, quantised = quantiser.eval()(latents)
    rest, energy = latents, []
    for book, found in zip(quantiser.books, codes, strict=True):
        rest = rest - book[found]
        energy.append(float(rest.square().mean()))
    assert energy == sorted(energy, reverse=True)
    assert torch.allclose(quantised, latents - rest, atol=1e-4)


def test_a_dead_code_restarts_from_a_random_latent() -> None:
    torch.manual_seed(0)
    quantiser, latents = Quantiser(), torch.randn(2000, CODEBOOK_DIM)
    quantiser.init_codebooks(latents)
    quantiser.books[0, 7] = 1e3
    quantiser.sums[0, 7] = 1e3 * quantiser.counts[0, 7]
    for _ in range(260):
        quantiser(latents[torch.randint(2000, (64,))])
    assert quantiser.books[0, 7].abs().max() < 10


def test_the_evaluation_names_tempi_in_words_that_training_does_not() -> None:
    dice = np.random.default_rng(0)
    trained = {describe(compose(seed), dice) for seed in range(2_000)}
    for wording in WORDINGS:
        for song, prompt in worded(wording, 3):
            named = wording.format(song.tempo)
            assert named in prompt
            assert prompt.count(str(song.tempo)) == 1
            assert not any(f", {named}," in f", {other}," for other in trained), named


def train_linear(folder: Path, stop_at: int | None = None) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    run = Run(folder, 20, model=model, optimiser=optimiser)
    for step in run:
        if step == stop_at:
            break
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(0.1)
        loss = (model(torch.randn(8, 4)) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 5 == 4:
            run.step += 1
            run.save()
            run.step -= 1
    return [float(value) for value in model.weight.detach().flatten()]


def test_a_resumed_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path: Path) -> None:
    train_linear(tmp_path / "stopped", stop_at=13)
    assert train_linear(tmp_path / "stopped") == train_linear(tmp_path / "whole")


def test_a_run_of_another_length_is_refused(tmp_path: Path) -> None:
    train_linear(tmp_path)
    with pytest.raises(SystemExit, match="of a run of 20 steps, not 30"):
        Run(tmp_path, 30)


@pytest.fixture(scope="module")
def nano() -> MusicgenEngine:
    return MusicgenEngine.load(resolve(NANO.id), "cpu")


@pytest.fixture(scope="module")
def network() -> Any:
    """As the library has it: the engine lays the decoder's weights so that few rows are fast, and many slow."""
    loaded: Any = MusicgenForConditionalGeneration.from_pretrained(
        resolve(NANO.id).folder, dtype=torch.float32, attn_implementation={"decoder": "sdpa"}
    )
    return loaded.eval()


def test_the_codec_reconstructs_songs(nano: MusicgenEngine) -> None:
    network = nano.network.audio_encoder
    figures = codec.measure(network, codec.quantiser_of(network), codec.render_songs(UNSEEN_SEEDS[0], 6))
    assert figures["si_sdr"] > 3.7
    assert figures["log_spectral_distance"] < 0.75
    assert figures["chroma_cosine"] > 0.95
    assert figures["codes_used"] > 0.9


def test_the_loss_of_a_song_is_lowest_with_its_own_prompt(network: Any) -> None:
    """Losses are in nats per song, over the first second, where a wrong prompt shows most."""
    songs = [compose(seed) for seed in UNSEEN_SEEDS[:8]]
    audio = torch.from_numpy(np.stack([play(song, 1.2) for song in songs]))
    tokenizer = AutoTokenizer.from_pretrained(resolve(NANO.id).folder)
    with torch.no_grad():
        found = codec.encode_to_codes(network.audio_encoder, codec.quantiser_of(network.audio_encoder), audio)
    codes = found[:, :, :FRAME_RATE]

    def loss(prompted: list[Song]) -> float:
        prompts = [request(song, np.random.default_rng(0)) for song in prompted]
        with torch.no_grad():
            each, _ = forward(network, codes, *encode_text(network, tokenizer, prompts))
        assert each.shape == codes.shape
        return float(each.sum()) / len(prompted)

    true = loss(songs)
    assert loss([replace(song, drums=not song.drums) for song in songs]) > true + 1
    faster = [replace(song, tempo=70 + (song.tempo - 35) % 71) for song in songs]
    assert loss(faster) > true + 1
    assert loss([replace(song, lead="bells" if song.lead != "bells" else "violin") for song in songs]) > true + 10


def test_the_same_seed_is_the_same_audio_and_another_is_not(nano: MusicgenEngine) -> None:
    [first], [again], [other] = (generate(nano, [("happy folk, guitar", seed)], 1.0) for seed in (1, 1, 2))
    assert first.shape == (SAMPLE_RATE,)
    assert (first == again).all()
    assert not np.array_equal(first, other)


def test_nano_plays_drums_only_if_the_prompt_asks_for_them(nano: MusicgenEngine) -> None:
    """Above 5 kHz there is hardly anything but the hiss of drums."""

    wanted = ("with drums", "with drums", "no drums", "no drums")
    made = generate(
        nano, [(f"rock, 120 bpm, {drums}, organ melody", seed % 2) for seed, drums in enumerate(wanted)], 4.0
    )

    def hiss(clips: list[Signal]) -> float:
        spectra = [np.abs(np.fft.rfft(clip)) ** 2 for clip in clips]
        return float(np.mean([power[5 * len(power) // 8 :].sum() / power.sum() for power in spectra]))

    assert hiss(made[:2]) > 3 * hiss(made[2:])


def test_nano_plays_at_the_tempo_that_the_prompt_names(nano: MusicgenEngine) -> None:
    prompted = (78, 96, 115, 134)
    clips = generate(nano, [(f"{bpm} bpm, rock, with drums, guitar melody", bpm) for bpm in prompted])
    detected = [tempo(clip) for clip in clips]
    assert sum(abs(found / bpm - 1) < TEMPO_TOLERANCE for found, bpm in zip(detected, prompted, strict=True)) >= 3, (
        detected
    )


def test_an_adapter_learns_a_song_in_a_few_steps_and_leaves_the_base_model_unchanged(
    network: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve(NANO.id).folder)
    audio = torch.from_numpy(play(compose(UNSEEN_SEEDS[0]), 1.0))[None]
    with torch.no_grad():
        codes = codec.encode_to_codes(network.audio_encoder, codec.quantiser_of(network.audio_encoder), audio)
    prompts, keep = ["my song"], torch.ones(1)
    base = {name: value.clone() for name, value in network.state_dict().items()}

    def loss() -> torch.Tensor:
        return codebook_losses(network, tokenizer, codes, prompts, keep).mean()

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
    assert all((value == base[name]).all() for name, value in network.state_dict().items())


def test_a_studio_makes_the_same_audio_as_the_engine_alone(nano: MusicgenEngine, tmp_path: Path) -> None:
    running = Running(tmp_path / "data", TEXT2SONG_MODEL=NANO.id)
    running.wait_until_ready()
    too_long = running.http.post("/generate", json={"prompt": "x", "duration": 301})
    assert "text2song/musicgen-nano makes from 0.5 s to 300 s" in too_long.json()["detail"]
    prompt = {"prompt": "jazz, 100 bpm, trumpet melody, with drums", "seed": 5, "duration": 2}
    url = f"/jobs/{running.http.post('/generate', json=prompt).json()['job_id']}"
    job = eventually_sync(lambda: (found := running.http.get(url).json())["status"] == "completed" and found)
    stream = running.http.get(f"/audio/{job['sample_ids'][0]}/stream", params={"format": "wav"})
    audio, rate = soundfile.read(io.BytesIO(stream.content), dtype="float32")
    assert (rate, len(audio)) == (SAMPLE_RATE, 2 * SAMPLE_RATE)
    assert running.stop() == 0
    [made] = generate(nano, [(str(prompt["prompt"]), 5)], 2.0)
    alike = np.dot(audio, made) / (np.linalg.norm(audio) * np.linalg.norm(made))
    assert alike > 0.99
