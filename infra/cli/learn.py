import click
from rich.markup import escape

from infra.cli.console import chosen_settings, places, run, run_role, say
from infra.settings import Settings


@click.command()
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
def learn(device: str | None) -> None:
    """Train adapters: claim requested trainings and carry them out, with any number of trainers beside."""
    settings = chosen_settings(device=device)
    run(lambda: run_role(_learn(settings)))


async def _learn(settings: Settings) -> None:
    from infra import roles

    say(f"Training what is asked for in {escape(places(settings))}; Ctrl-C stops it.")
    await roles.learn(settings)
