"""Clips of a studio through the system's player, or their addresses where there is none."""

import asyncio
import os
import shutil
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

from domain.errors import Text2SongError
from infra.cli.console import Terminal
from text2song.client import AsyncStudio, ClientError

PROGRAMS: Final = (
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("mpv", "--no-video", "--no-terminal"),
    ("afplay",),
    ("paplay",),
    ("aplay", "--quiet"),
)
STOP_SECONDS: Final = 1.0
HEARD: Final = 0.5  # of a clip: a player that ends before it and complains has failed, whatever its exit code


class PlayerError(Text2SongError):
    """What the player said."""


class Clip(Struct, frozen=True, kw_only=True):
    """`name` is what a listener calls it, `path` where the studio has it as a WAV file."""

    name: str
    path: str
    duration: float


class Player:
    """Plays in the background. `seconds` says how long each clip was heard, by its path, the first heard first.

    A player that fails is said so once; from then on the addresses are printed.
    """

    def __init__(self, terminal: Terminal, client: AsyncStudio) -> None:
        self.seconds: dict[str, float] = {}
        self._terminal = terminal
        self._client = client
        self._files: dict[str, Path] = {}
        self._program: Sequence[str] | None = None
        self._playing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="text2song-")
        found = (name for name in PROGRAMS if shutil.which(name[0]))
        self._program = next(found, None)
        if self._program is None:
            names = ", ".join(name for name, *_ in PROGRAMS)
            self._terminal.tell(f"No player is installed ({names}); open the addresses in a browser.", "yellow")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            self._folder.cleanup()

    async def play(self, *clips: Clip) -> None:
        """One after the other, in place of what is playing."""
        await self.stop()
        self._playing = asyncio.create_task(self._play(clips))

    @property
    def is_silent(self) -> bool:
        return self._playing is None or self._playing.done()

    async def stop(self) -> None:
        playing, self._playing = self._playing, None
        if playing is not None:
            playing.cancel()
            await asyncio.wait({playing})
            if not playing.cancelled():
                playing.result()

    async def forget(self) -> None:
        """Drops what was heard so far, and its files."""
        await self.stop()
        self.seconds.clear()
        for file in self._files.values():
            file.unlink()
        self._files.clear()

    async def _play(self, clips: Sequence[Clip]) -> None:
        for clip in clips:
            if self._program is not None:
                try:
                    await self._hear(self._program, clip)
                except ClientError as error:
                    self._terminal.tell(f"  {clip.name} cannot be played. {error}", "yellow")
                except PlayerError as error:
                    said = f"{self._program[0]} cannot play here: {error}. Open the addresses in a browser."
                    self._terminal.tell(f"  {said}", "yellow")
                    self._program = None
            if self._program is None:
                self._terminal.tell(f"  {clip.name}: {self._client.address(clip.path)}")

    async def _hear(self, program: Sequence[str], clip: Clip) -> None:
        """Raises PlayerError, and ClientError for a clip that cannot be had."""
        file = await self._file(clip)
        try:
            # Its own session, so that a wrapper is stopped together with what it has started.
            process = await asyncio.create_subprocess_exec(
                *program, str(file), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, start_new_session=True
            )
        except OSError as error:
            raise PlayerError(str(error.strerror)) from None
        self._terminal.tell(f"  playing {clip.name} …", "dim")
        begin = time.monotonic()
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            self._count(clip, begin)
            raise
        finally:
            if process.returncode is None:
                await _end(process)
        complaint = said.decode(errors="replace").strip()
        if process.returncode or (complaint and time.monotonic() - begin < HEARD * clip.duration):
            reason = complaint.splitlines()[-1] if complaint else f"it ended with {process.returncode}"
            raise PlayerError(reason.rstrip("."))
        self._count(clip, begin)

    def _count(self, clip: Clip, begin: float) -> None:
        heard = min(time.monotonic() - begin, clip.duration)
        self.seconds[clip.path] = self.seconds.get(clip.path, 0.0) + heard

    async def _file(self, clip: Clip) -> Path:
        if clip.path not in self._files:
            file = Path(self._folder.name) / f"{len(self._files)}.wav"
            await self._client.save(clip.path, file)
            self._files[clip.path] = file
        return self._files[clip.path]


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
