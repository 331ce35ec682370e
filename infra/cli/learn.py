import click
from rich.markup import escape

from infra.cli.console import places, say
from infra.cli.service import serve
from infra.settings import Settings


@click.command()
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
def learn(device: str | None) -> None:
    """Train adapters: claim requested trainings and carry them out, with any number of trainers beside."""
    serve("learn", _learn, device=device)


async def _learn(settings: Settings) -> None:
    from infra import roles

    say(f"Training what is asked for in {escape(places(settings))}; Ctrl-C stops it.")
    await roles.learn(settings)
