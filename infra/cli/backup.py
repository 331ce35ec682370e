"""Backups of a studio on one machine."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
from rich.markup import escape

from domain.events import timestamp
from infra.backup import Progress, Report, back_up
from infra.backup import restore as put_back
from infra.cli.console import Folder, chosen_settings, console, or_exit, say
from infra.settings import Settings, unusable

folder = click.argument("folder", type=Folder())
data = click.option("--data", type=click.Path(file_okay=False), help="Folder of the studio.  [default: text2song-data]")


@click.command()
@folder
@data
def backup(folder: Path, data: str | None) -> None:
    """Copy a studio on this machine into FOLDER, which must be empty, while it runs.

    The exit code is 1 if audio is missing that events speak of.
    """
    settings = or_exit(partial(_local, chosen_settings(data=data)))
    now = timestamp(datetime.now(UTC))
    report = _carry_out(lambda progress: back_up(settings.folder, folder, now, progress))
    say(f"{escape(str(folder))} has all events up to {report.made_at}, and the audio of {report.samples} samples.")
    _explain(report)


@click.command()
@folder
@data
def restore(folder: Path, data: str | None) -> None:
    """Put the backup in FOLDER into a data folder that is empty, and check its audio against its events.

    The exit code is 1 if audio is missing or damaged.
    """
    settings = or_exit(partial(_local, chosen_settings(data=data)))
    report = _carry_out(lambda progress: put_back(folder, settings.folder, progress))
    say(
        f"{escape(str(settings.folder))} has all events up to {report.made_at}, which speak of {report.samples} "
        "samples. `text2song up` goes on from there."
    )
    _explain(report)


def _local(settings: Settings) -> Settings:
    for name, local in (("log", "sqlite"), ("objects", "files")):
        if getattr(settings, name) != local:
            raise unusable(
                settings, name, "only a data folder can be copied. Back up Kafka and the bucket by their own tools."
            )
    return settings


def _carry_out(work: Callable[[Progress], Report]) -> Report:
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar("Samples", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("")
        return or_exit(lambda: work(lambda done, total: bar.update(task, completed=done, total=total)))


def _explain(report: Report) -> None:
    for fault in report.faults:
        click.echo(f"text2song: {fault}", err=True)
    sys.exit(1 if report.faults else 0)
