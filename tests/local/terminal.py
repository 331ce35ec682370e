"""A pseudo-terminal with somebody at it, a player that is a script, and a studio on loopback without a process."""

import asyncio
import contextlib
import io
import os
import pty
import socket
import stat
import termios
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from infra.cli.console import Terminal
from tests.conditions import eventually

# Says what it is asked to play, then plays for as long as the test wants: it is never waited for to the end.
SCRIPT = """#!/bin/sh
for file; do :; done
echo "$$ $(head -c 4 "$file")" >>"$PLAYED"
[ -z "$COMPLAINT" ] || { echo "$COMPLAINT" >&2; exit 1; }
sleep "${PLAYS:-60}"
"""


class Person:
    """Sits at the terminal `fd`, and reads what is printed."""

    def __init__(self, folder: Path) -> None:
        self._keys, self.fd = pty.openpty()
        self._printed = io.StringIO()
        self._read = 0
        self._played = folder / "played"
        self.terminal = Terminal(file=self._printed, width=200)
        self.modes = self.modes_now

    def press(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    async def sees(self, *sentences: str) -> None:
        """One after the other, in what was printed since."""
        for sentence in sentences:
            try:
                self._read = await eventually(partial(self._find, sentence))
            except AssertionError:
                raise AssertionError(f"{sentence!r} is not in {self.printed[self._read :]!r}") from None

    async def _find(self, sentence: str) -> int:
        place = self.printed.find(sentence, self._read)
        return 0 if place < 0 else place + len(sentence)

    @property
    def printed(self) -> str:
        return self._printed.getvalue()

    async def hears(self, count: int) -> int:
        """The process that plays the clip of that number."""

        async def played() -> list[str]:
            lines = self._played.read_text().splitlines() if self._played.exists() else []
            return lines if len(lines) >= count else []

        lines = await eventually(played)
        assert len(lines) == count, lines
        pid, magic = lines[-1].split()
        assert magic == "RIFF"
        return int(pid)

    @property
    def modes_now(self) -> list[Any]:
        return termios.tcgetattr(self._keys)

    def hang_up(self) -> None:
        os.close(self._keys)
        self._keys = -1

    def close(self) -> None:
        assert self.modes_now == self.modes
        os.close(self._keys)
        os.close(self.fd)


def player(folder: Path, name: str = "ffplay") -> dict[str, str]:
    """The environment in which it is the first player found."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(SCRIPT)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "PLAYED": str(folder / "played")}


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Behind its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        server = _Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running
