"""A fuzzer's requests, all of them made by the OpenAPI document, and every answer held to it.

    EXAMPLES=150 .venv/bin/python -m pytest -s tests/local/test_schemathesis.py

sends over 10,000 requests in each mode; with PATHS, a regular expression, to those addresses alone. `/events` is left
out, as it never ends; of other streams the fuzzer reads the first events.
"""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import soundfile

from tests.conditions import eventually_sync
from tests.local.conftest import Running

EXAMPLES: Final = int(os.environ.get("EXAMPLES", "1"))
PATHS: Final = os.environ.get("PATHS", "")
PHASES: Final = "examples,coverage,fuzzing,stateful" if EXAMPLES > 1 else "examples,fuzzing"
ROOT: Final = Path(__file__).parents[2]
# A schema cannot tell that two fields exclude each other, that no worker has a model, or that no page gave a cursor.
CONFIG: Final = """
max-stream-events = 5
# A busy machine takes its time for what is described when it is first asked for.
request-timeout = 120
[checks]
max_response_time = 60
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "410", "422", "429", "503"]
"""
# Seed 002 wants 503 for a model that no worker has.
AWAY: Final = """
[[operations]]
include-operation-id = "generateAudio"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
"""
KEY: Final = """
[auth.openapi.key]
api_key = "{key}"
"""


class Fuzzed:
    """A studio with something of every kind in it."""

    def __init__(self, studio: Running) -> None:
        self.studio = studio
        self.key: str | None = None

    def close(self) -> None:
        """From now on it has keys."""
        self.key = self._post("/keys", {"owner": "ann", "scopes": ["admin"]})["key"]
        self.studio.http.headers["X-API-Key"] = self.key

    def fill(self) -> dict[str, str]:
        """An id of each kind, by the names that paths give them."""
        job_id = self._post("/generate", {"prompt": "slow blues", "duration": 0.5, "num_samples": 2})["job_id"]
        prompt_id = self._post("/prompts", {"text": "fast jazz"})["id"]
        test_id = self._post("/ab-tests", {"name": "a", "prompts": ["slow"], "duration": 0.5})["id"]
        eventually_sync(lambda: self._get(f"/jobs/{job_id}")["status"] == "completed")
        sample_id = self._get(f"/jobs/{job_id}")["sample_ids"][0]
        feedback_id = self._post("/feedback", {"audio_id": sample_id, "rating": 4})["id"]
        dataset_id = self._post("/datasets", {"name": f"of {job_id}", "type": "supervised"})["id"]
        eventually_sync(lambda: self._get(f"/datasets/{dataset_id}")["status"] == "built")
        self._post(f"/datasets/{dataset_id}/export", {"format": "supervised"})
        eventually_sync(lambda: self._get(f"/ab-tests/{test_id}")["status"] == "ready")
        trial_id = self._get(f"/ab-tests/{test_id}/next?voter=ann")["trial_id"]
        sound = io.BytesIO()
        soundfile.write(sound, np.zeros(8000), 8000, format="WAV")
        melody = self.studio.http.post("/melodies", files={"file": sound.getvalue()}).raise_for_status().json()
        return {
            "melody_id": melody["id"],
            "job_id": job_id,
            "track_id": job_id,
            "audio_id": job_id,
            "prompt_id": prompt_id,
            "sample_id": sample_id,
            "feedback_id": feedback_id,
            "ab_test_id": test_id,
            "dataset_id": dataset_id,
            "trial_id": trial_id,
            "file_name": f"{sample_id}.mp3",
            "export_format": "supervised",
        }

    def _get(self, path: str) -> Any:
        return self.studio.http.get(path).raise_for_status().json()

    def _post(self, path: str, body: Any) -> Any:
        return self.studio.http.post(path, json=body).raise_for_status().json()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    running = Running(
        tmp_path_factory.mktemp("fuzzed") / "data",
        TEXT2SONG_READ_LIMIT="off",
        TEXT2SONG_WRITE_LIMIT="off",
        TEXT2SONG_OPEN_JOBS="1000000",
        TEXT2SONG_TRACK_SECONDS="0.2",
    )
    running.wait_until_ready()
    yield Fuzzed(running)
    assert running.stop() == 0, running.errors()
    assert "Traceback" not in running.errors(), running.errors()


def test_an_open_studio_answers_as_documented(fuzzed: Fuzzed, tmp_path: Path) -> None:
    # The first key would close it.
    fuzz(fuzzed, tmp_path, "createKey")


def test_a_studio_with_keys_answers_as_documented(fuzzed: Fuzzed, tmp_path: Path) -> None:
    fuzzed.close()
    fuzz(fuzzed, tmp_path)


def fuzz(fuzzed: Fuzzed, folder: Path, *without: str) -> None:
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG + AWAY + (KEY.format(key=fuzzed.key) if fuzzed.key else ""))
    # It waits 10 s for an address of the document, which a busy machine needs to describe it for the first time.
    document = folder / "openapi.json"
    document.write_bytes(fuzzed.studio.http.get("/schema/openapi.json").raise_for_status().content)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    # One worker: two of them parse source code at once, which now and then breaks the parser of Python 3.11.
    command += [str(document), "--url", fuzzed.studio.url, "--checks", "all", "--phases", PHASES, "--workers", "1"]
    command += ["--max-examples", str(EXAMPLES), "--seed", "18", "--generation-deterministic", "--no-shrink"]
    command += ["--warnings", "off", "--suppress-health-check", "all"]
    command += ["--include-path-regex", PATHS] if PATHS else []
    for operation in ("followStudio", *without):
        command += ["--exclude-operation-id", operation]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzzing", "FUZZED_IDS": json.dumps(fuzzed.fill())}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(*re.findall(r".*(?:generated|passed|selected).*", done.stdout), sep="\n")
