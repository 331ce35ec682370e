import os

import click
from rich.markup import escape
from rich.table import Column, Table

from infra.cli.console import console, or_exit
from infra.settings import describe


@click.command("settings")
def show_settings() -> None:
    """Show every setting, its meaning, and where its value comes from."""
    table = Table(*(Column(title, overflow="fold") for title in ("setting", "value", "from", "meaning")))
    for setting in or_exit(lambda: describe(os.environ)):
        table.add_row(setting.name, escape(setting.value), escape(setting.origin), setting.meaning)
    console.print(table)
