"""The command line as a person uses it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from domain.models import NOISE
from infra.cli import generate
from tests import adapter as made_adapter
from tests.conditions import eventually_sync
from tests.local.conftest import Running
from text2song.client import ClientError


def text2song(
    *arguments: str, cwd: Path, sent: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`sent` is its standard input. The program is that of this folder, wherever another one is installed from."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'infra' / 'sdk'}", **environment},
        input=sent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_generate_saves_what_a_running_studio_makes(studio: Running, tmp_path: Path) -> None:
    done = text2song(
        "generate", "Rain, on a [tin] roof!", "--url", studio.url, "--samples", "2", "--duration", "1", "--seed", "3",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("rain-on-a-tin-roof-*.wav"))
    assert len(files) == 2
    for number, file in enumerate(files):
        assert soundfile.info(file).duration == 1
        assert f"{file.name}  1.00 s, 32 kHz" in done.stdout
        assert f"seed {3 + number}" in done.stdout
    assert "Rain, on a [tin] roof!" in done.stdout
    assert "noise" in done.stdout
    assert re.search(r"\d s  completed  version \d", done.stdout)


def test_generate_says_why_a_request_was_refused(studio: Running, tmp_path: Path) -> None:
    done = text2song("generate", "x", "--url", studio.url, "--duration", "301", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("text2song: The requested duration is 301 s; text2song/wiring-noise makes from 0.5 s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--duration", "nan"), "The request cannot be written as JSON"),
        (("--lyrics", "[verse] la la la"), "text2song/wiring-noise does not sing"),
        (("--parameter", "bpm=90"), "'bpm' is no parameter of text2song/wiring-noise; it takes none."),
        (("--parameter", "bpm"), "--parameter bpm is not of the form NAME=VALUE; write such as bpm=90."),
        (
            ("--lyrics", "verses.txt"),
            "There is no file verses.txt. Give one with the lyrics, or the lyrics themselves.",
        ),
        (("--model", "nobody/knows"), "Model nobody/knows is unknown"),
        (("--output", "/dev/null/here"), "The folder /dev/null/here cannot be made"),
        (("--url", "http://[::1"), "is no URL"),
    ],
)
def test_generate_answers_mistakes_with_a_sentence(
    studio: Running, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = text2song("generate", "x", "--url", studio.url, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_lyrics_are_those_of_a_file_or_the_text_itself_and_parameters_what_they_say(tmp_path: Path) -> None:
    file = tmp_path / "my verses.txt"
    file.write_bytes("\ufeff[verse]\nGroße Träume".encode())
    assert generate.lyrics(str(file)) == "[verse]\nGroße Träume"
    for text in ("[verse]\nla", "la", "la " * 100, "[verse]/[chorus] la.la"):
        assert generate.lyrics(text) == text
    file.write_bytes(b"\xff")
    with pytest.raises(ClientError, match=r"are not UTF-8 \(byte 0xff\)"):
        generate.lyrics(str(file))
    with pytest.raises(ClientError, match="cannot be read: Is a directory"):
        generate.lyrics(str(tmp_path))
    given = (
        "bpm=90",
        "shift=2.5",
        "loop=true",
        "key=C major",
        'negative_prompt="90"',
        "prompt_b=a=b",
        "key=[1]",
        "key=",
    )
    assert [generate.parameter(each) for each in given] == [
        ("bpm", 90),
        ("shift", 2.5),
        ("loop", True),
        ("key", "C major"),
        ("negative_prompt", "90"),
        ("prompt_b", "a=b"),
        ("key", "[1]"),
        ("key", ""),
    ]


def test_generate_says_how_to_start_a_studio_where_there_is_none(tmp_path: Path) -> None:
    done = text2song("generate", "x", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1
    assert "No studio answers at http://127.0.0.1:9" in done.stderr
    assert "text2song up" in done.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"TEXT2SONG_MODEL": "facebook/musicgen-small", "HF_HOME": "nowhere"},
            "text2song models pull facebook/musicgen",
        ),
        ({"TEXT2SONG_MODEL": "./missing"}, "./missing"),
        ({"TEXT2SONG_PORT": "many"}, "TEXT2SONG_PORT is 'many'"),
        ({"TEXT2SONG_DATA": "/dev/null/data"}, "The data folder /dev/null/data cannot be made"),
        ({"TEXT2SONG_HOST": "192.0.2.1"}, "Cannot listen on 192.0.2.1"),
    ],
)
def test_up_ends_with_a_sentence_where_it_cannot_start(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    done = text2song("up", cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "environment", "words"),
    [
        *(
            (
                command,
                {"TEXT2SONG_LOG": "kafka://localhost:9", "TEXT2SONG_KAFKA_SECURITY": "SASL_PLAINTEXT"},
                "TEXT2SONG_KAFKA_SECURITY is 'SASL_PLAINTEXT': it needs a login. Set TEXT2SONG_KAFKA_USERNAME",
            )
            for command in ("api", "project")
        ),
        *(
            (command, {"TEXT2SONG_LOG": "kafka://localhost:abc"}, "TEXT2SONG_LOG is 'kafka://localhost:abc': it names")
            for command in ("api", "project", "work")
        ),
        (
            "api",
            {"TEXT2SONG_STORE": "mongodb://ann:hunter2@hunter2@host/db"},
            "TEXT2SONG_STORE is 'mongodb://ann:********@host/db': The MongoDB address host cannot be used: Username",
        ),
        (
            "work",
            {"TEXT2SONG_STORE": "mongodb+srv://127.0.0.1"},
            "TEXT2SONG_STORE is 'mongodb+srv://127.0.0.1': The MongoDB address 127.0.0.1 cannot be used: Invalid",
        ),
        (
            "work",
            {"TEXT2SONG_STORE": "mongodb://host:99999"},
            "TEXT2SONG_STORE is 'mongodb://host:99999': The MongoDB address host:99999 cannot be used: Port must be",
        ),
        (
            "api",
            {"TEXT2SONG_OBJECTS": "s3://bucket", "TEXT2SONG_S3_ENDPOINT": "http://foo bar"},
            "TEXT2SONG_S3_ENDPOINT is 'http://foo bar': it names no server. Write http://host:port",
        ),
    ],
)
def test_an_address_that_cannot_be_used_ends_a_role_with_one_sentence(
    tmp_path: Path, command: str, environment: dict[str, str], words: str
) -> None:
    done = text2song(command, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert words in done.stderr
    assert re.fullmatch(r"text2song: TEXT2SONG_.*\.\n", done.stderr)
    assert "hunter2" not in done.stdout + done.stderr


def test_up_refuses_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = text2song("up", "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert done.returncode == 1
    assert "Choose another with --host or --port." in done.stderr


def test_a_studio_stopped_by_ctrl_c_ends_cleanly_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A job in hand goes back to the queue, and a follower's stream ends instead of holding the server up."""
    first = Running(tmp_path / "data")
    first.wait_until_ready()
    # More than there are rows, so that some samples are made and others are not.
    first.http.post("/generate", json={"prompt": "x", "duration": 4, "num_samples": 8})
    job_id = first.http.post("/generate", json={"prompt": "x", "duration": 2, "num_samples": 16}).json()["job_id"]
    eventually_sync(lambda: first.http.get(f"/jobs/{job_id}").json()["sample_ids"])
    with first.http.stream("GET", f"/jobs/{job_id}/events") as stream:
        assert next(stream.iter_lines())
        assert first.stop(signal.SIGINT) == 0
    assert "Traceback" not in first.errors()
    second = Running(tmp_path / "data")
    job = second.http.get(f"/jobs/{job_id}").json()
    assert job["status"] in {"queued", "processing"}
    made = eventually_sync(
        lambda: (found := second.http.get(f"/jobs/{job_id}").json())["status"] == "completed" and found
    )
    assert (len(made["sample_ids"]), made["attempt"]) == (16, 2)
    assert second.stop() == 0
    assert second.errors() == first.errors()


