import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click

from infra.cli.console import chosen_settings, run, say
from infra.settings import Settings

UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


class Age(click.ParamType[timedelta]):
    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if (found := re.fullmatch("([0-9]{1,4})([hdw])", str(value))) is None:
            self.fail(f"{value!r} is no age; write up to four digits and h, d or w, such as 30d.", param, ctx)
        return int(found[1]) * UNITS[found[2]]


@click.command()
@click.option("--older-than", "age", type=Age(), required=True, help="How long ago a job ended, such as 12h, 30d, 8w.")
@click.option("--keep-rated", is_flag=True, help="Spare the jobs whose samples anybody has given feedback on.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="The studio's data folder.")
def purge(age: timedelta, data: Path | None, *, keep_rated: bool, dry_run: bool) -> None:
    """Remove the audio of old jobs for good. The jobs stay, with their prompts and seeds.

    The audio of deleted jobs needs no purge: it is removed at once.
    """
    settings = chosen_settings(data=None if data is None else str(data))
    run(lambda: _purge(settings, age, keep_rated=keep_rated, dry_run=dry_run))


async def _purge(settings: Settings, age: timedelta, *, keep_rated: bool, dry_run: bool) -> None:
    from infra import roles

    done = await roles.purge(settings, age, dry_run=dry_run, keep_rated=keep_rated)
    said = "would be removed" if dry_run else "is gone"
    say(f"The audio of {done.jobs:,} jobs {said}: {done.size / 1e6:,.1f} MB of masters.")
    if keep_rated:
        stays = "would stay" if dry_run else "stays"
        say(f"The audio of {done.kept:,} jobs with feedback {stays}.")
