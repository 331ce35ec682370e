import shlex
import sys
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from infra.cli.console import Folder, console, or_exit


@click.group()
def servers() -> None:
    """Kafka, MongoDB and S3 on this machine, without Docker."""


data_of_servers = click.option(
    "--data",
    type=Folder(),
    default=Path("text2song-servers"),
    show_default=True,
    help="Folder that keeps their data, logs and addresses.",
)


@servers.command("up")
@data_of_servers
def servers_up(data: Path) -> None:
    """Start what does not run yet, and print the settings that make the studio use it.

    The settings alone go to standard output: eval "$(text2song servers up)" takes them over. The first time, the
    programs are installed into the user's cache; that needs mvn, Java 17, go and pip, and takes minutes.
    """
    from infra.servers.loopback import NAMES, Servers

    there = Servers(data, announce=lambda sentence: click.echo(sentence, err=True))
    started = or_exit(there.up)
    if len(started) == len(NAMES):
        click.echo(f"The servers run, and keep everything in {there.folder}", err=True)
    elif started:
        click.echo(f"Started {', '.join(started)}; the others ran already.", err=True)
    else:
        click.echo("The servers run already.", err=True)
    for name, value in there.addresses.environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


@servers.command("down")
@data_of_servers
def servers_down(data: Path) -> None:
    """Stop them. Their data stays."""
    from infra.servers.loopback import Servers

    stopped = or_exit(Servers(data).stop_all)
    click.echo(f"Stopped {', '.join(stopped)}." if stopped else "None of them runs.")


@servers.command("status")
@data_of_servers
def servers_status(data: Path) -> None:
    """Show each server's process, address and health; the exit code is 1 unless all are healthy."""
    from infra.servers.loopback import Servers

    there = Servers(data)
    found = or_exit(there.status)
    table = Table("server", "state", "pid", "address")
    for server in found:
        state = "healthy" if server.healthy else "stopped" if server.pid is None else "not answering"
        table.add_row(server.title, state, str(server.pid or ""), server.address)
    console.print(table)
    console.print(f"Data and logs are in {escape(str(there.folder))}", soft_wrap=True)
    sys.exit(0 if all(server.healthy for server in found) else 1)
