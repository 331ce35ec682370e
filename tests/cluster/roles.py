"""The roles of one studio, each a process of its own, on topics, a database and a bucket that no other studio has."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from domain.ports import EventLog, ObjectStore, ReadStore
from infra.bootstrap import adapters
from infra.servers import ports
from infra.servers.addresses import Addresses
from infra.settings import load
from tests.conditions import eventually
from tests.processes import fresh
from tests.servers import ROOT

Name: TypeAlias = Literal["api", "project", "work", "react"]

PATIENCE: Final = float(os.environ.get("PATIENCE", "300"))


class Role:
    """A process of `text2song`, and those that take its place; what all of them say is kept in one file."""

    def __init__(self, name: Name, environment: Mapping[str, str], output: Path) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{environment['TEXT2SONG_PORT']}"
        self.endings: list[int] = []
        self._environment = environment
        self._output = output
        self._process: asyncio.subprocess.Process | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def said(self) -> str:
        return self._output.read_text()

    async def start(self) -> None:
        with self._output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "infra.cli", self.name),
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment},
                cwd=ROOT,
            )

    async def keep(self) -> None:
        """Starts it again whenever it ends, as a supervisor would, until cancelled."""
        while True:
            await self.start()
            self.endings.append(await self.ending())

    async def ending(self, seconds: float | None = None) -> int:
        """The status with which it ends; negative is the signal."""
        assert self._process is not None
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def stop(self, seconds: float = 60.0) -> int:
        self.send(signal.SIGTERM)
        return await self.ending(seconds)

    def send(self, number: signal.Signals) -> bool:
        """False when no process is there to take it."""
        if self._process is None or not self.runs:
            return False
        self._process.send_signal(number)
        return True

    def kill_engine(self) -> bool:
        """Kills the process that has a worker's model; false when there is none at the moment."""
        with suppress(ProcessLookupError):
            for pid in _children(self._process.pid if self._process else 0):
                # The other child is the one that multiprocessing keeps its books with.
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    async def says(self, text: str, seconds: float = PATIENCE) -> None:
        async def said() -> bool:
            assert self.runs, self.said
            return text in self.said

        await eventually(said, seconds)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ends while it is looked at
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


class Studio:
    def __init__(self, addresses: Addresses, folder: Path) -> None:
        self.roles: list[Role] = []
        self._folder = folder
        self.environment = fresh(addresses) | {
            "TEXT2SONG_LEASE_SECONDS": "3",
            "TEXT2SONG_MODEL": "text2song/wiring-noise",
            "TEXT2SONG_DEVICE": "cpu",
        }
        self.prefix = self.environment["TEXT2SONG_KAFKA_PREFIX"]

    def role(self, name: Name, **environment: str) -> Role:
        """One more, not yet started."""
        number = len(self.roles)
        own = {"TEXT2SONG_PORT": str(next(ports.free())), "TEXT2SONG_INSTANCE": f"instance-{number}"}
        made = Role(name, {**self.environment, **own, **environment}, self._folder / f"{name}-{number}.txt")
        self.roles.append(made)
        return made

    async def command(self, *arguments: str) -> asyncio.subprocess.Process:
        """A command of the operator's, its output to be read."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "infra.cli", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.environment},
            cwd=ROOT,
        )

    def adapters(self) -> AbstractAsyncContextManager[tuple[EventLog, ReadStore, ObjectStore]]:
        return adapters(load(self.environment))


@asynccontextmanager
async def studio(addresses: Addresses, folder: Path) -> AsyncIterator[Studio]:
    """Leaves no process behind."""
    made = Studio(addresses, folder)
    try:
        yield made
    finally:
        for role in made.roles:
            if role.send(signal.SIGKILL):
                await role.ending()
