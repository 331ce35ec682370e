"""Single keys of a terminal, which is given back as it was whatever happens."""

import asyncio
import codecs
import os
import re
import signal
import termios
import tty
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import click

from text2song.client import ClientError

STDIN: Final = 0
SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])")
BEGUN: Final = re.compile(r"\x1b(?:\[[0-9;]*|O)?")  # a sequence of which the rest has not arrived
NAMES: Final = {"C": "right", "D": "left"}
END_OF_INPUT: Final = "\x04"  # Ctrl-D


def terminal(remedy: str) -> int:
    """The descriptor of standard input. Raises ClientError where it is no terminal."""
    if not os.isatty(STDIN):
        raise ClientError(f"Standard input is no terminal, so no key can be read. {remedy}")
    return STDIN


class Keyboard:
    """Between entering and leaving, the terminal `fd` gives every key at once and echoes none.

    SIGTERM and SIGHUP cancel the task that entered, and end the process once the terminal is as it was.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = ""
        self._is_at_end = False
        self._changed = asyncio.Event()
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._signal: int | None = None
        self._has_keys = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._saved = termios.tcgetattr(self._fd)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                self._loop.add_signal_handler(number, self._stop, number)
        self._loop.add_signal_handler(signal.SIGCONT, self._resume)
        self._loop.add_reader(self._fd, self._read)
        self._take_keys()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises click's Exit after a signal, with the code that shells give for it."""
        self._loop.remove_reader(self._fd)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCONT):
            self._loop.remove_signal_handler(number)
        self._give_back()
        if self._signal is not None and kind is asyncio.CancelledError:
            raise click.exceptions.Exit(128 + self._signal) from None

    async def key(self) -> str:
        """A character in lower case, `left` or `right`, or nothing for a key without a name here. Ctrl-D is q.

        Raises ClientError when the terminal is gone.
        """
        while True:
            if found := SEQUENCE.match(self._text):
                self._text = self._text[found.end() :]
                return NAMES.get(found[0][-1], "")
            if self._text and not BEGUN.fullmatch(self._text):
                key, self._text = self._text[0], self._text[1:]
                if key != "\x1b":
                    return "q" if key == END_OF_INPUT else key.lower()
            elif self._is_at_end:
                raise ClientError("The terminal is gone, so no key can be read.")
            else:
                await self._change()

    async def line(self) -> str:
        """A line, which is shown and edited as it is typed; empty after Ctrl-D."""
        self._give_back()
        try:
            while "\n" not in self._text and not self._is_at_end:
                await self._change()
        finally:
            self._take_keys()
        line, _, self._text = self._text.partition("\n")
        self._is_at_end = False
        self._loop.add_reader(self._fd, self._read)
        return line.strip()

    def forget(self) -> None:
        """What was typed before it was asked for."""
        self._text = ""
        with suppress(termios.error):
            termios.tcflush(self._fd, termios.TCIFLUSH)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except OSError:  # of a terminal that was closed
            data = b""
        self._text += self._decode(data)
        if not data:
            self._is_at_end = True
            self._loop.remove_reader(self._fd)
        self._changed.set()

    def _stop(self, number: int) -> None:
        self._signal = number
        if self._task is not None:
            self._task.cancel()

    def _resume(self) -> None:
        """After Ctrl-Z and `fg`: the shell had the terminal meanwhile."""
        if self._has_keys:
            self._take_keys()

    def _take_keys(self) -> None:
        self._has_keys = True
        with suppress(termios.error):  # of a terminal that is gone
            tty.setcbreak(self._fd, termios.TCSANOW)

    def _give_back(self) -> None:
        self._has_keys = False
        with suppress(termios.error):
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
