import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Column, Table

from infra.cli.console import chosen_settings, console, or_exit, run
from text2song.connection import usable_environment

if TYPE_CHECKING:
    from domain.models import Model
    from workers.engine_process import EngineProcess
    from workers.engines.checkpoints import Checkpoint
    from workers.engines.hub import Offer


@click.group()
def models() -> None:
    """The base models."""


@models.command("list")
def list_models() -> None:
    """Show the known models; * marks the active one."""
    from domain.models import Registry
    from workers.engines.checkpoints import resolve

    registry = Registry(or_exit(lambda: resolve(chosen_settings().model)).model)
    for model in registry.models:
        is_windowed = model.max_extended_duration > model.max_duration
        told = (
            f"up to {model.max_extended_duration:g} s"
            f"{f', in windows of {model.max_duration:g} s' if is_windowed else ''}, "
            f"{model.sample_rate / 1000:g} kHz {'stereo' if model.channels == 2 else 'mono'}, "
            f"{model.vram_gb:g} GB of GPU memory, {model.license}; {', '.join(model.capabilities)}"
        )
        console.print(f"{'*' if model.is_active else ' '} [bold]{escape(model.id)}[/bold]", soft_wrap=True)
        console.print(f"    [dim]{escape(told)}[/dim]", soft_wrap=True)
    if registry.active.notice:
        console.print(registry.active.notice)


@models.command()
@click.argument("name")
@click.option("--accept-license", is_flag=True, help="Accept the model's licence, which is shown.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Copy the files into this folder too, which has to be new or empty.",
)
def pull(name: str, accept_license: bool, folder: Path | None) -> None:
    """Download the model NAME, such as facebook/musicgen-small, from the Hugging Face hub.

    Shows its licence, which has to be accepted unless it is Apache-2.0 or the like, and checks every file by what the
    hub says of it.
    """
    from workers.engines import hub
    from workers.engines.checkpoints import Checkpoint, resolve

    def usable() -> Checkpoint:
        with usable_environment():
            if (offer := hub.look(name)) is None:
                return resolve(name)
            size = f"{offer.size / 1e9:.1f} GB" if offer.size >= 1e9 else f"{offer.size / 1e6:.1f} MB"
            said = f"{offer.name}: {len(offer.files)} files, {size}, licence {offer.license} ({offer.license_url})"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
            if not offer.is_free and not accept_license:
                _accept(offer)
            return hub.fetch(offer, folder)

    checkpoint = or_exit(usable)
    chosen = name if folder is None else str(folder)
    console.print(
        f"{checkpoint.model.id} is ready. Use it with TEXT2SONG_MODEL={escape(chosen)} text2song up", soft_wrap=True
    )


def _accept(offer: "Offer") -> None:
    """Asks at a terminal. Raises EngineError unless the licence is accepted."""
    from workers.engine import EngineError

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise EngineError(
            f"{offer.name} is under the licence {offer.license}. Read it at {offer.license_url}, and accept it with "
            "--accept-license."
        )
    if not click.confirm(f"Do you accept the licence {offer.license} of {offer.name}?", err=True):
        raise EngineError(f"The licence {offer.license} was not accepted, and nothing was downloaded.")


@models.command()
@click.argument("name", required=False)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=1.0, show_default=True, help="Length of each clip.")
def check(name: str | None, seconds: float) -> None:
    """Load the model NAME, by default the active one, and measure what it can do on this machine.

    Shows how many samples are made at once, the most memory it took, and the real-time factor, which is how many
    seconds of audio are made in a second: of one sample alone, and of as many as are made at once. A model that makes
    only longer clips makes its shortest. The exit code is 0 only if the model works.
    """
    from domain.models import described
    from workers.engines.checkpoints import resolve

    settings = chosen_settings()
    checkpoint = or_exit(lambda: resolve(name or settings.model))
    run(lambda: _check(checkpoint, settings.device, max(seconds, described(checkpoint.model).min_duration)))


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
            await _measured(engine, checkpoint.model, 1, 0.5)
            alone = await _measured(engine, checkpoint.model, 1, seconds)
        together = alone
        if rows > 1:
            with console.status(f"Making {rows} samples …"):
                together = await _measured(engine, checkpoint.model, rows, seconds)
        memory = await engine.memory()
    finally:
        await engine.stop()
    table = Table("", Column(escape(checkpoint.model.id), no_wrap=True))
    table.add_row("device", engine.device)
    table.add_row("loaded in", f"{took:.1f} s")
    if memory is not None:
        kind = "GPU memory" if engine.device.startswith("cuda") else "memory"
        table.add_row(f"{kind}, at the most", f"{memory / 1e9:.2f} GB")
    table.add_row("samples at once", f"{engine.capacity}")
    table.add_row(f"one sample of {seconds:g} s", f"{alone:.2f} s of audio a second")
    if rows > 1:
        table.add_row(f"{rows} such samples at once", f"{together:.2f} s of audio a second")
    console.print(table)
    if engine.capacity < rows:
        console.print(f"Memory ran out with {rows} samples of {seconds:g} s at once.")


async def _measured(engine: "EngineProcess", model: "Model", samples: int, seconds: float) -> float:
    """Seconds of audio made in a second. Raises EngineError."""
    from domain.generation import GenerationRequest
    from domain.models import described
    from domain.parameters import sampling, settled
    from workers.engine import EngineRequest, Take

    request, asked = GenerationRequest(), described(model)
    began = time.monotonic()
    trial = EngineRequest(
        id=f"{began}",
        prompt="warm lo-fi track with a piano melody and drums",
        duration=seconds,
        takes=[Take(index, seed=index) for index in range(samples)],
        sampling=sampling(request, asked),
        parameters=settled(request, asked),
    )
    async for _ in engine.generate(trial):
        pass
    return samples * seconds / (time.monotonic() - began)
