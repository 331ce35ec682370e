import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.file_names import file_name, stem


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Rain, on a [tin] roof!", "rain-on-a-tin-roof"),
        ("warm lo-fi track with a piano melody, soft guitar chords", "warm-lo-fi-track-with-a-piano-melody-sof"),
        ("Größe und Übermut", "größe-und-übermut"),
        ("静かなピアノ、雨の夜", "静かなピアノ-雨の夜"),
        ("блюз в 3 часа ночи", "блюз-в-3-часа-ночи"),
        ("धीमा राग", "धीमा-राग"),
        ("cafe\u0301", "caf\u00e9"),
        ("../../etc/passwd", "etc-passwd"),
        ("a\u202egnp.exe", "a-gnp-exe"),
        ("\ud800", "music"),
        ("♫ 🎛", "music"),
    ],
)
def test_a_name_keeps_the_words_of_its_prompt_in_any_script(prompt: str, name: str) -> None:
    assert stem(prompt) == name


@given(st.text(max_size=4000))
def test_every_file_system_takes_the_name_of_any_prompt(prompt: str) -> None:
    name = file_name(prompt, "85883138-3620-5f75-af1a-649a8bd188f8", 15, "flac", digits=36)
    assert len(name.encode()) <= 143
    assert name.endswith("-85883138-3620-5f75-af1a-649a8bd188f8-15.flac")
    assert not set(name) & set('<>:"/\\|?*\0 ')
    assert name[0] not in "-. "
    assert all(sign.isprintable() for sign in name)
