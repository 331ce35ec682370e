"""The command `text2song`."""

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Column, Table

from domain.errors import Text2SongError
from infra.settings import Settings, from_environment

console = Console()
T = TypeVar("T")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("text2song-studio"))
def main() -> None:
    """Text2Song Studio: prompts to music, on one machine or many."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@main.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option(
    "--data", type=click.Path(file_okay=False), help="Folder that keeps everything.  [default: text2song-data]"
)
@click.option("--model", help="Model to load: a known name, or the folder of a MusicGen checkpoint.")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
def up(**options: Any) -> None:
    """Serve the studio until stopped. A restart on the same data folder goes on where it was."""
    settings = _settings(**options)
    _run(lambda: _up(settings))


@main.command()
@click.argument("prompt")
@click.option("--url", envvar="TEXT2SONG_URL", default="http://127.0.0.1:8000", show_default=True, help="The studio.")
@click.option("--duration", type=float, help="Seconds of audio.")
@click.option(
    "--samples", type=int, default=1, show_default=True, help="How many to make, each with a seed of its own."
)
@click.option("--seed", type=int, help="Seed of the first sample; the next ones count up.")
@click.option(
    "--format", "output_format", type=click.Choice(["wav", "flac", "mp3", "ogg"]), default="wav", show_default=True
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to save in.  [default: here]",
)
def generate(prompt: str, url: str, output: Path, output_format: str, **options: Any) -> None:
    """Make music from PROMPT at a running studio, and save it."""
    from infra.generate import generate as run

    request = {
        "prompt": prompt,
        "num_samples": options["samples"],
        "output_format": output_format,
        **{name: options[name] for name in ("duration", "seed") if options[name] is not None},
    }
    _run(lambda: run(console, url, request, output))


@main.command()
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("text2song-demo"), show_default=True
)
def demo(output: Path) -> None:
    """Start a studio, make two samples from one prompt, show every event, save the audio, and stop."""
    settings = _settings(data=str(output / "data"), port=0)
    _run(lambda: _demo(settings, output))


@main.group()
def models() -> None:
    """The base models."""


@models.command("list")
def list_models() -> None:
    """Show the known models; * marks the active one."""
    from domain.models import Registry
    from workers.engines.checkpoints import resolve

    registry = Registry(_or_exit(lambda: resolve(_settings().model)).model)
    table = Table("", Column("model", no_wrap=True), "longest", "audio", "GPU memory", "license")
    for model in registry.models:
        table.add_row(
            "*" if model.is_active else "",
            model.id,
            f"{model.max_duration:g} s",
            f"{model.sample_rate / 1000:g} kHz {'stereo' if model.channels == 2 else 'mono'}",
            f"{model.vram_gb:g} GB",
            model.license,
        )
    console.print(table)
    if registry.active.notice:
        console.print(registry.active.notice)


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Download the model NAME, such as facebook/musicgen-small, from the Hugging Face hub."""
    from workers.engines.checkpoints import pull as download

    checkpoint = _or_exit(lambda: download(name))
    console.print(f"{checkpoint.model.id} is ready. Use it with TEXT2SONG_MODEL={name} text2song up")


@main.group()
def servers() -> None:
    """Kafka, MongoDB and S3 on this machine, without Docker."""


data_of_servers = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("text2song-servers"),
    show_default=True,
    help="Folder that keeps their data, logs and addresses.",
)


@servers.command("up")
@data_of_servers
def servers_up(data: Path) -> None:
    """Start what does not run yet, and print the settings that make the studio use it.

    The settings alone go to standard output: eval "$(text2song servers up)" takes them over. The first time, the
    programs are installed into the user's cache; that needs mvn, Java 17, go and pip, and takes minutes.
    """
    from infra.servers.loopback import NAMES, Servers

    there = Servers(data, announce=lambda sentence: click.echo(sentence, err=True))
    started = _or_exit(there.up)
    if len(started) == len(NAMES):
        click.echo(f"The servers run, and keep everything in {there.folder}", err=True)
    elif started:
        click.echo(f"Started {', '.join(started)}; the others ran already.", err=True)
    else:
        click.echo("The servers run already.", err=True)
    for name, value in there.addresses.environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


@servers.command("down")
@data_of_servers
def servers_down(data: Path) -> None:
    """Stop them. Their data stays."""
    from infra.servers.loopback import Servers

    stopped = _or_exit(Servers(data).stop_all)
    click.echo(f"Stopped {', '.join(stopped)}." if stopped else "None of them runs.")


@servers.command("status")
@data_of_servers
def servers_status(data: Path) -> None:
    """Show each server's process, address and health; the exit code is 1 unless all are healthy."""
    from infra.servers.loopback import Servers

    there = Servers(data)
    found = _or_exit(there.status)
    table = Table("server", "state", "pid", "address")
    for server in found:
        state = "healthy" if server.healthy else "stopped" if server.pid is None else "not answering"
        table.add_row(server.title, state, str(server.pid or ""), server.address)
    console.print(table)
    console.print(f"Data and logs are in {there.folder}", soft_wrap=True)
    sys.exit(0 if all(server.healthy for server in found) else 1)


async def _up(settings: Settings) -> None:
    from infra.bootstrap import serving

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(settings) as url:
        name = f"Text2Song Studio {version('text2song-studio')}"
        console.print(f"{name} listens on [bold]{url}[/bold]; Ctrl-C stops it.", soft_wrap=True)
        console.print(f"Model {settings.model}; everything is kept in {settings.folder.resolve()}", soft_wrap=True)
        await stopped.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
        console.print("Stopping … (Ctrl-C again stops at once)")


async def _demo(settings: Settings, output: Path) -> None:
    from infra.bootstrap import serving
    from infra.generate import generate as run

    async with serving(settings) as url:
        console.print(f"A studio listens on [bold]{url}[/bold] and keeps everything in {settings.data}", soft_wrap=True)
        request = {
            "prompt": "warm lo-fi groove with soft piano and brushed drums",
            "num_samples": 2,
            "duration": 5.0,
            "output_format": "wav",
        }
        await run(console, url, request, output)
    console.print("The studio has stopped. `make up` starts one that stays.")


def _settings(**options: Any) -> Settings:
    return _or_exit(lambda: from_environment(os.environ, **options))


def _run(task: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        _or_exit(lambda: asyncio.run(task()))
    except KeyboardInterrupt:
        sys.exit(130)


def _or_exit(call: Callable[[], T]) -> T:
    """Ends the process with the sentence of an error that was raised on purpose, wherever in it."""
    try:
        return call()
    except Text2SongError as error:
        sentences = [str(error)]
    except ExceptionGroup as group:
        expected, unexpected = group.split(Text2SongError)
        if unexpected is not None or expected is None:
            raise
        sentences = [str(error) for error in _leaves(expected)]
    for sentence in sentences:
        click.echo(f"text2song: {sentence}", err=True)
    sys.exit(1)


def _leaves(group: ExceptionGroup[Text2SongError]) -> Iterator[Text2SongError]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    main()
