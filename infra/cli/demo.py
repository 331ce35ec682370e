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

import click
from rich.console import Console
from rich.markup import escape

from domain.errors import UnavailableError
from infra.cli.console import Folder, chosen_settings, console, run
from infra.cli.generate import make_music
from infra.settings import Settings

ROLES: Final = ("project", "work", "react", "api")
STOP_SECONDS: Final = 10.0
REQUEST: Final[Mapping[str, Any]] = {
    "prompt": "warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm",
    "num_samples": 2,
    "duration": 10.0,
    "output_format": "wav",
}


@click.command("demo")
@click.option("--output", type=Folder(), default=Path("text2song-demo"), show_default=True)
@click.option(
    "--cluster", "on_servers", is_flag=True, help="Each role a process of its own, on real Kafka, MongoDB and S3."
)
def command(output: Path, on_servers: bool) -> None:
    """Start a studio, make two samples from one prompt, show every event, save the audio, and stop."""
    chosen = chosen_settings(data=str(output / "data"), port=0)
    run(lambda: cluster(console, output) if on_servers else local(console, chosen, output))


async def local(console: Console, settings: Settings, output: Path) -> None:
    from infra.roles import studio

    async with studio(settings) as url:
        console.print(
            f"A studio listens on [bold]{url}[/bold] and keeps everything in {escape(settings.data)}", soft_wrap=True
        )
        await make_music(console, url, dict(REQUEST), output)
    console.print("The studio has stopped. `make up` starts one that stays.")


async def cluster(console: Console, output: Path) -> None:
    """Raises UnavailableError when a server or a role cannot be started."""
    from infra.servers.loopback import Servers

    servers = Servers(output / "servers", announce=lambda sentence: console.print(sentence, soft_wrap=True))
    try:
        await asyncio.to_thread(servers.up)
        environment = servers.addresses.environment()
        for server in servers.status():
            console.print(f"{server.title} runs at {server.address}", soft_wrap=True)
        async with _roles({**os.environ, **environment, "TEXT2SONG_PORT": "0"}, output) as url:
            roles = ", ".join(f"`text2song {role}`" for role in ROLES)
            console.print(f"{roles} run; the API listens on [bold]{url}[/bold]", soft_wrap=True)
            await make_music(console, url, dict(REQUEST), output)
    finally:
        await asyncio.to_thread(servers.stop_all)
    console.print(
        f"Everything has stopped; the servers' data and the roles' logs are in {escape(str(output))}", soft_wrap=True
    )


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
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
