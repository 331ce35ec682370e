"""The real servers, started once a session."""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from domain.errors import UnavailableError
from infra.servers.loopback import Servers

__all__ = ["Servers", "servers"]

ROOT = Path(__file__).parents[1]


def servers() -> Servers:
    """Skips the test when there are none to be had; where CI is set, that is a failure."""
    started = _started()
    if isinstance(started, Servers):
        return started
    if os.environ.get("CI"):
        pytest.fail(started)
    pytest.skip(started)


@functools.cache
def _started() -> Servers | str:
    if os.environ.get("TEXT2SONG_TEST_SERVERS") == "skip":
        return "TEXT2SONG_TEST_SERVERS=skip: nothing is tested on real servers"
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
    found = Servers(Path(folder))
    try:
        found.up()
    except UnavailableError as error:
        return f"The real servers cannot be had: {error}"
    return found
