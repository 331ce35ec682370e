"""Saving a job's samples, each in a file of its own that is named after the prompt."""

import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from domain.events.jobs import Format
from domain.file_names import file_name
from text2song.client import AsyncStudio, ClientError, Sample


class Downloads:
    """A folder to save in. No file takes the name of another one, nor of one that was there before."""

    def __init__(self, folder: Path, output_format: Format) -> None:
        self._folder = folder
        self._format = output_format
        self._taken: set[str] = set()

    async def prepare(self) -> None:
        """Raises ClientError for a folder that cannot be made."""
        try:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise ClientError(
                f"The folder {self._folder} cannot be made: {error.strerror}. Choose another with --output."
            ) from None

    async def save(self, console: Console, client: AsyncStudio, job: dict[str, Any]) -> None:
        """Saves what a job has made, and prints the files. Raises ClientError, also for a job that did not complete."""
        if job["status"] != "completed":
            raise ClientError(f"Job {job['id']} is {job['status']}: {job['error'] or 'somebody stopped it'}.")
        for index, sample_id in enumerate(job["sample_ids"]):
            path = self._free(job["prompt"], job["id"], index)
            await client.download(sample_id, path, self._format)
            console.print(_describe(path, await client.sample(sample_id)), soft_wrap=True)

    def _free(self, prompt: str, job_id: str, index: int) -> Path:
        name = file_name(prompt, job_id, index, self._format)
        if name in self._taken or (self._folder / name).exists():
            name = file_name(prompt, job_id, index, self._format, digits=len(job_id))
        self._taken.add(name)
        return self._folder / name


def _describe(path: Path, sample: Sample) -> str:
    loudness = "silent" if sample.loudness_lufs is None else f"{sample.loudness_lufs:.1f} LUFS"
    picked = ""
    if sample.picked_by is not None:
        picked = f", the best of {len(sample.scores)} by {sample.picked_by}"
    return (
        f"  [bold]{escape(str(path))}[/bold]  {sample.duration_seconds:.2f} s, "
        f"{sample.sample_rate / 1000:g} kHz, {loudness}, seed {sample.generation_params['seed']}{picked}"
    )
