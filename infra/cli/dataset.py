"""`text2song dataset`: datasets at a running studio, and one built again from its log."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
from msgspec import Struct
from rich.markup import escape
from rich.table import Column, Table

from domain.dataset_card import WORDS
from domain.events.datasets import Agreement
from infra.cli.console import Folder, chosen_settings, console, run, url_option
from infra.settings import Settings
from text2song.client import AsyncStudio, ClientError
from workers.dataset_folder import unpack

PAGE: Final = 200
WAIT_SECONDS: Final = 0.5
NAMED: Final = 10

# What each option is in filter_query; each may be given several times.
SEVERAL: Final = {
    "tag": "tags",
    "user": "user_ids",
    "expert": "expert_ids",
    "adapter": "adapter_ids",
    "model": "model_ids",
    "campaign": "campaign_ids",
    "client": "client_ids",
    "collection": "collections",
}
BASE: Final = "base"  # the model without an adapter


class Exported(Struct, frozen=True):
    status: str
    url: str | None
    rows: int | None
    size: int | None
    left_out: dict[str, int]
    error: str | None


class Erased(Struct, frozen=True):
    count: int
    feedback_ids: list[str]
    job_ids: list[str]


class Dataset(Struct, frozen=True):
    id: str
    name: str
    type: str
    status: str
    error: str | None
    sample_count: int | None
    judgements: int | None
    digest: str | None
    splits: dict[str, int]
    agreement: Agreement | None
    left_out: dict[str, int]
    notice: str | None
    erased_since: Erased
    exports: dict[str, Exported]
    created_at: str


class Listed(Struct, frozen=True):
    items: list[Dataset]
    next_cursor: str | None


class Page(Struct, frozen=True):
    items: list[dict[str, Any]]
    next_cursor: str | None


@click.group()
def dataset() -> None:
    """Datasets of what listeners said: made, exported, built again."""


@dataset.command()
@click.argument("name")
@click.option("--type", "kind", type=click.Choice(["supervised", "preference"]), required=True)
@click.option("--description", default="", help="What it is for.")
@click.option("--min-rating", type=float, help="The lowest mean rating of a sample, 1 to 5.")
@click.option("--max-rating", type=float, help="The highest one.")
@click.option("--tag", multiple=True, help="Only what is tagged so. Give it, like the next ones, as often as needed.")
@click.option("--user", multiple=True, help="Only what this listener said.")
@click.option("--expert", multiple=True, help="Only what this expert said.")
@click.option("--adapter", multiple=True, help=f"Only samples of this adapter; {BASE} is the model without any.")
@click.option("--model", multiple=True, help="Only samples of this model.")
@click.option("--campaign", multiple=True, help="Only samples of this campaign.")
@click.option("--client", multiple=True, help="Only samples of this client.")
@click.option("--collection", multiple=True, help="Only samples of this collection.")
@click.option("--from", "start_date", help="Only what was said from this date or time on.")
@click.option("--until", "end_date", help="Only what was said up to this date or time.")
@click.option("--sources", type=click.Choice(["feedback", "votes", "both"]), help="What counts.  [default: both]")
@click.option("--min-agreement", type=float, help="The share of its listeners that go along, 0 to 1.")
@click.option("--min-votes", type=int, help="How many listeners a sample or pair needs.")
@click.option("--min-reliability", type=float, help="How reliable a listener has to be, 0 to 1.")
@click.option("--held-out", type=float, help="The share of the prompts kept for tests.  [default: 0.1]")
@click.option("--seed", type=int, help="Which prompts that are.  [default: 0]")
@url_option
def create(name: str, kind: str, description: str, url: str, **options: Any) -> None:
    """Make a dataset called NAME of what is on the log now, and wait until it is built."""
    query: dict[str, Any] = {field: list(options.pop(option)) for option, field in SEVERAL.items()}
    query["adapter_ids"] = [None if adapter == BASE else adapter for adapter in query["adapter_ids"]]
    drawn = {field: value for field in ("held_out", "seed") if (value := options.pop(field)) is not None}
    query = {field: value for field, value in (query | options).items() if value not in (None, [])}
    request = {"name": name, "type": kind, "description": description, "filter_query": query, **drawn}
    run(lambda: make(url, request))


@dataset.command("list")
@url_option
def list_datasets(url: str) -> None:
    """Show the datasets, newest first."""
    run(lambda: show_all(url))


@dataset.command()
@click.argument("ident", metavar="ID")
@url_option
def show(ident: str, url: str) -> None:
    """Tell what the dataset ID has, what was left out of it and why, and how far its listeners agree."""
    run(lambda: show_one(url, ident))


@dataset.command()
@click.argument("ident", metavar="ID")
@url_option
def items(ident: str, url: str) -> None:
    """Print the items of the dataset ID, a line of JSON each."""
    run(lambda: print_items(url, ident))


@dataset.command()
@click.argument("ident", metavar="ID")
@click.argument("folder", type=Folder())
@click.option(
    "--format",
    "wanted",
    type=click.Choice(["supervised", "preference", "unpaired"]),
    help="What the rows are.  [default: the dataset's type]",
)
@url_option
def export(ident: str, folder: Path, wanted: str | None, url: str) -> None:
    """Write the dataset ID into FOLDER: audio, rows, a manifest and a card."""
    run(lambda: write(url, ident, folder, wanted))


@dataset.command()
@click.argument("ident", metavar="ID")
@click.option("--data", type=click.Path(file_okay=False), help="The studio's data folder.")
def rebuild(ident: str, data: str | None) -> None:
    """Build the dataset ID again from the log, and tell whether it comes out the same.

    Reads the log itself, with or without a running studio, and changes nothing.
    """
    settings = chosen_settings(data=data)
    run(lambda: build_again(settings, ident))


async def make(url: str, request: dict[str, Any]) -> None:
    """Raises ClientError, also for a dataset that cannot be built."""
    async with AsyncStudio(url) as client:
        await client.index()
        made = await client.post("/datasets", request, Dataset)
        console.tell(f"Dataset {made.id} is being built …")
        made = await _until(client, made.id, lambda now: now.status in {"built", "failed"})
    if made.status == "failed":
        raise ClientError(f"Dataset {made.id} failed: {made.error}")
    _tell(made)


async def show_all(url: str) -> None:
    name = Column("name", overflow="fold", min_width=10)
    table = Table(name, "type", "status", Column("items", justify="right"), Column("id", no_wrap=True))
    async with AsyncStudio(url) as client:
        await client.index()
        path: str | None = f"/datasets?limit={PAGE}"
        while path is not None:
            page = await client.fetch(path, Listed)
            for each in page.items:
                count = "" if each.sample_count is None else f"{each.sample_count:,}"
                table.add_row(escape(each.name), each.type, each.status, count, each.id)
            path = f"/datasets?limit={PAGE}&cursor={page.next_cursor}" if page.next_cursor else None
    console.print(table)


async def show_one(url: str, ident: str) -> None:
    async with AsyncStudio(url) as client:
        await client.index()
        _tell(await client.fetch(_path(ident), Dataset))


async def print_items(url: str, ident: str) -> None:
    async with AsyncStudio(url) as client:
        await client.index()
        path: str | None = f"{_path(ident)}/items?limit={PAGE}"
        while path is not None and not console.quiet:
            page = await client.fetch(path, Page)
            for item in page.items:
                console.tell(json.dumps(item, ensure_ascii=False))
            path = f"{_path(ident)}/items?limit={PAGE}&cursor={page.next_cursor}" if page.next_cursor else None


async def write(url: str, ident: str, folder: Path, wanted: str | None) -> None:
    """Raises ClientError, also for a folder that has something in it and for an archive that is not as it was made."""
    async with AsyncStudio(url) as client:
        await client.index()
        form = wanted or (await client.fetch(_path(ident), Dataset)).type
        await client.post(f"{_path(ident)}/export", {"format": form}, Dataset)
        made = await _until(client, ident, lambda now: now.exports[form].status != "requested")
        done = made.exports[form]
        if done.url is None:
            raise ClientError(f"The {form} export of dataset {ident} is {done.status}: {done.error or 'ask again'}.")
        archive = folder.with_name(f"{folder.name}.zip.part")
        try:
            await asyncio.to_thread(folder.parent.mkdir, parents=True, exist_ok=True)
            await client.save(done.url, archive)
            files = await asyncio.to_thread(unpack, archive, folder)
        except OSError as error:
            raise ClientError(f"{folder} cannot be written: {error.strerror}. Choose another folder.") from None
        finally:
            await asyncio.to_thread(archive.unlink, missing_ok=True)
    console.tell(f"{done.rows or 0:,} rows and {files:,} files are in {folder}")
    for line in _reasons(done.left_out):
        console.tell(line)


async def build_again(settings: Settings, ident: str) -> None:
    """Raises ClientError where the list has changed and nothing that was erased or revised explains it."""
    from infra import roles

    found, again = await roles.rebuild_dataset(settings, ident)
    if again.same:
        console.tell(f"The same: SHA-256 {again.summary.digest}, {again.summary.count:,} items.")
        return
    was = found.built.digest if found.built else ""
    console.tell(f"Not the same: SHA-256 {again.summary.digest}, and it was {was}.")
    for words, ids in (
        ("judgements were erased since", again.erased),
        ("judgements were revised since", again.revised),
        ("jobs were deleted since", again.deleted_jobs),
    ):
        if ids:
            more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
            console.tell(f"{len(ids):,} {words}: {', '.join(ids[:NAMED])}{more}")
    console.tell(f"{again.summary.count:,} items are left, {again.same_items:,} of them as they were.")
    if not (again.erased or again.revised or again.deleted_jobs):
        raise ClientError(
            "Nothing that was erased or revised explains it. Is this the log that the dataset was built from?"
        )


async def _until(client: AsyncStudio, ident: str, done: Callable[[Dataset], bool]) -> Dataset:
    while True:
        found = await client.fetch(_path(ident), Dataset)
        if done(found):
            return found
        await asyncio.sleep(WAIT_SECONDS)


def _path(ident: str) -> str:
    return f"/datasets/{quote(ident, safe='')}"


def _tell(found: Dataset) -> None:
    splits = ", ".join(f"{count:,} {name}" for name, count in found.splits.items())
    console.tell(f"{found.name}  ({found.type}, {found.status}, {found.id})")
    if found.error:
        console.tell(f"Error: {found.error}")
    if found.sample_count is None:
        return
    console.tell(f"{found.sample_count:,} items ({splits or 'none'}) from {found.judgements or 0:,} judgements")
    console.tell(f"SHA-256 {found.digest}")
    if found.notice:
        console.tell(found.notice, style="yellow")
    if (told := found.agreement) is not None:
        alpha = "unknown" if told.alpha is None else f"{told.alpha:.2f}"
        console.tell(
            f"{told.listeners:,} listeners; agreement (Krippendorff's alpha) {alpha} on {told.compared:,} that several "
            f"judged; {told.consistent:,} of {told.repeated:,} repeats consistent"
        )
    for line in _reasons(found.left_out):
        console.tell(line)
    if found.erased_since.count:
        gone = found.erased_since
        console.tell(f"Erased since: {len(gone.feedback_ids):,} judgements, {len(gone.job_ids):,} jobs", style="yellow")
    for form, each in found.exports.items():
        console.tell(f"Export {form}: {each.status}" + (f", {each.rows:,} rows" if each.rows is not None else ""))


def _reasons(left_out: dict[str, int]) -> list[str]:
    return [f"Left out: {count:,} {WORDS.get(reason, reason)}" for reason, count in left_out.items()]
