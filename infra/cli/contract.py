from collections.abc import Mapping
from pathlib import Path

import click
from rich.markup import escape

from domain.errors import UnavailableError
from infra.cli.console import Folder, console, or_exit


@click.group()
def contract() -> None:
    """What other programs may rely on."""


@contract.command()
@click.argument("folder", type=Folder())
def export(folder: Path) -> None:
    """Write the AsyncAPI document, JSON Schemas, transition tables and conformance vectors to FOLDER."""
    from domain.contract.document import files

    written = or_exit(lambda: _write(folder, files()))
    console.print(f"{written} files are in {escape(str(folder))}", soft_wrap=True)


def _write(folder: Path, files: Mapping[str, bytes]) -> int:
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise UnavailableError(f"The contract cannot be written to {folder}: {error.strerror}.") from None
    return len(files)
