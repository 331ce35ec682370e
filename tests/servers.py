"""The real servers: three sets of them, so that tests which wait for a server do not wait for each other."""

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

__all__ = ["SHARED", "Servers", "choose", "do_without", "servers", "set_of", "share", "start"]

ROOT = Path(__file__).parents[1]
SHARED = "TEXT2SONG_TEST_SERVERS_FOLDER"
# Chosen so that all sets are used for as long.
SETS = {"test_roles": "first", "test_chaos": "second", "test_faust_app": "second"}
OTHERS = "third"
DOWN = 'read _; for set in "$0"/*; do "$1" -m infra.cli servers down --data "$set"; done; rm -r "$0"'
_chosen = OTHERS


def servers() -> Servers:
    """Skips the test when there are none to be had; where CI is set, that is a failure."""
    started = _started(_chosen)
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


def share() -> None:
    """The processes that this one starts use its servers, and whichever needs them first starts them."""
    os.environ[SHARED] = _folder()


def set_of(nodeid: str) -> str | None:
    """The name of the set that a test uses, None where it uses none or brings its own."""
    file, _, name = nodeid.partition("::")
    alone = file.endswith(("/test_demo.py", "/test_servers.py"))
    is_cluster = file.startswith("tests/cluster/") and not alone
    on_servers = file.startswith("tests/contract/") and any(f"[{kind}" in name for kind in ("kafka", "mongo", "s3"))
    if not is_cluster and not on_servers:
        return None
    return SETS.get(Path(file).stem, OTHERS) if is_cluster else OTHERS


def choose(nodeid: str) -> None:
    """Says which test runs next."""
    global _chosen  # noqa: PLW0603 -- tests run one after the other
    _chosen = set_of(nodeid) or OTHERS


@functools.cache
def _started(name: str) -> Servers | str:
    try:
        return start(Path(os.environ.get(SHARED) or _folder()) / name)
    except UnavailableError as error:
        return f"There are no real servers: {error}"


def _folder() -> str:
    """A new one."""
    folder = tempfile.mkdtemp(prefix="text2song-servers-")
    # Its standard input closes when this process ends, however it ends, and then the servers go too.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", DOWN, folder, sys.executable],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    atexit.register(guard.communicate)
    return folder
