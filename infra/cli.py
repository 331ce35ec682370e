"""The command `text2song`."""

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.table import Column, Table

from domain.errors import Text2SongError, UnavailableError
from infra.settings import Settings, explain, masked, read

NAME: Final = f"Text2Song Studio {version('text2song-studio')}"

REPEAT_SECONDS: Final = 30.0

console = Console()
T = TypeVar("T")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("text2song-studio"))
def main() -> None:
    """Text2Song Studio: prompts to music, on one machine or many."""
    handler = logging.StreamHandler()
    handler.addFilter(_Seldom())
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )


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
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.  [default: 8000]")
def api(**options: Any) -> None:
    """Serve the API alone: `text2song project` folds its views, `text2song work` generates."""
    settings = _settings(**options)
    _run(lambda: _role(_api(settings)))


@main.command()
@click.option("--instance", help="Name of this process, kept when it starts again.  [default: the host's name]")
def project(**options: Any) -> None:
    """Fold the views. With a log on Kafka, as many processes as there are partitions share the work."""
    from infra.bootstrap import fold

    settings = _settings(**options)
    _run(lambda: _role(fold(settings), f"Folding {_places(settings)}; Ctrl-C stops it."))


@main.command()
@click.option("--model", help="Model to load: a known name, or the folder of a MusicGen checkpoint.")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
def work(**options: Any) -> None:
    """Generate: claim queued jobs and carry them out, with any number of workers beside."""
    from infra.bootstrap import generate

    settings = _settings(**options)
    _run(lambda: _role(generate(settings), f"Generating with {settings.model}; Ctrl-C stops it."))


@main.command()
@click.argument("topics", nargs=-1, required=True, type=click.Choice(["prompts", "jobs"]))
def rebuild(topics: tuple[str, ...]) -> None:
    """Fold the views of TOPICS anew beside the ones that serve, compare the two, and switch at once."""
    settings = _settings()
    _run(lambda: _rebuild(settings, topics))


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
@click.option("--cluster", is_flag=True, help="Each role a process of its own, on real Kafka, MongoDB and S3.")
def demo(output: Path, cluster: bool) -> None:
    """Start a studio, make two samples from one prompt, show every event, save the audio, and stop."""
    from infra import demo as demos

    settings = _settings(data=str(output / "data"), port=0)
    _run(lambda: demos.cluster(console, output) if cluster else demos.local(console, settings, output))


@main.command("settings")
def show_settings() -> None:
    """Show every setting, its meaning, and where its value comes from."""
    table = Table(*(Column(title, overflow="fold") for title in ("setting", "value", "from", "meaning")))
    for setting in _or_exit(lambda: explain(os.environ)):
        table.add_row(setting.name, setting.value, setting.origin, setting.meaning)
    console.print(table)


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


@main.group()
def contract() -> None:
    """What other programs may rely on."""


@contract.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def export(folder: Path) -> None:
    """Write the AsyncAPI document, JSON Schemas, transition tables and conformance vectors to FOLDER."""
    from domain.contract import files

    written = _or_exit(lambda: _write(folder, files()))
    console.print(f"{written} files are in {folder}", soft_wrap=True)


def _write(folder: Path, files: Mapping[str, bytes]) -> int:
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise UnavailableError(f"The contract cannot be written to {folder}: {error.strerror}.") from None
    return len(files)


async def _up(settings: Settings) -> None:
    from infra.bootstrap import serving

    with _signals() as stopped:
        async with serving(settings) as url:
            _say(f"{NAME} listens on [bold]{url}[/bold]; Ctrl-C stops it.")
            _say(f"Model {settings.model}; everything is kept in {_places(settings)}")
            await stopped.wait()
            _say("Stopping … (Ctrl-C again stops at once)")


async def _api(settings: Settings) -> None:
    """Until cancelled."""
    from infra.bootstrap import answering

    async with answering(settings) as url:
        _say(f"{NAME}, its API alone, listens on [bold]{url}[/bold]; Ctrl-C stops it.")
        await asyncio.Event().wait()


async def _rebuild(settings: Settings, topics: tuple[str, ...]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from infra.bootstrap import rebuild

    with Progress("Folding", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("")
        compared = await rebuild(settings, topics, lambda at: bar.update(task, completed=at.folded, total=at.total))
    table = Table("view", "compared", "differing", "apart", "old digest", "new digest")
    for view in compared:
        digests = [(digest or "unreadable")[:12] for digest in (view.old_digest, view.new_digest)]
        table.add_row(view.view, f"{view.documents:,}", f"{view.differing:,}", f"{view.apart:,}", *digests)
    console.print(table)
    for view in compared:
        if view.examples:
            _say(f"Of {view.view}, these differ or were behind: {', '.join(view.examples)}")
    _say("The rebuilt views serve now.")


async def _role(work: Coroutine[Any, Any, None], announcement: str | None = None) -> None:
    """Runs until a signal comes, or the work fails."""
    with _signals() as stopped:
        if announcement is not None:
            _say(announcement)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(work)
            waiting = tasks.create_task(stopped.wait())
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            running.cancel()
            waiting.cancel()


class _Seldom(logging.Filter):
    """Lets a client of Kafka say a thing once in a while: in an outage each says the same ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(("aiokafka", "faust", "mode")):
            return True
        key = (record.name, str(record.msg))
        if record.created - self._said.get(key, 0.0) < REPEAT_SECONDS:
            return False
        self._said[key] = record.created
        return True


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Set by the first signal that asks to stop; the second stops at once."""
    loop, stopped, numbers = asyncio.get_running_loop(), asyncio.Event(), (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        stopped.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _places(settings: Settings) -> str:
    """Where the log, the store and the objects are, without passwords."""
    places = {name: getattr(settings, name) for name in ("log", "store", "objects")}
    away = [masked(name, place) for name, place in places.items() if "://" in place]
    here = [str(settings.folder.resolve())] if len(away) < len(places) else []
    return ", ".join(away + here)


def _say(sentence: str) -> None:
    console.print(sentence, soft_wrap=True)


def _settings(**options: Any) -> Settings:
    return _or_exit(lambda: read(os.environ, **options))


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
