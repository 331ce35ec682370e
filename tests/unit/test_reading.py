"""What is said of a prompt that the model does not read as a whole."""

import pytest

from domain.events.prompts import PromptAttributes
from domain.models import NANO, NOISE
from domain.reading import Reader, Reading, tempo_warnings, warnings, with_unit, wording
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.nano.songs import MAX_TEMPO, MIN_TEMPO
from workers.engines.reading import PROMPT_TOKENS, reader


@pytest.fixture(scope="module")
def read() -> Reader:
    found = reader(resolve(NANO.id))
    assert found is not None
    return found


def test_a_prompt_that_is_read_as_a_whole_needs_no_warning(read: Reader) -> None:
    for prompt in ("slow piano ballad", "Jazz, 100 BPM, trumpet melody -- with drums!"):
        assert warnings("nano", read(prompt)) == [], prompt


@pytest.mark.parametrize("prompt", ["快乐的钢琴曲", "грустная скрипка", "عزف عود حزين", "🎵🎶🎸", "!!!", "qwertz"])
def test_a_prompt_of_which_nothing_is_read_is_named_as_such(read: Reader, prompt: str) -> None:
    [warning] = warnings("nano", read(prompt))
    assert warning.startswith("nano can read nothing of this prompt")


def test_words_that_are_not_known_are_named(read: Reader) -> None:
    [warning] = warnings("nano", read("sad sitar, and (zither); sitar 🎸 violin"))
    assert warning == "nano does not know “sitar”, “zither”, “🎸”, and makes the music from the other words."
    [warning] = warnings("nano", read("piano " + " ".join(f"word{letter * 3}" for letter in "abcdefgh")))
    assert "“wordeee” and 3 more words" in warning


def test_what_is_left_out_of_a_long_prompt_is_named(read: Reader) -> None:
    fits = " ".join(["piano"] * (PROMPT_TOKENS - 1))
    assert warnings("nano", read(fits)) == []
    [warning] = warnings("nano", read(f"{fits} violin and harp"))
    assert warning == "The prompt is too long for nano, which reads nothing from “violin and harp” on."


@pytest.mark.parametrize(
    ("prompt", "outside"),
    [
        ("piano, 70 bpm", []),
        ("techno at 174bpm, drums", [174]),
        ("TEMPO: 65", [65]),
        ("its tempo is 65", [65]),
        ("tempo of 180, later 180 beats per minute, at last 40 bpm", [180, 40]),
        ("bpm 141, in 4/4", [141]),
        ("69.5 BPM", [69]),
        ("a 1000-bpm joke", [1000]),
        ("174 violins in 1985", []),
        ("", []),
    ],
)
def test_a_tempo_that_a_model_does_not_play_is_named(prompt: str, outside: list[int]) -> None:
    said = tempo_warnings("nano", (70, 140), prompt)
    assert said == [f"nano plays 70 to 140 beats a minute, not {', '.join(map(str, outside))}."] * bool(outside)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("its tempo is 96", "its tempo is 96, 96 bpm"),
        ("Tempo 120! drums", "Tempo 120! drums, 120 bpm"),
        ("tempo: 96 bpm", "tempo: 96 bpm"),
        ("BPM=96", "BPM=96"),
        ("96 beats a minute", "96 beats a minute"),
        ("a fast tempo, 12 violins", "a fast tempo, 12 violins"),
    ],
)
def test_a_tempo_without_its_unit_is_read_with_it(prompt: str, read: str) -> None:
    assert with_unit(prompt) == read


def test_a_prompt_of_many_tempi_has_one_warning() -> None:
    [said] = tempo_warnings("nano", (70, 140), ", ".join(f"{tempo} bpm" for tempo in range(1, 60)))
    assert said == "nano plays 70 to 140 beats a minute, not 1, 2, 3, 4, 5 and 54 more."


def test_nano_plays_the_tempi_of_its_songs() -> None:
    assert NANO.tempi == (MIN_TEMPO, MAX_TEMPO)


def test_a_model_without_a_tokenizer_of_its_own_is_not_judged() -> None:
    assert reader(resolve(NOISE.id)) is None


def test_a_reading_of_no_words_reads_nothing() -> None:
    assert len(warnings("nano", Reading(words=()))) == 1


@pytest.mark.parametrize(
    ("text", "attributes", "words"),
    [
        ("rain", PromptAttributes(), "rain"),
        (
            "rain",
            PromptAttributes(style="jazz", tempo="60 bpm", mood="sad", instrumentation=("violin", "piano")),
            "rain, jazz, sad, violin, piano, 60 bpm",
        ),
        ("Sad JAZZ", PromptAttributes(style="jazz", mood="sad", tempo=" "), "Sad JAZZ"),
        ("rain", PromptAttributes(duration=8), "rain"),
    ],
)
def test_attributes_are_put_in_words(text: str, attributes: PromptAttributes, words: str) -> None:
    assert wording(text, attributes) == words
