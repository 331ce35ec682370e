"""An ordered stop, whatever signal carries it, to whomever, and whenever: the exit code is 0 and no attempt counts."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.storage.sqlite_log import SqliteLog
from tests import audit
from tests.conditions import eventually_sync
from tests.local.conftest import Running


def members(pid: int) -> list[int]:
    """The process and those that it started, deepest first, as a service manager finds them in the unit."""
    listings = Path(f"/proc/{pid}/task").glob("*/children")  # each thread's own
    children = [int(child) for listing in listings for child in listing.read_text().split()]
    return [member for child in children for member in members(child)] + [pid]


def signal_all(studio: Running, number: int) -> None:
    for pid in members(studio.process.pid):
        os.kill(pid, number)


def has_child(studio: Running) -> bool:
    return len(members(studio.process.pid)) > 2  # the tracker of multiprocessing is one of them


async def ending(data: Path, job_id: str) -> tuple[str, int, int]:
    """The job's status in the log, its attempts, and how many of them failed."""
    log = await SqliteLog.open(data / "events.db")
    job, _ = (await audit.jobs(log))[job_id]
    await log.close()
    return job.status, job.attempt, job.failures + job.lost


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_stop_of_every_process_gives_the_job_back(tmp_path: Path, number: int) -> None:
    studio = Running(tmp_path / "data")
    job_id = studio.http.post("/generate", json={"prompt": "x", "duration": 30, "num_samples": 16}).json()["job_id"]
    eventually_sync(lambda: studio.http.get(f"/jobs/{job_id}").json()["progress"])
    signal_all(studio, number)
    assert studio.stop(number) == 0, studio.errors()
    assert studio.errors() == ""
    assert await ending(tmp_path / "data", job_id) == ("queued", 1, 0)


@pytest.mark.parametrize("moment", [lambda _: None, lambda studio: eventually_sync(lambda: has_child(studio))])
def test_a_stop_ends_a_studio_cleanly_while_it_starts_and_while_the_model_is_loaded(
    tmp_path: Path, moment: Callable[[Running], object]
) -> None:
    studio = Running(tmp_path / "data")
    moment(studio)
    signal_all(studio, signal.SIGTERM)
    assert studio.stop(signal.SIGHUP) == 0, studio.errors()
    assert studio.errors() == ""


def test_a_worker_whose_terminal_goes_away_stops_cleanly_before_its_model_is_there(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "work"],
        env={**os.environ, "TEXT2SONG_DATA": str(tmp_path / "data")},
        stdout=end,
        stderr=end,
    ) as worker:
        os.close(end)
        assert os.read(terminal, 1000).startswith(b"Generating")
        os.close(terminal)
        worker.send_signal(signal.SIGHUP)
        try:
            assert worker.wait(timeout=30) == 0
        finally:
            worker.kill()


STUBBORN = """
import asyncio
from infra.cli import console

console.REPEATED_SECONDS = {seconds}

async def stubborn():
    print("running", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("clearing up", flush=True)
        await asyncio.sleep({clearing_up})

console.run(lambda: console.run_role(stubborn()))
"""


def stubborn(seconds: float, clearing_up: float) -> "subprocess.Popen[str]":
    """A role that takes its time; a signal within so many seconds of the first is taken for the same one."""
    script = STUBBORN.format(seconds=seconds, clearing_up=clearing_up)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_signal_that_comes_several_times_is_one_order() -> None:
    with stubborn(60, 0.2) as role:
        assert role.stdout is not None
        assert role.stdout.readline() == "running\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            role.send_signal(number)
        assert role.stdout.read() == "Stopping … (Ctrl-C again stops at once)\nclearing up\n"
        assert role.wait(timeout=20) == 0


def test_ctrl_c_again_stops_at_once() -> None:
    with stubborn(0, 600) as role:
        assert role.stdout is not None
        assert role.stdout.readline() == "running\n"
        role.send_signal(signal.SIGTERM)
        assert role.stdout.readline().startswith("Stopping")
        assert role.stdout.readline() == "clearing up\n"
        role.send_signal(signal.SIGINT)
        assert role.wait(timeout=20) == 130
