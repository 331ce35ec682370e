"""LoRA adapters at a running studio."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from msgspec import Struct
from rich.markup import escape
from rich.table import Column, Table

from domain.lora import CONFIG, PIPELINE_WEIGHTS, WEIGHTS
from infra.cli.console import Folder, console, run, url_option
from text2song.client import AsyncStudio, ClientError

FILES: Final = {"weights": WEIGHTS, "config": CONFIG}
PAGE: Final = 200


class Adapter(Struct, frozen=True):
    id: str
    name: str
    version: str
    base_model: str
    rank: int
    is_active: bool


class Listed(Struct, frozen=True):
    items: list[Adapter]
    next_cursor: str | None


@click.group()
def adapters() -> None:
    """The LoRA adapters of a running studio."""


@adapters.command()
@click.argument("folder", type=Folder())
@click.option("--name", required=True, help="What the adapter is called.")
@click.option("--version", required=True, help="A semantic version, such as 1.0.0.")
@click.option("--description", help="What it is good for.")
@click.option("--base-model", help="The model it was trained on.  [default: as adapter_config.json says]")
@click.option("--base-revision", help="Its revision.  [default: any]")
@url_option
def add(folder: Path, url: str, **fields: str | None) -> None:
    """Register the adapter that PEFT, or a pipeline of diffusers, has saved in FOLDER."""
    given = {name: value for name, value in fields.items() if value is not None}
    run(lambda: register(url, folder, given))


@adapters.command("list")
@url_option
def list_adapters(url: str) -> None:
    """Show the adapters, newest first; * marks those that may be asked for."""
    run(lambda: show(url))


async def register(url: str, folder: Path, fields: dict[str, str]) -> None:
    """Raises ClientError where a file is not there, and with the studio's sentence for what it refuses."""
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        is_peft = (folder / CONFIG).exists() or not (folder / PIPELINE_WEIGHTS).exists()
        for field, name in (FILES if is_peft else {"weights": PIPELINE_WEIGHTS}).items():
            try:
                files[field] = stack.enter_context((folder / name).open("rb"))
            except OSError as error:
                way_out = f"Name the folder that PEFT's save_pretrained wrote, or one with {PIPELINE_WEIGHTS}."
                raise ClientError(f"{folder / name} cannot be read: {error.strerror}. {way_out}") from None
        async with AsyncStudio(url) as client:
            await client.index()
            added = await client.upload("/adapters", fields, files, Adapter)
    console.tell(f"Adapter {added.name} {added.version} of {added.base_model}, rank {added.rank}, is {added.id}")


async def show(url: str) -> None:
    # In a narrow terminal names are folded, and neither cut nor left out.
    adapter, model = (Column(name, overflow="fold", min_width=10) for name in ("adapter", "base model"))
    table = Table("", adapter, model, "rank", Column("id", no_wrap=True))
    async with AsyncStudio(url) as client:
        await client.index()
        path: str | None = f"/adapters?limit={PAGE}"
        while path is not None:
            page = await client.fetch(path, Listed)
            for each in page.items:
                table.add_row(*_row(each))
            path = f"/adapters?limit={PAGE}&cursor={page.next_cursor}" if page.next_cursor else None
    console.print(table)


def _row(adapter: Adapter) -> tuple[Any, ...]:
    mark = "*" if adapter.is_active else ""
    model = escape(adapter.base_model)
    return mark, escape(f"{adapter.name} {adapter.version}"), model, str(adapter.rank), adapter.id