def test_models_list_shows_whole_names_and_marks_the_active_one(tmp_path: Path) -> None:
    done = text2song("models", "list", cwd=tmp_path, COLUMNS="60")
    assert done.returncode == 0
    (active,) = [line for line in done.stdout.splitlines() if "*" in line]
    assert "text2song/wiring-noise" in active
    assert "facebook/musicgen-stereo-large" in done.stdout
    assert done.stdout.count("best_of, melody") == 4
    assert "noise" in done.stdout


def test_models_check_measures_a_model_and_says_why_one_cannot_be_used(tmp_path: Path) -> None:
    done = text2song("models", "check", NOISE.id, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"samples at once +│ [1-9]", done.stdout)
    assert re.search(r"one sample of 1 s +│ [0-9.]+ s of audio a second", done.stdout)
    taken = re.search(r"memory, at the most +│ ([0-9.]+) GB", done.stdout)
    assert taken is not None
    assert 0.1 < float(taken[1]) < 10  # torch alone takes some of it
    refused = text2song("models", "check", "nobody/here", cwd=tmp_path)
    assert (refused.returncode, "Model nobody/here is not on this machine." in refused.stderr) == (1, True)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_contract_export_writes_the_committed_files_byte_for_byte(tmp_path: Path, seed: str) -> None:
    done = text2song("contract", "export", "out/there", cwd=tmp_path, PYTHONHASHSEED=seed)
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path / "out/there"): path for path in (tmp_path / "out/there").rglob("*.json")}
    assert f"{len(written)} files are in out/there" in done.stdout
    committed = Path(__file__).parents[1] / "golden" / "contract"
    assert {name: path.read_bytes() for name, path in written.items()} == {
        path.relative_to(committed): path.read_bytes() for path in committed.rglob("*.json")
    }


