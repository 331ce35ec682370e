import re
from pathlib import Path
from pkgutil import iter_modules
from typing import Final

import pytest
from click.testing import CliRunner

from domain.contract.document import files
from infra.cli.main import COMMANDS, SECTIONS, main
from tests import bench

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = ("README.md", "api/README.md", "domain/README.md", "infra/README.md", "tests/bench/README.md")
COMMAND: Final = re.compile(r"(?:^ {4}|`)(?:\w+=\S+ )*(make|text2song) ([a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#?]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    there = {"make": set(targets), "text2song": set(COMMANDS)}
    for program, command in COMMAND.findall((ROOT / name).read_text()):
        assert command in there[program], f"{program} {command}"


@pytest.mark.parametrize("name", [module.name for module in iter_modules(bench.__path__) if module.name != "__main__"])
def test_every_bench_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "tests/bench/README.md").read_text()


def test_the_number_of_published_files_is_what_the_command_prints() -> None:
    assert f"    {len(files())} files are in contract\n" in (ROOT / "domain/README.md").read_text()


def test_the_help_shows_every_command_in_a_line() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    for name in COMMANDS:
        [words] = [section[name] for section in SECTIONS.values() if name in section]
        assert len(words) < 60
        assert re.search(rf"^  {name} +{re.escape(words)}$", shown, re.MULTILINE)
    assert sum(map(len, SECTIONS.values())) == len(COMMANDS)
