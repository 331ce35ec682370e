"""Commands that run a studio, or one role of it."""

import asyncio
import os
import sys
import webbrowser
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final

import click
from rich.markup import escape

from infra.cli.console import places, say
from infra.cli.service import serve
from infra.settings import Settings

NAME: Final = f"Text2Song Studio {version('text2song-studio')}"


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option(
    "--data", type=click.Path(file_okay=False), help="Folder that keeps everything.  [default: text2song-data]"
)
@click.option("--model", help="Model to load: a known name, or the folder of a checkpoint.")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
def up(**options: Any) -> None:
    """Serve the studio until stopped. A restart on the same data folder goes on where it was."""
    serve("up", _up, **options)


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.  [default: 8000]")
def api(**options: Any) -> None:
    """Serve the API alone: `text2song project` folds its views, `text2song work` generates."""
    serve("api", _api, **options)


@click.command()
@click.option("--instance", help="Name of this process, kept when it starts again.  [default: the host's name]")
def project(**options: Any) -> None:
    """Fold the views. With a log on Kafka, as many processes as there are partitions share the work."""
    serve("project", _project, **options)


@click.command()
@click.option("--model", help="Model to load: a known name, or the folder of a checkpoint.")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
def work(**options: Any) -> None:
    """Generate: claim queued jobs and carry them out, with any number of workers beside."""
    serve("work", _work, **options)


@click.command()
def react() -> None:
    """Do what follows from events by itself, such as erasing a deleted job's feedback."""
    serve("react", _react)


# Each runs until cancelled. The imports take seconds, so they come when a signal to stop is heard already.


async def _up(settings: Settings) -> None:
    from infra import roles

    async with roles.studio(settings) as url:
        say(f"{NAME} listens on [bold]{url}[/bold]; the page is [bold]{url}/studio[/bold]; Ctrl-C stops it.")
        _open(f"{url}/studio")
        say(f"Model {escape(settings.model)}; everything is kept in {escape(places(settings))}")
        await asyncio.Event().wait()


def _open(url: str) -> None:
    """In a browser, for a person who sits at a terminal with a display."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if display and sys.stdout.isatty():
        with suppress(webbrowser.Error):
            webbrowser.open(url)


async def _project(settings: Settings) -> None:
    from infra import hosts

    say(f"Folding {escape(places(settings))}; Ctrl-C stops it.")
    await hosts.project(settings)


async def _work(settings: Settings) -> None:
    from infra import roles

    say(f"Generating with {escape(settings.model)}; Ctrl-C stops it.")
    await roles.work(settings)


async def _react(settings: Settings) -> None:
    from infra import roles

    say(f"Reacting to events in {escape(places(settings))}; Ctrl-C stops it.")
    await roles.react(settings)


async def _api(settings: Settings) -> None:
    from infra import roles

    async with roles.api(settings) as url:
        say(f"{NAME}, its API alone, listens on [bold]{url}[/bold]; Ctrl-C stops it.")
        await asyncio.Event().wait()
