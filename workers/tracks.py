"""Finished tracks as files in a folder that other programs read: WAV and MP3, beside the studio's own copies."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from domain.errors import NotFoundError, UnavailableError
from domain.events import Recorded
from domain.events.jobs import Format, JobCompleted, JobDeleted, JobPurged
from domain.jobs import JOBS, Job, Sample
from domain.ports import ObjectStore, ReadStore
from workers.mastering import transcode

FORMATS: Final[tuple[Format, ...]] = ("wav", "mp3")

logger: Final = logging.getLogger(__name__)


class TracksInFolder:
    """Writes the samples of each completed job, and removes those of one whose audio is gone."""

    name = "tracks"
    topics = (JOBS.name,)

    def __init__(self, store: ReadStore, objects: ObjectStore, folder: Path) -> None:
        self._store = store
        self._objects = objects
        self._folder = folder
        # Of its own, as every file operation waits for a thread of the common one.
        self._executor = ThreadPoolExecutor(1, "tracks")

    async def react(self, batch: Sequence[Recorded]) -> None:
        """As in Reaction. Raises UnavailableError where the folder cannot be written."""
        changing = (JobCompleted, JobDeleted, JobPurged)
        keys = {recorded.key for recorded in batch if isinstance(recorded.event, changing)}
        for job in (await self._store.get(JOBS, list(keys)) if keys else {}).values():
            for sample in job.kept:
                await self._settle(job, sample)

    async def _settle(self, job: Job, sample: Sample) -> None:
        paths = {output: self._folder / f"{sample.event.sample_id}.{output}" for output in FORMATS}
        try:
            if job.is_silent:
                for path in paths.values():
                    await asyncio.to_thread(path.unlink, missing_ok=True)
            elif job.status == "completed":
                await self._write(sample, paths)
        except OSError as error:
            raise UnavailableError(
                f"The folder {self._folder} for finished tracks cannot be written: {error.strerror}. Make room or give "
                "rights, or set TEXT2SONG_OUTPUT_DIR to another one."
            ) from None

    async def _write(self, sample: Sample, paths: dict[Format, Path]) -> None:
        missing = {output: path for output, path in paths.items() if not path.exists()}
        if not missing:
            return
        try:
            flac = b"".join([chunk async for chunk in self._objects.read(sample.event.storage_path)])
        except NotFoundError:  # its job was deleted meanwhile
            return
        if sha256(flac).hexdigest() != sample.event.sha256:
            logger.warning("No track is written of %s, which is damaged.", sample.event.storage_path)
            return
        for output, path in missing.items():
            content = await asyncio.get_running_loop().run_in_executor(self._executor, transcode, flac, output)
            await asyncio.to_thread(_put, path, content)


def _put(path: Path, content: bytes) -> None:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".track-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
