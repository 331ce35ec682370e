"""Shared by the commands: the terminal, the settings, signals, and how an error ends a process."""

import asyncio
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import uvloop
from rich.console import Console

from domain.errors import Text2SongError
from domain.prompts import CONTROL
from infra.heartbeat import beat
from infra.settings import Settings, load, masked, path

REPEAT_SECONDS: Final = 30.0
REPEATED_SECONDS: Final = 0.5  # a signal that comes twice within it was sent once
T = TypeVar("T")


class Terminal(Console):
    """Falls silent when nobody reads on, as `head` does not. Raises ClickException when its file cannot be written."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.on_broken_pipe()
            raise click.ClickException(f"Standard output cannot be written: {error.strerror}.") from None

    def tell(self, text: str, style: str | None = None) -> None:
        """The text as it is, but for control characters: whoever wrote it does not command the terminal."""
        self.print(CONTROL.sub("\ufffd", text), style=style, markup=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # Or else the interpreter tries once more at its end, and fails.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


console = Terminal()
url_option = click.option(
    "--url",
    envvar="TEXT2SONG_URL",
    default="http://127.0.0.1:8000",
    show_default=True,
    show_envvar=True,
    help="The studio.",
)


class Folder(click.Path):
    """A folder, whose `~` is expanded where the shell left it, as in `--output=~/music`."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            self.fail(f"{str(value)!r}: there is no such home folder. Write the whole path.", param, ctx)
        return super().convert(path, param, ctx)


def prepare_streams() -> None:
    """To be called before anything is opened, which would take the number of a standard stream that is closed.

    What the terminal cannot show is replaced.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


async def run_role(work: Coroutine[Any, Any, None], heartbeat: Path | None = None) -> None:
    """Runs until a signal comes, or the work fails; meanwhile touches the heartbeat's file."""
    with signals() as stopped:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(work)
            beating = tasks.create_task(beat(heartbeat)) if heartbeat else None
            waiting = tasks.create_task(stopped.wait())
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.is_set():
                say("Stopping … (Ctrl-C again stops at once)")
            running.cancel()
            waiting.cancel()
            if beating is not None:
                await asyncio.wait({running})
                beating.cancel()


class RepeatFilter(logging.Filter):
    """Passes each sentence of a client of Kafka once in a while: in an outage it says the same ten times a second."""

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
def signals() -> Iterator[asyncio.Event]:
    """Set by a signal that asks to stop. Then Ctrl-C stops at once, and other signals change nothing any more.

    A service manager may send several signals, and a terminal's reach a process from its parent as well.
    """
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        numbers.append(signal.SIGHUP)

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            loop.call_later(REPEATED_SECONDS, loop.remove_signal_handler, signal.SIGINT)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            if stopped.is_set():
                signal.signal(number, signal.SIG_IGN)


def places(settings: Settings) -> str:
    """Where the log, the store and the objects are, without passwords."""
    places = {name: getattr(settings, name) for name in ("log", "store", "objects")}
    away = [masked(name, place) for name, place in places.items() if "://" in place]
    here = [str(settings.folder.resolve())] if len(away) < len(places) else []
    return ", ".join(away + here)


def say(sentence: str) -> None:
    """What a service may fail to say; it goes on."""
    with suppress(click.ClickException):
        console.print(sentence, soft_wrap=True)


def chosen_settings(**options: Any) -> Settings:
    return or_exit(lambda: load(os.environ, **options))


def heartbeat(settings: Settings) -> Path | None:
    return path(settings, "heartbeat") if settings.heartbeat else None


def run(task: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        or_exit(lambda: uvloop.run(task()))
    except KeyboardInterrupt:
        sys.exit(130)


def or_exit(call: Callable[[], T]) -> T:
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
