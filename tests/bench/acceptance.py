"""Jobs accepted a second by POST /generate, beside FastAPI with Celery, Redis and PostgreSQL.

Each system has one API process, and wrk asks both in turn. A job of the studio is on its log before the answer, in
SQLite with `synchronous=FULL` or on Kafka; one of the peer is committed to PostgreSQL and then queued on Redis, both
as they are by default. Nobody generates: the peer has no worker, and that of `up`, a whole studio in one process, has
an engine that is never done with its first job. `roles` are `text2song api` and `text2song project` on SQLite, and
`cluster` is the same on Kafka and MongoDB. The views are folded meanwhile, and the peer is asked when they have caught
up. SECONDS is the length of a round, ROUNDS how many there are, MODES what is measured.
"""

import asyncio
import os
import pwd
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from unittest.mock import patch

import httpx
import msgspec
from msgspec import Struct

from infra import roles
from infra.cli.main import main as command_line
from infra.servers import ports
from tests.conditions import eventually_sync
from tests.processes import Role, fresh, running
from tests.servers import ROOT, servers
from workers.engine import Clip, EngineRequest, Progress
from workers.engine_process import EngineProcess

CLIENTS: Final = (1, 16, 64)
SECONDS: Final = int(os.environ.get("SECONDS", "5"))
ROUNDS: Final = int(os.environ.get("ROUNDS", "5"))
MODES: Final = os.environ.get("MODES", "up roles cluster").split()
WARM_SECONDS: Final = 3
FOLDED_SECONDS: Final = 300.0
INSTALL: Final = "apt-get update && apt-get install -y --no-install-recommends redis-server postgresql wrk"
POSTGRES: Final = ("initdb", "postgres", "pg_isready")
REQUIREMENTS: Final = (
    "asyncpg==0.32.0",
    "celery[redis]==5.7.0",
    "fastapi==0.165.0",
    "pydantic==2.14.4",
    "sqlalchemy[asyncio]==2.1.9",
    "uvicorn[standard]==0.54.0",
)
SCRIPT: Final = """
wrk.method = "POST"
wrk.body = '{"prompt": "slow blues in a smoky bar", "duration": 8}'
wrk.headers["Content-Type"] = "application/json"
function done(summary, latency, _)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    print(string.format(
        '{"answers": %d, "microseconds": %d, "failed": %d, "p50": %f, "p99": %f}',
        summary.requests, summary.duration, failed, latency:percentile(50), latency:percentile(99)
    ))
end
"""


class Load(Struct, frozen=True):
    """One run of wrk; the percentiles are of microseconds."""

    answers: int
    microseconds: int
    failed: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return 1_000_000 * self.answers / self.microseconds

    @classmethod
    def median(cls, loads: Sequence[Self]) -> tuple[float, float, float]:
        """Jobs a second, and the milliseconds within which 50 % and 99 % of them were accepted."""
        return (
            statistics.median(load.rate for load in loads),
            statistics.median(load.p50 for load in loads) / 1000,
            statistics.median(load.p99 for load in loads) / 1000,
        )


class Programs(Struct, frozen=True):
    wrk: str
    redis: str
    postgres: Path


def programs() -> Programs | None:
    """None where one is missing."""
    wrk, redis = shutil.which("wrk"), shutil.which("redis-server")
    # Debian keeps the servers of each version off the PATH.
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]
    postgres = next((folder for folder in folders if all((folder / name).exists() for name in POSTGRES)), None)
    return Programs(wrk, redis, postgres) if wrk and redis and postgres else None


