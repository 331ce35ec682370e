import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from domain.models import NOISE
from tests.conditions import eventually_sync
from tests.local.parts import Parts, open_parts


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_parts(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="session", autouse=True)
def _wiring() -> Iterator[None]:
    """Studios of these tests make noise unless told otherwise: it takes a tenth of the time that music does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXT2SONG_MODEL", NOISE.id)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that share so small a model with a busy machine spend their time waiting for each other."""
    import torch  # noqa: PLC0415 -- most tests do without it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Running:
    """`text2song up` as a process of its own."""

    def __init__(self, data: Path, *, port: int = 0, **environment: str) -> None:
        self.data = data
        with (data.parent / f"{data.name}.stderr").open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra.cli", "up", "--port", str(port), "--data", str(data)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "TEXT2SONG_LEASE_SECONDS": "2", **environment},
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.search(r"http://\S+[0-9]", line)
        assert match, line + self.errors()
        self.url = match[0]
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def errors(self) -> str:
        return (self.data.parent / f"{self.data.name}.stderr").read_text()

    def wait_until_ready(self) -> None:
        """Until the model is loaded, too."""
        eventually_sync(lambda: self.http.get("/health/ready").json()["generates"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.http.close()
        self.process.send_signal(number)
        code = self.process.wait(timeout=120)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One studio with the built-in model for all tests that need no other."""
    running = Running(tmp_path_factory.mktemp("studio") / "data")
    running.wait_until_ready()
    yield running
    assert running.stop() == 0, running.errors()
