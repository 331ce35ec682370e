"""API keys: at a running studio by HTTP where a key is given, else on its data folder or on the cluster's log."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, get_args

import click
from msgspec import Struct
from rich.markup import escape
from rich.table import Column, Table

from domain.events import timestamp
from domain.events.keys import Scope
from domain.keys import KeyBody, KeyRequest, NewKey, body
from infra.cli.console import chosen_settings, console, run
from text2song.client import AsyncStudio
from text2song.connection import chosen_key

UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
PAGE: Final = 200


class KeyPage(Struct, frozen=True):
    items: list[KeyBody]
    next_cursor: str | None


class Age(click.ParamType[str]):
    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if (found := re.fullmatch("([0-9]{1,4})([hdw])", str(value))) is None:
            self.fail(f"{value!r} is no time; write up to four digits and h, d or w, such as 90d.", param, ctx)
        return timestamp(datetime.now(UTC) + int(found[1]) * UNITS[found[2]])


url_option = click.option(
    "--url", envvar="TEXT2SONG_URL", show_envvar=True, help="A running studio.  [default: the data folder's]"
)
data_option = click.option("--data", type=click.Path(file_okay=False), help="The studio's data folder.")


@click.group()
def keys() -> None:
    """API keys: who may use a studio.

    Works on the data folder, or the cluster's log. With --url, `text2song --key …` or TEXT2SONG_KEY it asks a running
    studio instead.
    """


@keys.command()
@click.option("--owner", required=True, help="Who uses the key: a name or an address, such as ann@example.org.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(get_args(Scope)),
    multiple=True,
    required=True,
    help="What the key allows. May be given several times.",
)
@click.option("--label", default="", help="What it is for.")
@click.option(
    "--test", "ab_test_id", help="For a voter: the key opens this A/B test alone. Needs --scope listen and no other."
)
@click.option(
    "--expires", "expires_at", type=Age(), help="How long the key is valid, such as 12h, 90d, 52w.  [default: for good]"
)
@url_option
@data_option
def create(url: str | None, data: str | None, **fields: Any) -> None:
    """Make a key and print it. It cannot be shown again."""
    run(lambda: _create(url, data, fields))


@keys.command("list")
@url_option
@data_option
def list_keys(url: str | None, data: str | None) -> None:
    """Show the keys, newest first, without their texts."""
    run(lambda: _list(url, data))


@keys.command()
@click.argument("key_id")
@url_option
@data_option
def revoke(key_id: str, url: str | None, data: str | None) -> None:
    """End a key for good, within a second in every process."""
    run(lambda: _revoke(key_id, url, data))


async def _create(url: str | None, data: str | None, fields: dict[str, Any]) -> None:
    if (studio := _studio(url, data)) is not None:
        async with AsyncStudio(studio) as client:
            wanted = {name: value for name, value in fields.items() if value is not None}
            made = await client.post("/keys", wanted, NewKey)
        key_id, text = made.id, made.key
    else:
        from infra import roles

        key, text = await roles.create_key(chosen_settings(data=data), KeyRequest(**fields))
        key_id = key.id
    # Apart from the key, so that a script can take it: KEY=$(text2song keys create …).
    said = f"Key {key_id} of {fields['owner']}: {', '.join(fields['scopes'])}. It is shown this once:"
    click.echo(said, err=True)
    click.echo(text)


async def _list(url: str | None, data: str | None) -> None:
    found: list[KeyBody] = []
    if (studio := _studio(url, data)) is not None:
        async with AsyncStudio(studio) as client:
            path: str | None = f"/keys?limit={PAGE}"
            while path is not None:
                page = await client.fetch(path, KeyPage)
                found += page.items
                path = f"/keys?limit={PAGE}&cursor={page.next_cursor}" if page.next_cursor else None
    else:
        from infra import roles

        now = timestamp(datetime.now(UTC))
        found = [body(key, now) for key in await roles.list_keys(chosen_settings(data=data))]
    console.print(_table(found))


async def _revoke(key_id: str, url: str | None, data: str | None) -> None:
    if (studio := _studio(url, data)) is not None:
        async with AsyncStudio(studio) as client:
            owner = (await client.remove(f"/keys/{key_id}", KeyBody)).owner
    else:
        from infra import roles

        owner = (await roles.revoke_key(chosen_settings(data=data), key_id)).request.owner
    console.tell(f"Key {key_id} of {owner} is revoked.")


def _studio(url: str | None, data: str | None) -> str | None:
    if data is not None:
        return None
    return url or ("http://127.0.0.1:8000" if chosen_key() else None)


def _table(found: Sequence[KeyBody]) -> Table:
    owner, label = (Column(name, overflow="fold", min_width=6) for name in ("owner", "label"))
    table = Table(Column("id", no_wrap=True), owner, "scopes", label, Column("state", no_wrap=True))
    for key in found:
        scopes = " ".join(key.scopes) + (f" for test {key.ab_test_id}" if key.ab_test_id else "")
        state = "valid" if key.is_valid else "revoked" if key.revoked_at else "expired"
        if key.is_valid and key.expires_at:
            state = f"until {key.expires_at[:16]}Z"
        table.add_row(key.id, escape(key.owner), scopes, escape(key.label), state)
    return table
