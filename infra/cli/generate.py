"""Prompts at a running studio, as a person at a terminal sees them."""

import asyncio
import time
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from infra.cli import batch
from infra.cli.console import Folder, console, or_exit, run, url_option
from infra.cli.downloads import Downloads
from infra.cli.uploads import with_melody
from text2song.client import AsyncStudio, ClientError, JobUpdate

NAME_LENGTH: Final = 255  # of a file, in most file systems
OPTIONAL: Final = (
    *("duration", "seed", "continue_from", "continue_seconds", "melody_from", "best_of", "best_of_by", "model_id"),
)


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "--file",
    "file",
    type=click.File("rb"),
    help="Make every prompt of this UTF-8 file, one on each line; - reads standard input. Empty lines and lines that "
    "begin with # are skipped.",
)
@url_option
@click.option("--duration", type=float, help="Seconds of audio.")
@click.option(
    "--samples",
    type=int,
    default=1,
    show_default=True,
    help="How many to make of each prompt, each with a seed of its own.",
)
@click.option("--seed", type=int, help="Seed of the first sample; the next ones count up.")
@click.option("--best-of", type=int, help="Make so many candidates for each sample, 2 to 16, and keep the best.")
@click.option(
    "--best-of-by",
    type=click.Choice(["likelihood", "preference"]),
    help="What the best is: the likeliest for the prompt, or the one that an adapter's preference model prefers.",
)
@click.option("--continue-from", metavar="SAMPLE", help="Begin with the end of this sample, by its id, and go on.")
@click.option(
    "--continue-seconds",
    type=float,
    help="How many seconds of that end to begin with; they count towards the duration.  [default: two fifths of the "
    "model's window]",
)
@click.option(
    "--melody",
    "melody_from",
    metavar="FILE|ID",
    help="Follow the tones of this clip: an audio file, which is uploaded, or the id of a sample or a melody.",
)
@click.option("--model", "model_id", help="The model to make it with.  [default: the studio's active one]")
@click.option(
    "--lyrics",
    metavar="FILE|TEXT",
    help="What to sing: a UTF-8 file, or the text itself. Tags such as [verse] and [chorus] begin parts of the song.",
)
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the model's own, such as bpm=90. May be given several times.",
)
@click.option(
    "--format", "output_format", type=click.Choice(["wav", "flac", "mp3", "ogg"]), default="wav", show_default=True
)
@click.option(
    "--output",
    type=Folder(),
    default=Path(),
    help="Folder to save in.  [default: here]",
)
def command(
    prompt: str | None, file: BinaryIO | None, url: str, output: Path, output_format: str, **options: Any
) -> None:
    """Make music from PROMPT, or from each line of a file, at a running studio, and save it.

    The exit code is 0 only if everything was made.
    """
    request = {
        "num_samples": options["samples"],
        "output_format": output_format,
        **{name: options[name] for name in OPTIONAL if options[name] is not None},
    }
    if options["lyrics"] is not None:
        request["lyrics"] = or_exit(lambda: lyrics(options["lyrics"]))
    if options["parameters"]:
        request["parameters"] = or_exit(lambda: dict(map(parameter, options["parameters"])))
    if prompt is not None and file is None:
        run(lambda: make_music(console, url, {"prompt": prompt, **request}, output))
    elif file is not None and prompt is None:
        lines = or_exit(lambda: batch.read(file.name, file.read()))
        run(lambda: batch.make_all(console, url, lines, request, output))
    else:
        raise click.UsageError("Give either PROMPT or --file: one prompt, or a file with a prompt on each line.")


def lyrics(given: str) -> str:
    """Those of the file by that name, or the text itself. Raises ClientError."""
    if len(given) > NAME_LENGTH or (len(given.split()) > 1 and not Path(given).is_file()):
        return given
    try:
        return Path(given).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise ClientError(f"The lyrics in {given} are not UTF-8 (byte {byte}). Save the file as UTF-8.") from None
    except FileNotFoundError:
        if Path(given).suffix or len(Path(given).parts) > 1:
            raise ClientError(
                f"There is no file {given}. Give one with the lyrics, or the lyrics themselves."
            ) from None
        return given
    except OSError as error:
        raise ClientError(f"The lyrics in {given} cannot be read: {error.strerror}. Give a file that can be.") from None


def parameter(given: str) -> tuple[str, Any]:
    """A number and true or false are what they say, anything else is text; in quotes, a number is text too."""
    name, equals, value = given.partition("=")
    if not (name and equals):
        raise ClientError(f"--parameter {given} is not of the form NAME=VALUE; write such as bpm=90.")
    try:
        read = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
    return name, read if isinstance(read, bool | int | float | str) else value


async def make_music(console: Console, url: str, request: dict[str, Any], folder: Path) -> None:
    """Submits, shows what happens and saves the audio. Raises ClientError when there is none to save."""
    downloads = Downloads(folder, request["output_format"])
    await downloads.prepare()
    async with AsyncStudio(url) as client:
        studio = await client.index()
        if studio.notice:
            console.print(f"[yellow]{escape(studio.notice)}[/yellow]", soft_wrap=True)
        receipt = await client.submit(await with_melody(client, request), str(uuid4()))
        job_id = receipt.job_id
        console.print(f"Prompt: {request['prompt']}", markup=False, highlight=False, soft_wrap=True)
        for warning in receipt.warnings:
            console.print(f"[yellow]{escape(warning)}[/yellow]", soft_wrap=True)
        console.print(f"Job {job_id}, {request['num_samples']} sample(s) to make:", highlight=False, soft_wrap=True)
        try:
            final = await _watch(console, client, job_id)
        except asyncio.CancelledError:
            said = f"A running studio goes on with job {job_id}. This cancels it:\n"
            command = batch.cancelling(client, [job_id])
            console.print(f"{said}  {command}", markup=False, highlight=False, soft_wrap=True)
            raise
        await downloads.save(console, client, final)


async def _watch(console: Console, client: AsyncStudio, job_id: str) -> dict[str, Any]:
    """Shows the job's events as they land; the job as it is at its end."""
    begin = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(_label("queued"), total=1.0)
        async for update in client.follow(job_id):
            _advance(bar, task, update)
            if update.name != "progress":
                name = update.data["status"] if update.name == "snapshot" else update.name
                version = "" if update.version is None else f"version {update.version}"
                bar.console.print(f"  {time.monotonic() - begin:6.2f} s  {name:<10} {version}", highlight=False)
            if update.name != "progress" and update.data["status"] in {"completed", "failed", "cancelled"}:
                break
    return update.data


def _advance(bar: Progress, task: TaskID, update: JobUpdate) -> None:
    if update.name == "progress":
        bar.update(task, completed=update.data["progress"] / 100, description=update.data["stage"])
    else:
        bar.update(task, completed=update.data["progress"] / 100, description=_label(update.data["status"]))


def _label(status: str) -> str:
    return "queued: loading the model, or busy" if status == "queued" else status
