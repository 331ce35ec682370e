"""The adapters of a cluster, from the settings: a log on Kafka, a store on MongoDB, objects on S3."""

from functools import partial
from typing import Final
from urllib.parse import urlsplit

from botocore.utils import is_valid_uri

from domain.journal import until_done
from infra.settings import Settings, path, unusable
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from infra.storage.mongo import AddressError
from infra.storage.mongo_store import MongoStore
from infra.storage.s3_objects import Bucket, S3Objects
from projections.project import VIEWS
from workers.reactions import PROGRESS

DATABASE: Final = "text2song"
KAFKA_FORM: Final = (
    "Write kafka://host:port, or several with commas between; user and password are settings of their own."
)
MONGO_FORM: Final = (
    "Write mongodb://user:password@host:port/database, and in the user and the password %40 for @, %3A for :, %2F for "
    "/, %3F for ? and %25 for %."
)


async def kafka_log(settings: Settings) -> KafkaLog:
    opening = partial(KafkaLog.open, kafka(settings), prefix=settings.kafka_prefix, replicas=settings.kafka_replication)
    return await until_done(opening, "The event log")


async def mongo_store(settings: Settings, *, outdated: bool = False) -> MongoStore:
    opening = partial(MongoStore.open, *mongo(settings), (*VIEWS, PROGRESS), outdated=outdated)
    try:
        return await until_done(opening, "The read store")
    except AddressError as error:
        raise unusable(settings, "store", f"{error} {MONGO_FORM}") from None


async def s3_objects(settings: Settings) -> S3Objects:
    return await until_done(partial(S3Objects.open, _bucket(settings)), "The object store")


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
            cafile=str(path(settings, "kafka_ca")) if settings.kafka_ca else None,
        )
    except ValueError:
        raise unusable(settings, "log", f"it names no servers of Kafka. {KAFKA_FORM}") from None


def mongo(settings: Settings) -> tuple[str, str]:
    """The URI and the database that its path names."""
    address = settings.store.partition("://")[2].partition("?")[0]
    return settings.store, address.partition("/")[2].strip("/") or DATABASE


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
    )


def _is_endpoint(url: str) -> bool:
    try:
        return is_valid_uri(url) and urlsplit(url).port != 0
    except ValueError:
        return False
