"""The command `text2song`. Each command is imported when it is called: a role starts in half the time so."""

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Final, cast

import click

from infra.cli.console import RepeatFilter, prepare_streams
from infra.logs import LAYOUT

# What the help shows of each command; it imports none of them.
SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Begin": {
        "demo": "Start a studio, make two clips, and stop",
        "up": "Serve a studio until stopped, with its page and API",
        "generate": "Make music from a prompt, or a file of prompts",
        "loop": "Teach the model your taste, and test what it learnt",
        "models": "List, download and measure the base models",
        "settings": "Show every setting, and where its value comes from",
    },
    "Listen and learn": {
        "rate": "Listen to a job's samples, and rate each with one key",
        "listen": "Vote in a blind A/B test",
        "verdict": "Tell what an A/B test says so far, with a report",
        "dataset": "Make datasets of what listeners said, export them",
        "train": "Train an adapter from a dataset, on this machine",
        "adapters": "Register adapters, and list them",
    },
    "Your data": {
        "keys": "Make, list and revoke API keys",
        "webhooks": "Show what was sent, send it again, sign it",
        "backup": "Copy a studio on this machine while it runs",
        "restore": "Bring a backup back, and check its audio",
        "purge": "Remove the audio of old jobs for good",
        "contract": "Write what other programs may rely on",
    },
    "Processes": {
        "api": "Answer HTTP",
        "project": "Fold the views",
        "work": "Generate queued jobs",
        "learn": "Train adapters that were asked for",
        "react": "Send webhooks, build datasets, clean up after deletions",
        "rebuild": "Fold views anew beside the old ones, then switch",
        "servers": "Start Kafka, MongoDB and S3 here, without Docker",
    },
}
COMMANDS: Final[Mapping[str, str]] = {
    "adapters": "adapters.adapters",
    "api": "studio.api",
    "backup": "backup.backup",
    "contract": "contract.contract",
    "dataset": "dataset.dataset",
    "demo": "demo.command",
    "generate": "generate.command",
    "keys": "keys.keys",
    "learn": "learn.learn",
    "listen": "listen.command",
    "loop": "loop.command",
    "models": "models.models",
    "project": "studio.project",
    "purge": "purge.purge",
    "rate": "rate.command",
    "react": "studio.react",
    "rebuild": "rebuild.rebuild",
    "restore": "backup.restore",
    "servers": "servers.servers",
    "settings": "settings.show_settings",
    "train": "train.command",
    "up": "studio.up",
    "verdict": "verdict.command",
    "webhooks": "webhooks.webhooks",
    "work": "studio.work",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if (place := COMMANDS.get(cmd_name)) is None:
            return None
        module, _, name = place.partition(".")
        return cast("click.Command", getattr(import_module(f"infra.cli.{module}"), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([*commands.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("text2song-studio"))
@click.option("--key", help="API key for a studio that needs one.  [default: TEXT2SONG_KEY]")
def main(key: str | None) -> None:
    """Text2Song Studio: prompts to music, on one machine or many."""
    if key is not None:
        from text2song.connection import KEY

        KEY.set(key)
    prepare_streams()
    handler = logging.StreamHandler()
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=logging.WARNING, format=LAYOUT, handlers=[handler])
