"""A long file out of S3 through the API, in one range, beside nginx with the same file on its disk."""

import asyncio
import os
import pwd
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from infra.bootstrap import adapters
from infra.servers import ports
from infra.settings import Settings, load
from projections.audio import AUDIO, AudioSample, GenerationParams
from tests.conditions import eventually_sync
from tests.processes import fresh, running
from tests.servers import servers

MEBIBYTE: Final = 1024 * 1024
SIZE: Final = int(os.environ.get("MEBIBYTES", "256")) * MEBIBYTE
ROUNDS: Final = 5
SAMPLE: Final = AudioSample(
    id="long",
    job_id="job",
    index=0,
    prompt_id="prompt",
    prompt="rain on a tin roof",
    model_id="text2song/wiring-noise",
    adapter=None,
    generation_params=GenerationParams(seed=1, duration=1.0, temperature=1.0, top_k=0, top_p=1.0, guidance_scale=1.0),
    output_format="flac",
    storage_path="samples/job/1/0.flac",
    duration_seconds=1.0,
    sample_rate=32000,
    channels=1,
    size=SIZE,
    sha256="0" * 64,
    loudness_lufs=None,
    created_at="2026-01-01T00:00:00.000000Z",
    position=0,
    hidden=False,
)
CONFIGURATION: Final = """
daemon off; pid {folder}/pid; error_log {folder}/errors; user {user}; worker_processes 1;
events {{}}
http {{
    access_log off; sendfile on; tcp_nopush on;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


async def keep(settings: Settings, content: bytes) -> None:
    async with adapters(settings) as (_, store, objects):
        await objects.put(SAMPLE.storage_path, content)
        await store.save([(AUDIO, replace(SAMPLE, sha256=sha256(content).hexdigest()))], {})


@contextmanager
def nginx(program: str, folder: Path) -> Iterator[int]:
    """The port on which it serves the folder."""
    port = next(ports.free())
    user = pwd.getpwuid(os.getuid()).pw_name
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, user=user))
    with subprocess.Popen([program, "-c", configuration], stderr=subprocess.DEVNULL) as process:
        try:
            eventually_sync(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            yield port
        finally:
            process.terminate()


def stream(port: int, path: str) -> float:
    """Mebibytes a second of all but the first byte."""
    connection = HTTPConnection("127.0.0.1", port)
    start, received, buffer = time.perf_counter(), 0, bytearray(MEBIBYTE)
    connection.request("GET", path, headers={"Range": "bytes=1-"})
    answer = connection.getresponse()
    assert answer.status == 206, answer.read()
    while count := answer.readinto(buffer):
        received += count
    assert received == SIZE - 1
    connection.close()
    return received / MEBIBYTE / (time.perf_counter() - start)


def memory(pid: int, figure: str) -> float:
    """Mebibytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{figure}:")) / 1024


def main() -> None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        print("nginx is not here: apt-get install nginx-light")
        return
    settings, content = fresh(servers().addresses), os.urandom(SIZE)
    asyncio.run(keep(load(settings), content))
    with tempfile.TemporaryDirectory() as name, running("api", settings) as api:
        folder = Path(name)
        (folder / "long.flac").write_bytes(content)
        with nginx(program, folder) as port:
            # The first request for a file checks that it is whole.
            stream(int(api.url.rpartition(":")[2]), "/audio/long/stream")
            before = memory(api.pid, "VmRSS")
            pairs = [
                (stream(int(api.url.rpartition(":")[2]), "/audio/long/stream"), stream(port, "/long.flac"))
                for _ in range(ROUNDS)
            ]
            grown = memory(api.pid, "VmHWM") - before
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(
        f"{SIZE // MEBIBYTE} MiB: {ours:,.0f} MiB/s through the API, {theirs:,.0f} MiB/s from nginx, ratio {ratio:.0%}"
    )
    print(f"The API's memory was {before:.0f} MiB before, and at most {grown:.0f} MiB more while it streamed.")
