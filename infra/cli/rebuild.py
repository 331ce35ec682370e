import click
from rich.table import Table

from domain.aggregates import AGGREGATES
from infra.cli.console import chosen_settings, console, run, say
from infra.settings import Settings


@click.command()
@click.argument("topics", nargs=-1, required=True, type=click.Choice(tuple(AGGREGATES)))
def rebuild(topics: tuple[str, ...]) -> None:
    """Fold the views of TOPICS anew beside the ones that serve, compare the two, and switch at once."""
    settings = chosen_settings()
    run(lambda: _rebuild(settings, topics))


async def _rebuild(settings: Settings, topics: tuple[str, ...]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from infra import hosts

    with Progress("Folding", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("")
        compared = await hosts.rebuild(
            settings, topics, lambda at: bar.update(task, completed=at.folded, total=at.total)
        )
    table = Table("view", "compared", "differing", "apart", "old digest", "new digest")
    for view in compared:
        digests = [(digest or "unreadable")[:12] for digest in (view.old_digest, view.new_digest)]
        table.add_row(view.view, f"{view.documents:,}", f"{view.differing:,}", f"{view.apart:,}", *digests)
    console.print(table)
    for view in compared:
        if view.examples:
            say(f"Of {view.view}, these differ or were behind: {', '.join(view.examples)}")
    say("The rebuilt views serve now.")