def test_rebuild_says_how_views_on_sqlite_are_folded_anew(tmp_path: Path) -> None:
    done = text2song("rebuild", "jobs", cwd=tmp_path)
    assert done.returncode == 1
    assert "stop the studio, delete text2song-data/views.db" in done.stderr


def test_contract_export_says_why_it_cannot_write(tmp_path: Path) -> None:
    done = text2song("contract", "export", "/dev/null/here", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "text2song: The contract cannot be written to /dev/null/here: Not a directory.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        *(
            (name,)
            for name in (
                *("up", "api", "project", "work", "rebuild", "purge", "generate", "rate", "listen"),
                *("demo", "settings", "backup"),
            )
        ),
        ("restore",),
        *(("models", name) for name in ("list", "pull", "check")),
        *(("servers", name) for name in ("up", "down", "status")),
        ("contract", "export"),
    ],
)
def test_every_command_explains_itself(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = text2song(*arguments, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_an_adapter_is_registered_and_listed(studio: Running, tmp_path: Path) -> None:
    made_adapter.write(tmp_path / "brushes")
    named = ("--name", "brushes", "--version", "1.0.0", "--description", "soft drums")
    added = text2song("adapters", "add", "brushes", *named, "--url", studio.url, cwd=tmp_path)
    assert added.returncode == 0, added.stderr
    assert added.stdout.startswith(f"Adapter brushes 1.0.0 of {NOISE.id}, rank 2, is ")
    listed = text2song("adapters", "list", "--url", studio.url, cwd=tmp_path, COLUMNS="200")
    assert re.search(r"│ \* +│ brushes 1\.0\.0 ", listed.stdout), listed.stdout
    (tmp_path / "brushes" / "adapter_model.safetensors").write_bytes(b"PK\3\4 and more")
    refused = text2song("adapters", "add", "brushes", *named, "--url", studio.url, cwd=tmp_path)
    assert (refused.returncode, "is a ZIP archive, as torch.save writes" in refused.stderr) == (1, True)
    missing = text2song("adapters", "add", "nowhere", *named, "--url", studio.url, cwd=tmp_path)
    assert "cannot be read: No such file or directory. Name the folder that PEFT's" in missing.stderr
