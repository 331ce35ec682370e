"""Keys by the command line: on a data folder, and at a running studio."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.conftest import Running


def text2song(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "data"


@pytest.fixture(scope="module")
def admin(folder: Path) -> str:
    """The first key, made before there is a studio."""
    made = text2song("keys", "create", "--owner", "ops", "--scope", "admin", "--data", str(folder))
    assert made.returncode == 0, made.stderr
    assert "It is shown this once" in made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def studio(folder: Path, admin: str) -> Iterator[Running]:
    """It listens everywhere, which it may because there is a key."""
    assert admin.startswith("t2s_")
    running = Running(folder, TEXT2SONG_HOST="0.0.0.0")  # noqa: S104
    yield running
    assert running.stop() == 0, running.errors()


def test_a_studio_without_keys_listens_on_loopback_alone(tmp_path: Path) -> None:
    refused = text2song("up", "--port", "0", "--host", "0.0.0.0", "--data", str(tmp_path / "data"))  # noqa: S104
    assert refused.returncode == 1
    assert "text2song keys create" in refused.stderr
    assert "TEXT2SONG_OPEN=true" in refused.stderr


def test_keys_are_made_sent_listed_and_revoked(studio: Running, folder: Path, admin: str) -> None:
    assert studio.http.get("/jobs").status_code == 401
    url = studio.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    made = text2song("--key", admin, "keys", "create", "--owner", "ann", "--scope", "read", "--url", url)
    key = made.stdout.strip()
    assert studio.http.get("/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    listed = text2song("keys", "list", TEXT2SONG_KEY=admin, TEXT2SONG_URL=url, COLUMNS="200")
    assert "ann" in listed.stdout
    assert key not in listed.stdout
    refused = text2song("keys", "list", TEXT2SONG_KEY=key, TEXT2SONG_URL=url)
    assert (refused.returncode, "needs admin" in refused.stderr) == (1, True)
    revoked = text2song("keys", "revoke", key.split("_")[1], "--data", str(folder))
    assert (revoked.returncode, revoked.stdout.strip().endswith("of ann is revoked.")) == (0, True)
    gone = studio.http.get("/jobs", headers={"X-API-Key": key})
    assert "was revoked" in json.loads(gone.text)["detail"]


@pytest.mark.parametrize("key", ["nonsense", "t2s_", "t2s_\u00fc_x"])
def test_what_is_no_key_is_not_sent(key: str) -> None:
    refused = text2song("--key", key, "keys", "list")
    assert (refused.returncode, "is no key of a studio" in refused.stderr) == (1, True)
