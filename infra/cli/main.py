"""The command `text2song`."""

import logging
from importlib.metadata import version

import click

from infra.cli import (
    adapters,
    backup,
    contract,
    demo,
    generate,
    listen,
    models,
    purge,
    rate,
    rebuild,
    servers,
    settings,
    studio,
    verdict,
)
from infra.cli.console import RepeatFilter, prepare_streams


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("text2song-studio"))
def main() -> None:
    """Text2Song Studio: prompts to music, on one machine or many."""
    prepare_streams()
    handler = logging.StreamHandler()
    handler.addFilter(RepeatFilter())
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )


for command in (
    studio.up,
    generate.command,
    rate.command,
    listen.command,
    demo.command,
    verdict.command,
    models.models,
    adapters.adapters,
    settings.show_settings,
    studio.api,
    studio.project,
    studio.work,
    studio.react,
    rebuild.rebuild,
    purge.purge,
    backup.backup,
    backup.restore,
    servers.servers,
    contract.contract,
):
    main.add_command(command)
