import os
import subprocess
import sys
from pathlib import Path

import soundfile

from tests.servers import servers


def test_the_demo_runs_across_processes_on_servers_of_its_own_and_leaves_nothing_running(tmp_path: Path) -> None:
    servers()
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "demo", "--cluster", "--output", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        env={**os.environ, "TEXT2SONG_MODEL": "text2song/wiring-noise"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = sorted((tmp_path / "demo").glob("*.wav"))
    assert [soundfile.info(path).duration for path in made] == [10.0, 10.0]
    for name in ("Kafka", "MongoDB", "versitygw", "completed", "Everything has stopped"):
        assert name in done.stdout
    status = subprocess.run(
        [sys.executable, "-m", "infra.cli", "servers", "status", "--data", str(tmp_path / "demo" / "servers")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.returncode == 1
    assert status.stdout.count("stopped") == 3
