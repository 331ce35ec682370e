"""The unit of systemd, against the command and the settings that it names."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli.main import COMMANDS
from infra.settings import PREFIX, Settings
from workers.training import process

ANALYZE = shutil.which("systemd-analyze")
UNIT = Path(__file__).parents[2] / "infra" / "deploy" / "text2song.service"


def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    return unit["Service"]


def test_it_starts_a_command_with_settings_that_there_are() -> None:
    program, command = service()["ExecStart"].split()
    assert Path(program).name == "text2song"
    assert command in COMMANDS
    names = [pair.partition("=")[0] for pair in service()["Environment"].split()]
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__}
    assert {name for name in names if name.startswith(PREFIX)} <= known


def test_it_waits_for_the_checkpoint_of_a_training_that_is_stopped() -> None:
    assert int(service()["TimeoutStopSec"]) > process.STOP_SECONDS + 10


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_in_it(tmp_path: Path) -> None:
    program = service()["ExecStart"].split()[0]
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(program, sys.executable))
    command = [str(ANALYZE), "verify", str(tmp_path / UNIT.name)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    # It may find faults in the machine's other units.
    assert [line for line in said.splitlines() if UNIT.name in line] == []
