"""Many who listen at once: clients of one job's events, and players that ask for ranges of one file beside them.

Every client has to hear every event up to the last, and every range has to have its bytes. The processor's time of a
client is compared with that of one of 10 clients, alone. The variables: CLIENTS, PLAYERS, and ROUNDS.
"""

import asyncio
import os
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from uuid_utils import uuid7

from domain.events import timestamp
from domain.events.jobs import JobCompleted, JobStarted, JobSubmitted
from domain.journal import Journal
from domain.models import NOISE
from infra.storage.sqlite_log import SqliteLog
from tests.conditions import eventually, eventually_sync
from tests.history import sample
from tests.local.conftest import Running

CLIENTS: Final = int(os.environ.get("CLIENTS", "1000"))
PLAYERS: Final = int(os.environ.get("PLAYERS", "200"))
ROUNDS: Final = int(os.environ.get("ROUNDS", "2"))
FEW: Final = 10
SAMPLES: Final = 16
RANGES: Final = 8
NOBODYS: Final = "bench/nobody"  # a model of no worker: this bench itself says how its jobs go on


class Studio:
    def __init__(self, folder: Path) -> None:
        # The studio's own worker would give back what a silent one has claimed.
        self.running = Running(folder / "data", TEXT2SONG_MODEL=NOISE.id, TEXT2SONG_LEASE_SECONDS="3600")
        self.running.wait_until_ready()
        self.port = int(self.running.url.rpartition(":")[2])
        self.jobs = 0
        job_id = self.running.http.post("/generate", json={"prompt": "rain", "duration": 30}).json()["job_id"]
        eventually_sync(lambda: self.running.http.get(f"/jobs/{job_id}").json()["status"] == "completed")
        [sample_id] = self.running.http.get(f"/jobs/{job_id}").json()["sample_ids"]
        self.stream = f"/audio/{sample_id}/stream"
        self.audio = self.running.http.get(self.stream).content

    def used(self) -> float:
        """Seconds of a processor."""
        fields = Path(f"/proc/{self.running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """KiB that the process holds."""
        status = Path(f"/proc/{self.running.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+([0-9]+) kB", status)[0])

    async def get(self, path: str, *headers: str, begun: asyncio.Event | None = None) -> bytes:
        """The body; `begun` is set with its first bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        head = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(head).encode())
        answered = await reader.readuntil(b"\r\n\r\n")
        assert answered.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")), answered
        body = b""
        if b"chunked" in answered.lower():
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
                if begun is not None:
                    begun.set()
        else:
            body = await reader.read()
        writer.close()
        return body

    async def play(self) -> int:
        """Bytes of the file, in ranges one after the other."""
        size, came = len(self.audio), b""
        for number in range(RANGES):
            begin, end = size * number // RANGES, size * (number + 1) // RANGES
            came += await self.get(self.stream, f"Range: bytes={begin}-{end - 1}")
        assert sha256(came).digest() == sha256(self.audio).digest()
        return size


async def followed(studio: Studio, journal: Journal, clients: int, players: int) -> tuple[float, float]:
    """Seconds of a processor, and KiB, of one client."""
    studio.jobs += 1
    job_id = f"job{studio.jobs}"
    await journal.append(
        JobSubmitted(
            job_id=job_id,
            prompt_id="prompt",
            prompt="rain",
            model_id=NOBODYS,
            seeds=list(range(SAMPLES)),
            duration=2.0,
        )
    )

    async def there() -> bool:
        return studio.running.http.get(f"/jobs/{job_id}").status_code == 200

    await eventually(there)
    before, memory = studio.used(), studio.memory()
    listening = [asyncio.Event() for _ in range(clients)]
    following = [asyncio.create_task(studio.get(f"/jobs/{job_id}/events", begun=each)) for each in listening]
    await asyncio.gather(*(each.wait() for each in listening))
    held = (studio.memory() - memory) / clients
    playing = [asyncio.create_task(studio.play()) for _ in range(players)]
    samples = [sample(number, job_id=job_id, sample_id=f"{job_id}-{number}") for number in range(SAMPLES)]
    for event in (JobStarted(job_id=job_id, attempt=1, worker_id="bench"), *samples):
        await journal.append(event)
    await journal.append(JobCompleted(job_id=job_id, attempt=1))
    expected = {"snapshot": 1, "started": 1, "sample": SAMPLES, "completed": 1}
    for heard in await asyncio.gather(*following):
        assert Counter(re.findall(r"^event: (\w+)", heard.decode(), re.MULTILINE)) == expected
    await asyncio.gather(*playing)
    return (studio.used() - before) / clients, held


@asynccontextmanager
async def writing(studio: Studio) -> AsyncIterator[Journal]:
    log = await SqliteLog.open(studio.running.data / "events.db")
    try:
        yield Journal(log, now=lambda: timestamp(datetime.now(UTC)), new_id=lambda: str(uuid7()))
    finally:
        await log.close()


async def measure(studio: Studio) -> None:
    rows = ((FEW, 0), (CLIENTS, 0), (CLIENTS, PLAYERS))
    found: dict[tuple[int, int], list[tuple[float, float]]] = {row: [] for row in rows}
    async with writing(studio) as journal:
        for _ in range(ROUNDS):
            for row in rows:
                found[row].append(await followed(studio, journal, *row))
    few = statistics.median(seconds for seconds, _ in found[FEW, 0])
    for (clients, players), each in found.items():
        seconds = statistics.median(used for used, _ in each)
        # What was held before is held for the next ones.
        kib = max(held for _, held in each)
        beside = f" and {players} players" if players else ""
        print(
            f"{clients:5} clients{beside:16} heard everything: {1000 * seconds:6.1f} ms of the processor's time for "
            f"each, {seconds / few:5.2f} times one of {FEW}; memory grows by {kib:.0f} KiB for each",
            flush=True,
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        studio = Studio(Path(name))
        try:
            asyncio.run(measure(studio))
        finally:
            studio.running.stop()
