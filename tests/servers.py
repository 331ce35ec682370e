"""The real servers, started once a session."""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from domain.errors import UnavailableError
from infra.servers.loopback import Servers

__all__ = ["Servers", "do_without", "servers", "start"]

ROOT = Path(__file__).parents[1]


def servers() -> Servers:
    """Skips the test when there are none to be had; where CI is set, that is a failure."""
    started = _started()
    if isinstance(started, str):
        do_without(started)
    return started


def start(folder: Path) -> Servers:
    """A set of one's own. Raises UnavailableError."""
    if os.environ.get("TEXT2SONG_TEST_SERVERS") == "skip":
        raise UnavailableError("TEXT2SONG_TEST_SERVERS is skip, so nothing is tested on them.")
    found = Servers(folder)
    found.up()
    return found


def do_without(reason: str) -> NoReturn:
    reason = " ".join(reason.split())
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def _started() -> Servers | str:
    folder = tempfile.mkdtemp(prefix="text2song-servers-")
    # Its standard input closes when this process ends, however it ends, and then the servers go too.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", 'read _; "$1" -m infra.cli servers down --data "$0"; rm -r "$0"', folder, sys.executable],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    atexit.register(guard.communicate)
    try:
        return start(Path(folder))
    except UnavailableError as error:
        return f"There are no real servers: {error}"
