import click
from rich.markup import escape
from rich.table import Column, Table

from infra.cli.client import usable_environment
from infra.cli.console import chosen_settings, console, or_exit


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
