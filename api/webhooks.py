from typing import Final, get_args

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED
from msgspec import Struct, convert
from msgspec.structs import asdict

from api.http import pages, positions
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.jobs import shown
from commands import webhooks as commands
from commands.transact import existing
from domain.errors import Fault, InvalidError
from domain.events import MAX_LABEL
from domain.webhooks import WEBHOOKS, Attempt, Delivery, Status
from workers.webhook_secrets import Secret, WebhookSecrets


class DeliveryBody(Struct, frozen=True, kw_only=True):
    """`attempts` are the last ones that were reported, `next_attempt_at` is when the next is due, null for at once.

    `message_id` is the header `webhook-id`: a replay is another delivery with the same one. `body` is what is sent.
    """

    id: str
    message_id: str
    job_id: str
    event: str
    url: str
    status: Status
    attempts: list[Attempt]
    next_attempt_at: str | None
    error: str | None
    body: str
    created_at: str
    completed_at: str | None
    suspect: bool


class SecretBody(Struct, frozen=True, kw_only=True):
    """`secret` signs, and so do the `former` ones until their `until`."""

    secret: str
    created_at: str
    former: list[Secret]


class Rotation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`user_id` is whose secret it is, null for that of jobs without a user."""

    user_id: str | None = None


class NoChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """{} alone is taken."""


@get("/webhooks", operation_id="listWebhookDeliveries", tags=["webhooks"])
async def list_deliveries(
    services: Injected,
    *,
    job_id: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[DeliveryBody]:
    """Newest first: what was sent, or is still to be sent, to the `webhook_url` of jobs."""
    if status is not None and status not in get_args(Status):
        raise InvalidError([Fault("/status", f"status is {status!r}; it is one of {', '.join(get_args(Status))}.")])
    query = pages.query(limit, offset, cursor, equal={"job_id": job_id, "status": status})
    return await pages.page(services.views, WEBHOOKS, query, body)


@get("/webhooks/secret", operation_id="getWebhookSecret", opt={**CURRENT, "scope": "write"}, tags=["webhooks"])
async def get_secret(services: Injected, user_id: FromQuery[str | None] = None) -> Response[SecretBody]:
    """What your receivers check signatures with, by Standard Webhooks. Jobs with a `user_id` have a secret of that
    user's, and those without one another.
    """
    return _secret(await _secrets(services).get(_owner(services, user_id)))


@post(
    "/webhooks/secret/rotate",
    operation_id="rotateWebhookSecret",
    opt=CURRENT,
    status_code=HTTP_200_OK,
    tags=["webhooks"],
)
async def rotate_secret(
    services: Injected,
    data: JSONBody[Rotation],
) -> Response[SecretBody]:
    """Puts another secret in use. For a day the former one signs as well, so that receivers can change over."""
    return _secret(await _secrets(services).rotate(_owner(services, data.user_id)))


@get("/webhooks/{delivery_id:str}", operation_id="getWebhookDelivery", opt=CURRENT, tags=["webhooks"])
async def get_delivery(services: Injected, delivery_id: FromPath[str]) -> DeliveryBody:
    return body(await existing(services.views, WEBHOOKS, delivery_id, "webhook delivery"))


@post(
    "/webhooks/{delivery_id:str}/replay",
    operation_id="replayWebhookDelivery",
    opt=CURRENT,
    status_code=HTTP_202_ACCEPTED,
    tags=["webhooks"],
)
async def replay_delivery(
    services: Injected,
    delivery_id: FromPath[str],
    data: JSONBody[NoChoice],  # noqa: ARG001 -- {} alone is taken
) -> Response[DeliveryBody]:
    """Sends the message at once: one that waits without waiting longer, one that has ended once more, as a delivery
    of its own under the same `message_id`.
    """
    receipt = await commands.replay(services.journal, services.views, delivery_id)
    delivery = await existing(services.views, WEBHOOKS, receipt.id, "webhook delivery")
    headers = {"Location": f"/webhooks/{receipt.id}", **positions.headers(*receipt.positions)}
    return Response(body(delivery), status_code=HTTP_202_ACCEPTED, headers=headers)


@get("/jobs/{job_id:str}/webhooks", operation_id="listJobWebhooks", tags=["webhooks"])
async def list_job_deliveries(
    services: Injected,
    job_id: FromPath[str],
    *,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[DeliveryBody]:
    """What the job's `webhook_url` was sent, newest first, with every attempt."""
    await shown(services, job_id)
    query = pages.query(limit, offset, cursor, equal={"job_id": job_id})
    return await pages.page(services.views, WEBHOOKS, query, body)


ROUTES: Final = (
    list_deliveries,
    get_secret,
    rotate_secret,
    get_delivery,
    replay_delivery,
    list_job_deliveries,
)


def body(delivery: Delivery) -> DeliveryBody:
    computed = {
        "event": delivery.request.kind,
        "attempts": delivery.tried,
        "next_attempt_at": delivery.retry_at if delivery.status == "queued" else None,
    }
    return convert(asdict(delivery.request) | asdict(delivery) | computed, DeliveryBody, from_attributes=True)


def _secret(secrets: list[Secret]) -> Response[SecretBody]:
    current, *former = secrets
    found = SecretBody(secret=current.secret, created_at=current.created_at, former=former)
    return Response(found, headers={"Cache-Control": "no-store"})


def _secrets(services: Services) -> WebhookSecrets:
    return WebhookSecrets(services.objects, services.journal.now)


def _owner(services: Services, user_id: str | None) -> str | None:
    """Raises InvalidError, and ForbiddenError for a secret of somebody else."""
    if user_id is not None and not 1 <= len(user_id) <= MAX_LABEL:
        detail = f"user_id has {len(user_id):,} characters; it must have 1 to {MAX_LABEL}."
        raise InvalidError([Fault("/user_id", detail)])
    owner = services.caller.owner if user_id is None else user_id
    services.caller.check_owner(owner, "This secret")
    return owner
