"""`text2song generate --file`: many prompts at once."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import soundfile

from infra.cli import batch
from infra.cli.batch import Line
from infra.cli.downloads import Downloads
from tests.local.conftest import Running
from tests.local.test_cli import text2song
from text2song.client import ClientError

MUSIC = """
# the first set
Rain, on a [tin] roof!

静かなピアノ、雨の夜
  # not yet: hail
Rain, on a [tin] roof!\r
""".encode("utf-8-sig")


def generate(
    studio: Running, cwd: Path, file: str = "prompts.txt", sent: str | None = None
) -> "subprocess.CompletedProcess[str]":
    arguments = ("generate", "--file", file, "--url", studio.url, "--duration", "0.5")
    return text2song(*arguments, cwd=cwd, sent=sent)


def test_every_line_is_made_and_saved_under_its_own_name(studio: Running, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(MUSIC)
    done = generate(studio, tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in tmp_path.glob("*.wav"))
    assert [re.sub(r"-[0-9a-f]{6}-0\.wav$", "", name) for name in files] == [
        "rain-on-a-tin-roof",
        "rain-on-a-tin-roof",
        "静かなピアノ-雨の夜",
    ]
    assert all(soundfile.info(tmp_path / name).duration == 0.5 for name in files)
    assert all(f"{name}  0.50 s, 32 kHz" in done.stdout for name in files)
    assert "Made all 3 prompts." in done.stdout


def test_prompts_are_read_from_standard_input(studio: Running, tmp_path: Path) -> None:
    done = generate(studio, tmp_path, "-", sent="hail")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("hail-*.wav"))) == 1


def test_the_exit_code_tells_of_a_prompt_that_was_refused_and_the_others_are_made(
    studio: Running, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text(f"hail\n{'x' * 4001}\nrain\n")
    done = generate(studio, tmp_path)
    assert done.returncode == 1
    assert "Line 2 was not made: The prompt has 4,001 characters; the limit is 4,000." in done.stdout
    assert done.stderr == "text2song: Of 3 prompts, 1 could not be made; the reasons are above.\n"
    assert len(list(tmp_path.glob("*.wav"))) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rain\nsn\xf6w\n", "Line 2 of prompts.txt is not UTF-8 (byte 0xf6). Save the file as UTF-8."),
        ("rain".encode("utf-16"), "Line 1 of prompts.txt is not UTF-8 (byte 0xff)."),
        (b"\n# none\n", "prompts.txt has no prompts. Write one on each line; lines that begin with # do not count."),
    ],
)
def test_a_file_without_prompts_in_utf8_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ClientError, match=re.escape(words)):
        batch.read("prompts.txt", content)


def test_lines_end_as_on_any_system_and_keep_their_numbers() -> None:
    assert batch.read("-", b"a\r\nb\rc\n\nd\xe2\x80\xa8e") == [
        Line(1, "a"),
        Line(2, "b"),
        Line(3, "c"),
        Line(5, "d\u2028e"),
    ]


@pytest.mark.parametrize("arguments", [(), ("rain", "--file", "prompts.txt")])
def test_one_prompt_or_a_file_is_asked_for(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "prompts.txt").touch()
    done = text2song("generate", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Give either PROMPT or --file" in done.stderr


def test_without_a_studio_one_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("rain\nhail\n")
    done = text2song("generate", "--file", "prompts.txt", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch("text2song: No studio answers at http://127.0.0.1:9 .*\n", done.stderr)


def test_ctrl_c_leaves_the_jobs_to_the_studio_and_names_them(studio: Running, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("rain\nhail\n")
    command = ["generate", "--file", "prompts.txt", "--url", studio.url, "--duration", "30", "--samples", "16"]
    with subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert list(iter(running.stdout.readline, "Submitted 2 prompts.\n"))
        running.send_signal(signal.SIGINT)
        said = running.stdout.read()
    assert running.returncode == 130
    cancelling = rf"  curl -s -X DELETE '({re.escape(studio.url)}/generate/){{([0-9a-f,-]{{73}})}}'"
    found = re.search(f"A running studio goes on with 2 jobs. This cancels them:\n{cancelling}", said)
    assert found
    for job_id in found[2].split(","):
        assert httpx.delete(found[1] + job_id, trust_env=False).is_success


def test_no_file_takes_the_name_of_another(tmp_path: Path) -> None:
    downloads = Downloads(tmp_path, "wav")
    (tmp_path / "rain-000001-1.wav").touch()
    names = [downloads._free("rain", f"{job}-000001", index).name for job in "ab" for index in (0, 1)]
    assert names == ["rain-000001-0.wav", "rain-a-000001-1.wav", "rain-b-000001-0.wav", "rain-b-000001-1.wav"]
