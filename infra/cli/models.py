import time
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Column, Table

from infra.cli.client import usable_environment
from infra.cli.console import chosen_settings, console, or_exit, run

if TYPE_CHECKING:
    from workers.engine_process import EngineProcess
    from workers.engines.checkpoints import Checkpoint


@click.group()
def models() -> None:
    """The base models."""


@models.command("list")
def list_models() -> None:
    """Show the known models; * marks the active one."""
    from domain.models import Registry
    from workers.engines.checkpoints import resolve

    registry = Registry(or_exit(lambda: resolve(chosen_settings().model)).model)
    table = Table("", Column("model", no_wrap=True), "window", "longest", "audio", "GPU memory", "license")
    for model in registry.models:
        table.add_row(
            "*" if model.is_active else "",
            escape(model.id),
            f"{model.max_duration:g} s",
            f"{model.max_extended_duration:g} s",
            f"{model.sample_rate / 1000:g} kHz {'stereo' if model.channels == 2 else 'mono'}",
            f"{model.vram_gb:g} GB",
            model.license,
        )
    console.print(table)
    if registry.active.notice:
        console.print(registry.active.notice)


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Download the model NAME, such as facebook/musicgen-small, from the Hugging Face hub."""
    from workers.engines.checkpoints import Checkpoint
    from workers.engines.checkpoints import pull as download

    def usable() -> Checkpoint:
        with usable_environment():
            return download(name)

    checkpoint = or_exit(usable)
    console.print(f"{checkpoint.model.id} is ready. Use it with TEXT2SONG_MODEL={escape(name)} text2song up")


@models.command()
@click.argument("name", required=False)
@click.option("--seconds", type=click.FloatRange(0.5, 30), default=2.0, show_default=True, help="Length of each clip.")
def check(name: str | None, seconds: float) -> None:
    """Load the model NAME, by default the active one, and measure what it can do on this machine.

    Shows how many samples are made at once, and the seconds of audio made in a second: of one sample alone, and of as
    many as are made at once. The exit code is 0 only if the model works.
    """
    from workers.engines.checkpoints import resolve

    settings = chosen_settings()
    checkpoint = or_exit(lambda: resolve(name or settings.model))
    run(lambda: _check(checkpoint, settings.device, seconds))


async def _check(checkpoint: "Checkpoint", device: str | None, seconds: float) -> None:
    from workers.engine_process import EngineProcess
    from workers.engines.loading import load

    engine = EngineProcess(load, checkpoint, device)
    try:
        began = time.monotonic()
        with console.status(f"Loading {escape(checkpoint.model.id)} …"):
            await engine.start()
        took, rows = time.monotonic() - began, engine.capacity
        with console.status("Making one sample …"):
            await _measured(engine, 1, 0.5)
            alone = await _measured(engine, 1, seconds)
        with console.status(f"Making {rows} samples …"):
            together = await _measured(engine, rows, seconds)
    finally:
        await engine.stop()
    table = Table("", Column(escape(checkpoint.model.id), no_wrap=True))
    table.add_row("device", engine.device)
    table.add_row("loaded in", f"{took:.1f} s")
    table.add_row("samples at once", f"{engine.capacity}")
    table.add_row("one sample alone", f"{alone:.2f} s of audio a second")
    if rows > 1:
        table.add_row(f"{rows} samples at once", f"{together:.2f} s of audio a second")
    console.print(table)
    if engine.capacity < rows:
        console.print(f"Memory ran out with {rows} samples of {seconds:g} s at once.")


async def _measured(engine: "EngineProcess", samples: int, seconds: float) -> float:
    """Seconds of audio made in a second. Raises EngineError."""
    from workers.engine import EngineRequest, Take

    takes = [Take(index, seed=index) for index in range(samples)]
    prompt = "warm lo-fi track with a piano melody and drums"
    began = time.monotonic()
    async for _ in engine.generate(EngineRequest(id=f"{began}", prompt=prompt, duration=seconds, takes=takes)):
        pass
    return samples * seconds / (time.monotonic() - began)
