"""Sixteen jobs through a whole studio, from HTTP to stored FLAC, against an earlier commit's studio in turn.

Each job is one clip of 8 s by `musicgen-nano`. The variables: ROUNDS, JOBS, SECONDS, and COMMIT, which is checked out
into a temporary folder and run with the same libraries.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from domain.models import NANO

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = int(os.environ.get("ROUNDS", "2"))
JOBS: Final = int(os.environ.get("JOBS", "16"))
SECONDS: Final = float(os.environ.get("SECONDS", "8"))
COMMIT: Final = os.environ.get("COMMIT", "4477b25")
PROMPT: Final = "warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm"


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    git = ["git", "-C", str(ROOT)]
    made = subprocess.run([*git, "worktree", "add", "--detach", folder, commit], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"commit {commit} cannot be checked out: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", folder], capture_output=True, check=True)


@contextmanager
def studio(tree: Path, data: Path) -> Iterator[httpx.Client]:
    """A running one, once its model is loaded."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "TEXT2SONG_MODEL": NANO.id}
    command = [sys.executable, "-m", "infra.cli", "up", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = re.search(r"http://\S+[0-9]", process.stdout.readline())
            assert url is not None
            with httpx.Client(base_url=url[0], timeout=30, trust_env=False) as http:
                make(http, 1, 1)
                yield http
        finally:
            process.terminate()


def make(http: httpx.Client, jobs: int, seconds: float) -> float:
    """Audio seconds a second, from the first request until every FLAC can be had."""
    began = time.monotonic()
    body = {"prompt": PROMPT, "duration": seconds}
    waiting = [http.post("/generate", json={**body, "seed": seed}).json()["job_id"] for seed in range(jobs)]
    while waiting:
        time.sleep(0.1)
        job = http.get(f"/jobs/{waiting[0]}").json()
        assert job["status"] in {"queued", "processing", "completed"}, job["error"]
        if job["status"] == "completed":
            assert http.get(f"/audio/{job['sample_ids'][0]}/stream").status_code == httpx.codes.OK
            waiting.pop(0)
    return jobs * seconds / (time.monotonic() - began)


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        then = stack.enter_context(checked_out(COMMIT, folder / "then"))
        print(f"{JOBS} jobs of {SECONDS:g} s, audio seconds a second: now   at {COMMIT}   ratio")
        for number in range(ROUNDS):
            speeds = []
            for name, tree in (("now", ROOT), (COMMIT, then)):
                with studio(tree, folder / f"{name}-{number}") as http:
                    speeds.append(make(http, JOBS, SECONDS))
            now, before = speeds
            print(f"{now:45.2f} {before:12.2f} {now / before:7.2f}x", flush=True)
