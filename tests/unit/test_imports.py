import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.aggregates import SLICES

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "domain": set[str](),
    "commands": {"domain"},
    "projections": {"domain"},
    "workers": {"domain"},
    "api": {"domain", "commands", "projections", "workers"},
    "infra": {"domain", "commands", "projections", "workers", "api"},
}
# The composition root and what a person or a supervisor starts may import everything.
ROOT_ONLY = (
    "infra/bootstrap.py",
    "infra/cluster.py",
    "infra/hosts.py",
    "infra/roles.py",
    "infra/faust_app.py",
    "infra/cli/",
)
HEAVY = ("workers/engines/noise.py", "workers/engines/faults.py", "workers/engines/lora.py")
HEAVY_FOLDERS = ("workers/engines/musicgen/", "workers/engines/diffusion/", "workers/training/")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported_modules(path: Path) -> Iterator[str]:
    """What it imports, a submodule by its own name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for path in files(package):
        ours = {name.partition(".")[0] for name in imported(path)} & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package] | {package}, path


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count: they only hide a circle."""
    known = {module(path): path for package in MAY_IMPORT for path in files(package)}
    needs = {name: {other for other in imported_modules(path) if other in known} for name, path in known.items()}
    while needs:
        free = {name for name, others in needs.items() if not others - {name} & needs.keys()}
        assert free, f"these import each other: {sorted(needs)}"
        needs = {name: others & needs.keys() - free for name, others in needs.items() if name not in free}


def test_no_file_is_longer_than_one_reads_at_a_time() -> None:
    long = {
        path: lines
        for package in MAY_IMPORT
        for path in files(package)
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_every_slice_has_its_file_in_every_package() -> None:
    for name in SLICES:
        for folder in ("domain/events", "domain", "domain/contract", "commands", "projections", "api"):
            assert (ROOT / folder / f"{name}.py").exists(), f"{folder} lacks {name}.py"


def test_the_domain_imports_the_standard_library_and_msgspec_alone() -> None:
    pure = {"collections", "contextlib", "datetime", "functools", "hashlib", "importlib", "itertools", "math"}
    pure |= {"operator", "random", "re", "statistics", "typing", "unicodedata", "uuid", "zlib", "msgspec", "domain"}
    waits = {"asyncio", "logging"}  # a journal and a frontier alone have somebody to wait for
    further = {"journal": waits, "frontier": waits, "correlation": {"contextvars"}}
    for path in files("domain"):
        assert {name.partition(".")[0] for name in imported(path)} <= pure | further.get(path.stem, set()), path


def test_adapters_know_the_ports_and_no_route_or_worker() -> None:
    for path in files("infra"):
        if not path.relative_to(ROOT).as_posix().startswith(ROOT_ONLY):
            ours = {name.partition(".")[0] for name in imported(path)} & set(MAY_IMPORT)
            assert ours <= {"domain", "infra"}, path


def test_nothing_heavy_is_imported_where_the_event_loop_runs() -> None:
    """The model's libraries hold the interpreter for seconds; only an engine's or a training's process may."""
    for package in MAY_IMPORT:
        for path in files(package):
            top = {
                module.partition(".")[0]
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for module in (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                )
            }
            name = path.relative_to(ROOT).as_posix()
            if name not in HEAVY and not name.startswith(HEAVY_FOLDERS):
                assert not top & {"torch", "transformers", "diffusers", "peft"}, path


def test_what_runs_beside_the_event_loop_loads_nothing_heavy() -> None:
    loaded = "import sys, infra.roles, api.app, workers.trainings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0