def environment() -> Path:
    """The peer's interpreter, in an environment that is made once and kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "text2song"
    home = cache / "celery-peer"
    python, uv = home / "bin" / "python", [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--allow-existing", f"--python={sys.executable}", home], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", f"--python={python}", *REQUIREMENTS], check=True)
    return python


def load(wrk: str, url: str, script: Path, clients: int, seconds: int = SECONDS) -> Load:
    command = [wrk, "--threads=1", f"--connections={clients}", f"--duration={seconds}", "--timeout=30s"]
    done = subprocess.run(
        [*command, f"--script={script}", f"{url}/generate"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Load)
    assert found.answers, f"nothing was accepted within {seconds} s"
    assert not found.failed, f"{found.failed} of {found.answers} requests failed"
    return found


@contextmanager
def process(
    command: Sequence[str],
    ready: Callable[[], bool],
    log: Path,
    *,
    user: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            user=user,
            env={**os.environ, **(environment or {})},
            cwd=ROOT if user is None else log.parent,
            stdout=output,
            stderr=output,
        ) as running,
    ):
        try:
            eventually_sync(lambda: running.poll() is not None or ready())
            assert running.poll() is None, log.read_text()
            yield
        finally:
            running.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def postgres(folder: Path, binaries: Path) -> Iterator[str]:
    """Its port, as installed: fsync and synchronous_commit are on. It refuses to run as root."""
    user = pwd.getpwnam("postgres").pw_uid if os.getuid() == 0 else None
    folder.mkdir()
    if user is not None:
        os.chown(folder, user, -1)
    port, data = str(next(ports.free())), str(folder / "data")
    initdb = [f"{binaries}/initdb", "--auth=trust", "--username=studio", "--no-sync", data]
    subprocess.run(initdb, user=user, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    server = [f"{binaries}/postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", str(folder)]
    asking = [f"{binaries}/pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
    with process(server, lambda: subprocess.run(asking, check=False).returncode == 0, folder / "log", user=user):
        yield port


@contextmanager
def redis(folder: Path, program: str) -> Iterator[str]:
    """Its port."""
    folder.mkdir()
    port = str(next(ports.free()))
    server = [program, "--port", port, "--bind", "127.0.0.1", "--dir", str(folder)]
    with process(server, lambda: listens(int(port)), folder / "log"):
        yield port


@contextmanager
def peer(folder: Path, found: Programs, python: Path) -> Iterator[str]:
    """Its URL."""
    with (
        postgres(folder / "postgres", found.postgres) as database,
        redis(folder / "redis", found.redis) as broker,
    ):
        port = str(next(ports.free()))
        server = [str(python), "-m", "uvicorn", "tests.celery_peer:app", "--port", port, "--no-access-log"]
        opened = {
            "DATABASE_URL": f"postgresql+asyncpg://studio@127.0.0.1:{database}/postgres",
            "BROKER_URL": f"redis://127.0.0.1:{broker}/0",
        }
        with process(server, lambda: listens(int(port)), folder / "log", environment=opened):
            yield f"http://127.0.0.1:{port}"


class Silent(EngineProcess):
    """An engine that is never done with its first job."""

    async def start(self) -> None:
        """There is nothing to load."""

    async def generate(self, _: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        await asyncio.Event().wait()
        yield Progress(request_id="", fraction=0, stage="")


@contextmanager
def whole(settings: Mapping[str, str]) -> Iterator[Role]:
    """`text2song up` with that engine."""
    command = [sys.executable, "-m", __name__, "up"]
    with subprocess.Popen(
        command, env={**os.environ, **settings}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Role(process.pid, process.stdout.readline().strip())
        finally:
            process.terminate()


@contextmanager
def studio(mode: str, folder: Path) -> Iterator[str]:
    """Its URL."""
    local = {"TEXT2SONG_DATA": str(folder / mode), "TEXT2SONG_PORT": "0"}
    match mode:
        case "up":
            with whole(local) as role:
                yield role.url
        case "roles":
            with running("project", local), running("api", local) as role:
                yield role.url
        case "cluster":
            settings = fresh(servers().addresses)
            with running("project", settings), running("api", settings) as role:
                yield role.url


def accepted(url: str) -> int:
    """How many jobs the views count."""
    return sum(httpx.get(f"{url}/jobs/stats", timeout=30, trust_env=False).json()["counts"].values())


def folded(url: str, at_least: int) -> int:
    """Waits until the views count so many jobs, and no more of those that wrk gave up at its end."""
    end, count = time.monotonic() + FOLDED_SECONDS, -1
    while (found := accepted(url)) < at_least or found != count:
        assert time.monotonic() < end, f"of {at_least} accepted jobs, {found} are in the views"
        count = found
        time.sleep(0.3)
    return count


def measure(mode: str, url: str, peer_url: str, wrk: str, script: Path) -> None:
    for each in (url, peer_url):
        load(wrk, each, script, clients=16, seconds=WARM_SECONDS)
    so_far = folded(url, 1)
    for clients in CLIENTS:
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(load(wrk, url, script, clients))
            so_far = folded(url, so_far + ours[-1].answers)
            theirs.append(load(wrk, peer_url, script, clients))
        (rate, p50, p99), (peer_rate, peer_p50, peer_p99) = Load.median(ours), Load.median(theirs)
        rates = f"{rate:6,.0f}   {peer_rate:6,.0f}   {rate / peer_rate:5.2f}"
        delays = f"{p50:7.2f} ms {p99:7.2f} ms   {peer_p50:9.2f} ms {peer_p99:7.2f} ms"
        ratios = f"{p50 / peer_p50:.2f} (p50) {p99 / peer_p99:.2f} (p99)"
        print(f"{mode:7}   {clients:7}   {rates}   {delays}   {ratios}", flush=True)


def main() -> None:
    found = programs()
    if found is None:
        print(f"wrk, Redis or PostgreSQL is not here: {INSTALL}")
        return
    python = environment()
    with tempfile.TemporaryDirectory() as name:
        folder, script = Path(name), Path(name, "generate.lua")
        folder.chmod(0o755)
        script.write_text(SCRIPT)
        with peer(folder, found, python) as peer_url:
            print(
                "mode      clients   jobs/s     peer   ratio   accepted: p50        p99   peer: p50        p99   ratios"
            )
            for mode in MODES:
                with studio(mode, folder) as url:
                    measure(mode, url, peer_url, found.wrk, script)


if __name__ == "__main__":
    with patch.object(roles, "EngineProcess", Silent):
        command_line()
