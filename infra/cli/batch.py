"""A file of prompts at a running studio: submitted in order, made side by side, shown in one view."""

import asyncio
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from infra.cli.downloads import Downloads
from infra.cli.uploads import with_melody
from text2song.client import AsyncStudio, ClientError, UnreachableError
from text2song.connection import chosen_key

FOLLOWED: Final = 8  # jobs at once; a studio makes them in about the order they were submitted in


class Line(Struct, frozen=True):
    number: int
    prompt: str


class Submitted(Struct, frozen=True):
    line: Line
    job_id: str


def read(name: str, data: bytes) -> list[Line]:
    """The prompts of a file in UTF-8. Raises ClientError for another encoding, and for a file without prompts."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ClientError(
            f"Line {number} of {name} is not UTF-8 (byte 0x{data[error.start]:02x}). Save the file as UTF-8."
        ) from None
    lines = [Line(number, line.strip()) for number, line in enumerate(io.StringIO(text, newline=None), 1)]
    prompts = [line for line in lines if line.prompt and not line.prompt.startswith("#")]
    if not prompts:
        raise ClientError(f"{name} has no prompts. Write one on each line; lines that begin with # do not count.")
    return prompts


async def make_all(console: Console, url: str, lines: Sequence[Line], request: dict[str, Any], folder: Path) -> None:
    """Saves what is made of each prompt as soon as it is there. Raises ClientError unless everything was made."""
    downloads = Downloads(folder, request["output_format"])
    await downloads.prepare()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    async with AsyncStudio(url) as client:
        studio = await client.index()
        if studio.notice:
            console.print(f"[yellow]{escape(studio.notice)}[/yellow]", soft_wrap=True)
        request = await with_melody(client, request)
        with Progress(*columns, console=console, transient=True) as bar:
            batch = Batch(client, downloads, bar, len(lines))
            await batch.make(lines, request)
    if batch.missing:
        raise ClientError(f"Of {len(lines)} prompts, {batch.missing} could not be made; the reasons are above.")
    console.print(f"Made all {len(lines)} prompts.", highlight=False)


def cancelling(client: AsyncStudio, job_ids: Collection[str]) -> str:
    """The command that cancels these jobs, for a shell; curl reads a list in braces."""
    key = ' -H "X-API-Key: $TEXT2SONG_KEY"' if chosen_key() else ""
    return f"curl -s{key} -X DELETE '{client.address('/generate/')}{{{','.join(job_ids)}}}'"


class Batch:
    """`missing` counts the prompts that were refused or whose jobs did not complete."""

    def __init__(self, client: AsyncStudio, downloads: Downloads, bar: Progress, count: int) -> None:
        self.missing = 0
        self._client = client
        self._downloads = downloads
        self._bar = bar
        self._total = bar.add_task(f"{count} prompts", total=count)
        self._open: dict[str, Line] = {}

    async def make(self, lines: Sequence[Line], request: dict[str, Any]) -> None:
        """Raises UnreachableError when the studio is gone."""
        try:
            for line in lines:
                await self._submit(line, request)
            self._bar.console.print(f"Submitted {len(self._open)} prompts.", highlight=False)
            waiting = iter(list(self._open.items()))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(FOLLOWED):
                    tasks.create_task(self._finish(waiting))
        except (asyncio.CancelledError, UnreachableError, ExceptionGroup) as error:
            if self._open:
                self._bar.console.print(
                    f"A running studio goes on with {len(self._open)} jobs. This cancels them:\n"
                    f"  {cancelling(self._client, self._open)}",
                    markup=False,
                    soft_wrap=True,
                    highlight=False,
                )
            raise (error.exceptions[0] if isinstance(error, ExceptionGroup) else error) from None

    async def _submit(self, line: Line, request: dict[str, Any]) -> None:
        try:
            receipt = await self._client.submit({"prompt": line.prompt, **request}, str(uuid4()))
        except UnreachableError:
            raise
        except ClientError as error:
            self._miss(line, error)
        else:
            self._open[receipt.job_id] = line
            for warning in receipt.warnings:
                said = f"[yellow]Line {line.number}: {escape(warning)}[/yellow]"
                self._bar.console.print(said, soft_wrap=True, highlight=False)

    async def _finish(self, waiting: Iterator[tuple[str, Line]]) -> None:
        for job_id, line in waiting:
            shown = self._bar.add_task(line.prompt[:40], total=100.0)
            try:
                await self._downloads.save(self._bar.console, self._client, await self._end(job_id, shown))
            except UnreachableError:
                raise
            except ClientError as error:
                self._miss(line, error)
            else:
                self._bar.advance(self._total)
            finally:
                self._bar.remove_task(shown)
            del self._open[job_id]

    async def _end(self, job_id: str, shown: TaskID) -> dict[str, Any]:
        """The job as it is at its end."""
        async for update in self._client.follow(job_id):
            self._bar.update(shown, completed=update.data["progress"])
        return update.data

    def _miss(self, line: Line, error: ClientError) -> None:
        self.missing += 1
        self._bar.advance(self._total)
        self._bar.console.print(
            f"  Line {line.number} was not made: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
