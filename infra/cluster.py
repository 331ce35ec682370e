"""The adapters of a cluster, from the settings: a log on Kafka, a store on MongoDB, objects on S3."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar
from urllib.parse import quote, urlsplit

from botocore.utils import is_valid_uri

from domain.errors import DeniedError, RefusedError
from domain.journal import until_done
from infra.settings import Settings, path, unusable
from infra.storage import tls
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from infra.storage.mongo import AddressError
from infra.storage.mongo_counters import MongoCounters
from infra.storage.mongo_store import MongoStore
from infra.storage.s3_objects import Bucket, S3Objects
from projections.project import VIEWS
from workers.reactions import PROGRESS

T = TypeVar("T")

DATABASE: Final = "text2song"
KAFKA_FORM: Final = (
    "Write kafka://host:port, or several with commas between; user and password are settings of their own."
)
MONGO_FORM: Final = (
    "Write mongodb://user:password@host:port/database, and in the user and the password %40 for @, %3A for :, %2F for "
    "/, %3F for ? and %25 for %."
)


async def _open(opening: Callable[[], Awaitable[T]], who: str) -> T:
    """Waits for a server that is away. Raises DeniedError for one that is there and does not let this process in."""

    async def once() -> T:
        try:
            return await opening()
        except RefusedError as error:
            raise DeniedError(f"{who} cannot be opened, and waiting would not help. {error}") from None

    return await until_done(once, who)


async def kafka_log(settings: Settings) -> KafkaLog:
    opening = partial(KafkaLog.open, kafka(settings), prefix=settings.kafka_prefix, replicas=settings.kafka_replication)
    return await _open(opening, "The event log")


async def mongo_store(settings: Settings, *, outdated: bool = False) -> MongoStore:
    opening = partial(MongoStore.open, *mongo(settings), (*VIEWS, PROGRESS), outdated=outdated)
    try:
        return await _open(opening, "The read store")
    except AddressError as error:
        raise unusable(settings, "store", f"{error} {MONGO_FORM}") from None


async def mongo_counters(settings: Settings) -> MongoCounters:
    try:
        return await _open(partial(MongoCounters.open, *mongo(settings)), "The counters")
    except AddressError as error:
        raise unusable(settings, "store", f"{error} {MONGO_FORM}") from None


async def s3_objects(settings: Settings) -> S3Objects:
    return await _open(partial(S3Objects.open, _bucket(settings)), "The object store")


def kafka(settings: Settings) -> KafkaAccess:
    """Raises InvalidError for a log that is no list of servers, and for SASL without a login."""
    if settings.kafka_security.startswith("SASL") and None in (settings.kafka_username, settings.kafka_password):
        raise unusable(
            settings,
            "kafka_security",
            "it needs a login. Set TEXT2SONG_KAFKA_USERNAME and TEXT2SONG_KAFKA_PASSWORD, or choose PLAINTEXT or SSL.",
        )
    try:
        return KafkaAccess(
            servers=settings.log.removeprefix("kafka://"),
            security_protocol=settings.kafka_security,
            sasl_mechanism=settings.kafka_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password,
            cafile=_file(settings, "kafka_ca"),
            certificate=_file(settings, "kafka_certificate"),
            key=_file(settings, "kafka_key"),
        )
    except ValueError:
        raise unusable(settings, "log", f"it names no servers of Kafka. {KAFKA_FORM}") from None


def mongo(settings: Settings) -> tuple[str, str]:
    """The URI and the database that its path names. Raises InvalidError for files of TLS that it names as well."""
    scheme, _, rest = settings.store.partition("://")
    place, _, query = rest.partition("?")
    hosts, _, database = place.partition("/")
    files = {"tlsCAFile": "store_ca", "tlsCertificateKeyFile": "store_certificate"}
    given = {option: file for option, name in files.items() if (file := _file(settings, name))}
    for option in given:
        if option.lower() in query.lower():
            why = f"its address names {option} too. Set one of them."
            raise unusable(settings, files[option], why)
    if not given:
        return settings.store, database.strip("/") or DATABASE
    for option, file in given.items():
        tls.context(file if option == "tlsCAFile" else None, setting="TEXT2SONG_STORE")
    options = [*filter(None, [query]), "tls=true", *(f"{option}={quote(file, '')}" for option, file in given.items())]
    return f"{scheme}://{hosts}/{database}?{'&'.join(options)}", database.strip("/") or DATABASE


def _file(settings: Settings, name: str) -> str | None:
    return str(path(settings, name)) if getattr(settings, name) else None


def _bucket(settings: Settings) -> Bucket:
    """Raises InvalidError for an endpoint that no client can connect to."""
    if settings.s3_endpoint is not None and not _is_endpoint(settings.s3_endpoint):
        raise unusable(
            settings,
            "s3_endpoint",
            "it names no server. Write http://host:port or https://host:port, the host in letters, digits, - and dots.",
        )
    return Bucket(
        endpoint=settings.s3_endpoint,
        name=settings.objects.removeprefix("s3://"),
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        cafile=_file(settings, "s3_ca"),
    )


def _is_endpoint(url: str) -> bool:
    try:
        return is_valid_uri(url) and urlsplit(url).port != 0
    except ValueError:
        return False
