"""`text2song verdict`: the results of a blind A/B test on the terminal, and as a report."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from math import log10
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from domain.file_names import stem
from domain.verdicts import Results
from infra.cli import verdict_words as words
from infra.cli.console import console, run, url_option
from infra.cli.verdict_report import report
from infra.cli.verdict_words import Asked
from text2song.client import AsyncStudio, ClientError

ROWS: Final = 8
AXIS: Final = 10  # columns
ROOMY: Final = 80  # columns that leave room for remarks


@click.command("verdict")
@click.argument("test", metavar="ID")
@url_option
@click.option(
    "--html",
    "html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report to this file.  [default: verdict-ID.html]",
)
def command(test: str, url: str, html: Path | None) -> None:
    """Tell what the blind A/B test ID says so far, and write a report of it.

    The verdict may be looked at after every vote.
    """
    run(lambda: tell(console, url, test, html))


async def tell(shown: Console, url: str, test: str, html: Path | None) -> None:
    """Raises ClientError where there is no such test, and where the report cannot be written."""
    path = f"/ab-tests/{quote(test, safe='')}"
    async with AsyncStudio(url) as client:
        await client.index()
        asked = await client.fetch(path, Asked)
        found = await client.fetch(f"{path}/results", Results)
    show(shown, asked, found)
    file = html or Path(f"verdict-{stem(asked.id)}.html")
    text = report(asked, found, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    try:
        await asyncio.to_thread(file.write_text, text, encoding="utf-8")
    except OSError as error:
        raise ClientError(f"{file} cannot be written: {error.strerror}. Choose another with --html.") from None
    shown.print(f"Report: [bold]{escape(str(file))}[/bold]", soft_wrap=True, highlight=False)


def show(shown: Console, asked: Asked, found: Results) -> None:
    shown.print(
        f"[bold]{escape(asked.name)}[/bold]  ({escape(asked.status)}, {escape(asked.progress)})", highlight=False
    )
    colour = {"A": "green", "B": "green", "equivalent": "cyan"}.get(found.verdict, "yellow")
    shown.print(f"[bold {colour}]{escape(words.headline(asked, found))}[/]", highlight=False)
    for sentence in words.reasons(found):
        shown.print(sentence, markup=False, highlight=False)
    table = Table(Column(no_wrap=True), Column(no_wrap=True), Column(style="dim"), box=None, show_header=False)
    for row in words.facts(found):
        table.add_row(*row if shown.width >= ROOMY else row[:2])
    shown.print(table)
    for sentence in words.exclusions(found):
        shown.print(f"Does not count: {sentence}", markup=False, highlight=False)
    if found.timeline:
        shown.print("\nEvidence that the arms differ, after each vote (┄ from here on, a verdict)", highlight=False)
        for line in plot(found, max(10, min(60, shown.width - AXIS - 2))):
            shown.print(line, markup=False, highlight=False, no_wrap=True)


def plot(found: Results, width: int) -> Iterator[str]:
    """Lines of text: the evidence over votes, on a logarithmic scale."""
    most = found.timeline[-1].votes
    logs = [log10(min(max(point.e_value, 1e-3), 1e6)) for point in found.timeline]
    low, high = min(-1.0, *logs, 0.0), max(2.0, *logs)

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (ROWS - 1))

    heights = [row(0.0)] * width
    for column in range(width):
        before = [
            value
            for point, value in zip(found.timeline, logs, strict=True)
            if point.votes <= most * (column + 1) / width
        ]
        heights[column] = row(before[-1]) if before else row(0.0)
    threshold = row(log10(found.threshold))
    labels = {threshold: f"{found.threshold:g}", row(0.0): "1"}
    for number in range(ROWS):
        blank = "┄" if number == threshold else " "
        line = "".join("●" if height == number else blank for height in heights)
        yield f"{labels.get(number, ''):>{AXIS - 2}} │{line}".rstrip()
    yield f"{'':>{AXIS - 2}} └{'─' * width}"
    yield f"{'':>{AXIS - 2}}  0{f'{most:,} votes':>{width - 1}}"
