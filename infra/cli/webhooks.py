"""What a running studio sends to the webhook addresses of jobs."""

from typing import Final

import click
from msgspec import Struct

from infra.cli.console import console, run, url_option
from text2song.client import AsyncStudio

PAGE: Final = 50


class Attempt(Struct, frozen=True):
    status_code: int | None
    error: str | None


class Delivery(Struct, frozen=True):
    id: str
    job_id: str
    event: str
    url: str
    status: str
    attempts: list[Attempt]
    next_attempt_at: str | None
    error: str | None


class Listed(Struct, frozen=True):
    items: list[Delivery]


class Former(Struct, frozen=True):
    secret: str
    until: str | None


class Secrets(Struct, frozen=True):
    secret: str
    former: list[Former]


@click.group()
def webhooks() -> None:
    """Webhooks of a running studio: what was sent, once more, and what signs it."""


@webhooks.command("list")
@click.option("--job", help="Of this job alone.")
@click.option("--status", type=click.Choice(["queued", "sending", "delivered", "failed"]), help="In this state alone.")
@url_option
def list_deliveries(job: str | None, status: str | None, url: str) -> None:
    """Show the last deliveries, newest first."""
    run(lambda: show(url, job, status))


@webhooks.command()
@click.argument("delivery")
@url_option
def replay(delivery: str, url: str) -> None:
    """Send a message again, or at once where it still waits for its next attempt."""
    run(lambda: send_again(url, delivery))


@webhooks.command()
@click.option("--rotate", is_flag=True, help="Put another one in use; for a day the former one signs as well.")
@click.option("--user", help="That of the user's jobs.  [default: that of jobs without a user]")
@url_option
def secret(url: str, user: str | None, *, rotate: bool) -> None:
    """Print the secret that receivers verify signatures with."""
    run(lambda: tell_secret(url, user, rotate=rotate))


async def show(url: str, job: str | None, status: str | None) -> None:
    chosen = {"job_id": job, "status": status}
    wanted = {name: value for name, value in chosen.items() if value is not None}
    async with AsyncStudio(url) as client:
        await client.index()
        page = await client.find("/webhooks", Listed, limit=str(PAGE), **wanted)
    for each in page.items if page else []:
        count = len(each.attempts)
        console.tell(f"{each.id}  {each.status} after {count} attempt{'' if count == 1 else 's'}")
        console.tell(f"    {each.event} of job {each.job_id} to {each.url}")
        if each.error:
            then = f" The next attempt is at {each.next_attempt_at}." if each.next_attempt_at else ""
            console.tell(f"    {each.error}{then}")


async def send_again(url: str, delivery: str) -> None:
    async with AsyncStudio(url) as client:
        await client.index()
        replayed = await client.post(f"/webhooks/{delivery}/replay", {}, Delivery)
    console.tell(f"Delivery {replayed.id} to {replayed.url} is {replayed.status}.")


async def tell_secret(url: str, user: str | None, *, rotate: bool) -> None:
    async with AsyncStudio(url) as client:
        await client.index()
        if rotate:
            body = {} if user is None else {"user_id": user}
            found: Secrets | None = await client.post("/webhooks/secret/rotate", body, Secrets)
        else:
            found = await client.find("/webhooks/secret", Secrets, **({} if user is None else {"user_id": user}))
    if found is None:
        return
    console.tell(found.secret)
    for former in found.former:
        console.tell(f"Until {former.until} messages are also signed with {former.secret}")
