"""The command line where standard streams are closed, full or not UTF-8, and paths are not what they seem."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.conditions import eventually_sync
from tests.local.conftest import Running
from tests.local.test_cli import text2song

COMMAND = [sys.executable, "-m", "infra.cli"]


def under_shell(script: str, *arguments: str | bytes, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """The script has the command and the arguments as its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    whole: Sequence[str | bytes] = ["/bin/sh", "-c", script, "sh", *COMMAND, *arguments]
    return subprocess.run(whole, cwd=cwd, env=environment, capture_output=True, timeout=60, check=False)


def test_generate_on_a_terminal_that_is_not_utf8_saves_all_the_same(studio: Running, tmp_path: Path) -> None:
    done = text2song(
        "generate", "日本 piano", "--url", studio.url, "--duration", "0.5", cwd=tmp_path, PYTHONIOENCODING="latin-1"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Prompt: ?? piano" in done.stdout
    assert len(list(tmp_path.glob("*.wav"))) == 1


def test_a_studio_runs_and_stops_on_a_terminal_that_is_not_utf8(tmp_path: Path) -> None:
    running = Running(tmp_path / "[b] 日本", PYTHONIOENCODING="latin-1")
    assert running.process.stdout is not None
    assert running.process.stdout.readline().rstrip().endswith(f"everything is kept in {tmp_path}/[b] ??")
    assert running.stop() == 0
    assert running.errors() == ""


def test_a_studio_serves_with_standard_output_closed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@" >&- <&-', "sh", *COMMAND, "up", "--port", str(port), "--data", "data"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=errors,
        )

    def is_live() -> bool:
        assert process.poll() is None, (tmp_path / "errors").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/live", trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        eventually_sync(is_live)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.parametrize(
    ("script", "code", "errors"),
    [
        ('"$@" >&-', 0, b""),
        ('"$@" <&- >&- 2>&-', 0, b""),
        ('"$@" >/dev/full', 1, b"Error: Standard output cannot be written: No space left on device.\n"),
        ('{ "$@"; echo $? >code; } | true; read code <code; exit $code', 0, b""),
    ],
)
def test_a_table_that_nobody_can_read_is_no_traceback(tmp_path: Path, script: str, code: int, errors: bytes) -> None:
    done = under_shell(script, "settings", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, errors)


def test_odd_bytes_and_brackets_in_settings_are_shown(tmp_path: Path) -> None:
    done = under_shell(
        'TEXT2SONG_S3_REGION="[/red]" TEXT2SONG_DATA=$4 "$1" "$2" "$3" settings', b"caf\xe9", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert b"caf?" in done.stdout
    assert b"[/red]" in done.stdout


def test_a_data_folder_of_odd_bytes_ends_with_a_sentence(tmp_path: Path) -> None:
    done = under_shell('"$@"', "up", "--port", "0", "--data", b"caf\xe9", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        b"text2song: The data folder caf\\udce9 cannot be used: its name is not UTF-8. Choose another with --data.\n"
    )


def test_a_prompt_of_odd_bytes_ends_with_a_sentence(studio: Running, tmp_path: Path) -> None:
    done = under_shell('"$@"', "generate", b"caf\xe9", "--url", studio.url, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == b"text2song: The request has bytes that are not UTF-8. Write it in UTF-8.\n"


def test_home_is_expanded_where_the_shell_left_it(tmp_path: Path) -> None:
    done = text2song("contract", "export", "~/out/[b]", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"are in {tmp_path}/home/out/[b]")
    assert (tmp_path / "home" / "out" / "[b]" / "asyncapi.json").exists()
    lost = text2song("contract", "export", "~nobody-here/out", cwd=tmp_path)
    assert lost.returncode == 2
    assert "'~nobody-here/out': there is no such home folder. Write the whole path." in lost.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
