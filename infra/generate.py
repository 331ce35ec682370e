"""One prompt at a running studio, as a person at a terminal sees it."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from infra.client import ClientError, JobUpdate, StudioClient


async def generate(console: Console, url: str, request: dict[str, Any], folder: Path) -> None:
    """Submits, shows what happens and saves the audio. Raises ClientError when there is none to save."""
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise ClientError(
            f"The folder {folder} cannot be made: {error.strerror}. Choose another with --output."
        ) from None
    async with StudioClient(url) as client:
        studio = await client.get("/")
        if studio["notice"]:
            console.print(f"[yellow]{escape(studio['notice'])}[/yellow]", soft_wrap=True)
        job_id = await client.submit(request, str(uuid4()))
        console.print(f"Prompt: {request['prompt']}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"Job {job_id}, {request['num_samples']} sample(s) to make:", highlight=False, soft_wrap=True)
        try:
            final = await _watch(console, client, job_id)
        except asyncio.CancelledError:
            console.print(
                f"A running studio goes on with job {job_id}; DELETE /generate/{job_id} stops it.", soft_wrap=True
            )
            raise
        for number, sample_id in enumerate(final["sample_ids"]):
            path = folder / f"{_slug(request['prompt'])}-{job_id[-6:]}-{number}.{request['output_format']}"
            await client.download(sample_id, request["output_format"], path)
            console.print(_describe(path, await client.sample(sample_id)), soft_wrap=True)


async def _watch(console: Console, client: StudioClient, job_id: str) -> dict[str, Any]:
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
    if update.data["status"] != "completed":
        raise ClientError(f"Job {job_id} is {update.data['status']}: {update.data['error'] or 'somebody stopped it'}.")
    return update.data


def _advance(bar: Progress, task: TaskID, update: JobUpdate) -> None:
    if update.name == "progress":
        bar.update(task, completed=update.data["fraction"], description=update.data["stage"])
    else:
        bar.update(task, completed=update.data["progress"] / 100, description=_label(update.data["status"]))


def _label(status: str) -> str:
    return "queued: loading the model, or busy" if status == "queued" else status


def _describe(path: Path, sample: dict[str, Any]) -> str:
    loudness = "silent" if sample["loudness_lufs"] is None else f"{sample['loudness_lufs']:.1f} LUFS"
    return (
        f"  [bold]{escape(str(path))}[/bold]  {sample['duration_seconds']:.2f} s, "
        f"{sample['sample_rate'] / 1000:g} kHz, {loudness}, seed {sample['generation_params']['seed']}"
    )


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "music"
