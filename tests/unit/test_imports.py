import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "domain": set[str](),
    "commands": {"domain"},
    "projections": {"domain"},
    "workers": {"domain"},
    "api": {"domain", "commands", "projections", "workers"},
    "infra": {"domain", "commands", "projections", "workers", "api"},
}
# `faust -A` is told a module, so this one alone finds the composition root by itself, and only when asked for its app.
ENTRY_POINT = "projections/faust_app.py"
ROOT_ONLY = {"infra/bootstrap.py", "infra/cli.py", "infra/generate.py", "infra/client.py", "infra/settings.py"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for path in files(package):
        ours = {name.partition(".")[0] for name in imported(path)} & set(MAY_IMPORT)
        entry = {"infra"} if path.relative_to(ROOT).as_posix() == ENTRY_POINT else set[str]()
        assert ours <= MAY_IMPORT[package] | {package} | entry, path


def test_the_composition_root_is_imported_by_nobody_at_import() -> None:
    top = ast.parse((ROOT / ENTRY_POINT).read_text()).body
    assert not any(isinstance(node, ast.ImportFrom) and (node.module or "").startswith("infra") for node in top)


def test_the_domain_imports_the_standard_library_and_msgspec_alone() -> None:
    pure = {"collections", "datetime", "functools", "hashlib", "itertools", "re", "typing", "zlib", "msgspec", "domain"}
    waits = {"asyncio", "logging"}  # the journal alone has somebody to wait for
    for path in files("domain"):
        assert {name.partition(".")[0] for name in imported(path)} <= (pure | waits if path.stem == "journal" else pure)


def test_adapters_know_the_ports_and_no_route_or_worker() -> None:
    for path in files("infra"):
        if path.relative_to(ROOT).as_posix() not in ROOT_ONLY:
            ours = {name.partition(".")[0] for name in imported(path)} & set(MAY_IMPORT)
            assert ours <= {"domain", "infra"}, path


def test_nothing_heavy_is_imported_where_the_event_loop_runs() -> None:
    """The model's libraries hold the interpreter for seconds; only the engine's own process may load them."""
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
            if name != "workers/engines/noise.py" and not name.startswith("workers/engines/musicgen/"):
                assert not top & {"torch", "transformers", "peft"}, path
