"""The demos: one prompt through a studio in one process, and through separate processes on real servers."""

import asyncio
import contextlib
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from domain.errors import UnavailableError
from infra.bootstrap import serving
from infra.generate import generate
from infra.servers.loopback import Servers
from infra.settings import Settings

ROLES: Final = ("project", "work", "api")
STOP_SECONDS: Final = 10.0
REQUEST: Final[Mapping[str, Any]] = {
    "prompt": "warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm",
    "num_samples": 2,
    "duration": 10.0,
    "output_format": "wav",
}


async def local(console: Console, settings: Settings, output: Path) -> None:
    async with serving(settings) as url:
        console.print(f"A studio listens on [bold]{url}[/bold] and keeps everything in {settings.data}", soft_wrap=True)
        await generate(console, url, dict(REQUEST), output)
    console.print("The studio has stopped. `make up` starts one that stays.")


async def cluster(console: Console, output: Path) -> None:
    """Raises UnavailableError when a server or a role cannot be started."""
    servers = Servers(output / "servers", announce=lambda sentence: console.print(sentence, soft_wrap=True))
    try:
        await asyncio.to_thread(servers.up)
        environment = servers.addresses.environment()
        for server in servers.status():
            console.print(f"{server.title} runs at {server.address}", soft_wrap=True)
        async with _roles({**os.environ, **environment, "TEXT2SONG_PORT": "0"}, output) as url:
            roles = ", ".join(f"`text2song {role}`" for role in ROLES)
            console.print(f"{roles} run; the API listens on [bold]{url}[/bold]", soft_wrap=True)
            await generate(console, url, dict(REQUEST), output)
    finally:
        await asyncio.to_thread(servers.stop_all)
    console.print(f"Everything has stopped; the servers' data and the roles' logs are in {output}", soft_wrap=True)


@contextlib.asynccontextmanager
async def _roles(environment: Mapping[str, str], output: Path) -> AsyncIterator[str]:
    """The roles as processes, behind the API's URL."""
    running: list[Process] = []
    try:
        for role in ROLES:
            with (output / f"{role}.log").open("ab") as log:
                # A session of its own keeps the terminal's Ctrl-C from it: it is stopped from here.
                running.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "infra.cli", role),
                        stdout=PIPE if role == "api" else log,
                        stderr=log,
                        env=environment,
                        start_new_session=True,
                    )
                )
        # Empty when it has ended instead.
        said = (await running[-1].stdout.readline()).decode() if running[-1].stdout else ""
        if (found := re.search(r"http://\S+[0-9]", said)) is None:
            reason = (output / "api.log").read_text().strip().splitlines()
            raise UnavailableError(f"The API has not started: {reason[-1] if reason else 'it said nothing'}")
        yield found[0]
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
