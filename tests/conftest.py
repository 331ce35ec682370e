"""A run in several processes, `-n 4`: which tests stay together, and what the processes share."""

import os
import signal
from typing import Any

import hypothesis
import pytest

from tests import servers

# Time on a shared machine says nothing about a property.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ALONE = "tests/local/test_trainings.py"
LONG = ("tests/cluster/", ALONE, "tests/local/test_training.py", "tests/local/test_loop.py")
# Kafka starts in two thirds of the time, and no test lasts long enough for better code to pay.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("JDK_JAVA_OPTIONS", JAVA_OPTIONS)
    # Models of tests are so small that threads which share one with other tests mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A shell that starts the run in the background has SIGINT ignored in all of its processes, and nohup SIGHUP, which
    # the run goes on ignoring; only its children hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if config.getoption("numprocesses", None):
        servers.share()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins early, or else the processes wait for the last of them in the end."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 -- the tests run without it too

    config.option.loadscopereorder = False
    scheduler: Any = LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    return scheduler


def group(nodeid: str) -> str:
    """Tests that use the same servers stay together, as some of them kill a server; others go by their file.

    Trainings, which take a minute each, share nothing.
    """
    file = nodeid.partition("::")[0]
    return servers.set_of(nodeid) or (nodeid if file == ALONE else file)


def pytest_runtest_setup(item: pytest.Item) -> None:
    servers.choose(item.nodeid)
