"""What is said of a prompt that the model does not read as a whole."""

import pytest

from domain.events.prompts import PromptAttributes
from domain.models import NANO, NOISE
from domain.reading import Reader, Reading, warnings, wording
from workers.engines.checkpoints import resolve
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
