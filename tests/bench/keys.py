"""What keys and limits cost: requests a second with a key at a studio that has them, to those at an open one.

Both studios run at once in processes of their own, and get their requests in turn. Then, what the time of a refusal
tells of the key: a wrong secret of a key that is there, beside keys that are not. The variables: ROUNDS, REQUESTS a
round, and PROBES of each kind.
"""

import asyncio
import math
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from domain.models import NOISE
from tests.local.conftest import Running

ROUNDS: Final = int(os.environ.get("ROUNDS", "8"))
REQUESTS: Final = int(os.environ.get("REQUESTS", "1500"))
PROBES: Final = int(os.environ.get("PROBES", "5000"))
REFUSED_AT_ONCE: Final = 500
NOISE_SIGMAS: Final = 3.0
CLIENTS: Final = 4
JOB: Final = {"prompt": "rain", "duration": 1}


class Studio:
    def __init__(self, folder: Path, name: str, *, has_keys: bool) -> None:
        environment: dict[str, Any] = {"TEXT2SONG_MODEL": NOISE.id} | {
            f"TEXT2SONG_{name}": "100000000/minute" for name in ("READ_LIMIT", "WRITE_LIMIT") if has_keys
        }
        self.running = Running(folder / name, **environment, TEXT2SONG_OPEN_JOBS="100000000")
        self.running.wait_until_ready()
        self.job = self.running.http.post("/generate", json={**JOB, "user_id": "ann"}).json()["job_id"]
        self.headers: Mapping[str, str] = {}
        if has_keys:
            body = {"owner": "ann", "scopes": ["read", "write"]}
            self.headers = {"X-API-Key": self.running.http.post("/keys", json=body).json()["key"]}

    async def pace(self, method: str, path: str, body: object, requests: int) -> tuple[float, float]:
        """Requests a second of the wall's time, and of the processor's time that the studio's process took."""
        async with httpx.AsyncClient(base_url=self.running.url, headers=self.headers, trust_env=False) as http:

            async def client() -> None:
                for _ in range(requests // CLIENTS):
                    answer = await http.request(method, path.format(job=self.job), json=body)
                    answer.raise_for_status()

            began, used = time.perf_counter(), self._used()
            await asyncio.gather(*(client() for _ in range(CLIENTS)))
            return requests / (time.perf_counter() - began), requests / (self._used() - used)

    def _used(self) -> float:
        """Seconds of a processor."""
        fields = Path(f"/proc/{self.running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(opened: Studio, keyed: Studio) -> None:
    print(f"{'':20} open studio   with keys       ratio   of the processor's time alone   quarter to quarter")
    for name, method, path, body, share in (
        ("a job by its id", "GET", "/jobs/{job}", None, 1),
        ("the models", "GET", "/models", None, 1),
        ("20 newest jobs", "GET", "/jobs?limit=20", None, 3),
        ("a prompt", "POST", "/prompts", {"text": "rain"}, 2),
    ):
        paces, own = list[tuple[float, float]](), list[tuple[float, float]]()
        for number in range(ROUNDS):
            # In turn, each first as often as the other.
            pair = [
                await studio.pace(method, path, body, REQUESTS // share)
                for studio in ((opened, keyed), (keyed, opened))[number % 2]
            ]
            for found, at in ((paces, 0), (own, 1)):
                found.append((pair[number % 2][at], pair[1 - number % 2][at]))
        without, within = (statistics.median(each) for each in zip(*paces, strict=True))
        ratios = sorted(keys / none for none, keys in own)
        print(
            f"{name:20} {without:9.0f}/s {within:9.0f}/s {statistics.median(k / n for n, k in paces):11.3f} "
            f"{statistics.median(ratios):22.3f} {ratios[len(ratios) // 4]:19.3f} to "
            f"{ratios[-1 - len(ratios) // 4]:.3f}",
            flush=True,
        )


async def probe(studio: Studio) -> None:
    """One request at a time, of which kind is drawn anew each time, over connections from many addresses: the refusals
    of one address are limited.
    """
    draw = random.Random(18)
    key = studio.headers["X-API-Key"]
    prefix, key_id, secret = key.split("_", 2)

    def other(text: str) -> str:
        return "".join(draw.choice(text) for _ in text)

    kinds = {
        "a wrong secret": lambda: f"{prefix}_{key_id}_{other(secret)}",
        "an unknown key": lambda: f"{prefix}_{other(key_id)}_{other(secret)}",
        "another unknown key": lambda: f"{prefix}_{other(key_id)}_{other(secret)}",
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    url = httpx.URL(studio.running.url)
    # Made before the first is sent: one that takes longer to be made finds a server that has rested longer.
    requests = [
        (name, f"GET /models HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {kinds[name]()}\r\n\r\n".encode())
        for name in draw.sample([*kinds] * PROBES, len(kinds) * PROBES)
    ]
    for number, (name, asked) in enumerate(requests):
        if number % REFUSED_AT_ONCE == 0:
            address = f"127.0.{1 + number // REFUSED_AT_ONCE}.1"
            reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(address, 0))
        began = time.perf_counter()
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        times[name].append(time.perf_counter() - began)
        assert head.startswith(b"HTTP/1.1 401"), head
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        if (number + 1) % REFUSED_AT_ONCE == 0:
            writer.close()
    for name, found in times.items():
        print(f"{name:20} refused after {1e6 * statistics.median(found):7.0f} us (median of {len(found)})")
    wrong, unknown, again = times.values()
    for label, one, two in (
        ("a wrong secret to an unknown key", wrong, unknown),
        ("one unknown key to another", again, unknown),
    ):
        ratio, (share, sigma) = statistics.median(one) / statistics.median(two), slower(one, two)
        away = (share - 0.5) / sigma
        verdict = "within noise" if abs(away) < NOISE_SIGMAS else "NOT within noise"
        print(
            f"{label:32} ratio of medians {ratio:.4f}; the slower of two in {share:.2%}, {away:+.1f} standard "
            f"deviations from a half: {verdict}",
            flush=True,
        )


def slower(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """How often one of the first takes longer than one of the second, and the deviation of that where they are alike.

    It is the statistic of Mann and Whitney, which no few slow answers move.
    """
    ranked = sorted([(each, 1) for each in one] + [(each, 0) for each in two])
    ranks = sum(rank for rank, (_, is_first) in enumerate(ranked, 1) if is_first)
    n, m = len(one), len(two)
    return (ranks - n * (n + 1) / 2) / (n * m), math.sqrt((n + m + 1) / (12 * n * m))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        opened, keyed = Studio(folder, "open", has_keys=False), Studio(folder, "keyed", has_keys=True)
        try:
            asyncio.run(measure(opened, keyed))
            asyncio.run(probe(keyed))
        finally:
            for studio in (opened, keyed):
                try:
                    studio.running.stop()
                except subprocess.TimeoutExpired:
                    studio.running.process.kill()
