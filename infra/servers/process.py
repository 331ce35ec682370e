"""Processes that outlive the one that started them, known again by their birth and not by a number alone."""

import os
import re
import select
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
COMPLAINTS: Final = (
    re.compile(r"^[\w.]+(Exception|Error): "),
    re.compile(r'\berror\b|\bfatal\b|"s":"[EF]"', re.IGNORECASE),
)


class Process(Struct, frozen=True):
    """`birth` is the boot and the tick in it at which the process began: a recycled pid has another."""

    pid: int
    birth: str

    @classmethod
    def spawn(cls, command: list[str], environment: Mapping[str, str], log: Path) -> Self:
        """In a session of its own, with its output appended to `log`. Raises OSError."""
        pid = os.posix_spawn(
            command[0],
            command,
            {**os.environ, **environment},
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        return cls(pid, _birth(pid) or "")

    @property
    def alive(self) -> bool:
        with self._handle() as handle:
            return handle is not None

    def end(self, number: signal.Signals, seconds: float) -> bool:
        """Sends the signal and waits; true once the process is gone."""
        with self._handle() as handle:
            if handle is None:
                return True
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            exited = select.poll()
            exited.register(handle, select.POLLIN)
            return bool(exited.poll(seconds * 1000))

    @contextmanager
    def _handle(self) -> Iterator[int | None]:
        """A pidfd, which stays this process's even when the pid is given away; None when the process is gone."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield handle if _birth(self.pid) == self.birth else None
        finally:
            os.close(handle)


def complaint(output: str) -> str:
    """The line of a program's output that most likely says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = (line for pattern in COMPLAINTS for line in lines if pattern.search(line))
    return next(telling, lines[-1] if lines else "it printed nothing")


def _birth(pid: int) -> str | None:
    """None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{BOOT_ID.read_text().strip()} {fields[19]}"
