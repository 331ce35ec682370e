"""How to reach Kafka, what to say when it refuses, and the topics made and checked there."""

import asyncio
import re
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import faust
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
)
from msgspec import Struct

from domain.errors import ConflictError, RefusedError, UnavailableError
from domain.ports import Topic
from infra.storage import tls

POLL_SECONDS: Final = 0.05
EXPLAIN_SECONDS: Final = 3.0
MAX_SEGMENT_SECONDS: Final = 3600.0
TOMBSTONE_SECONDS: Final = 7 * 24 * 3600.0
SERVER: Final = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
AUTHENTICATION_ERRORS: Final = (
    AuthenticationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)


class KafkaAccess(Struct, frozen=True, kw_only=True):
    """`servers` is host:port, or several with commas between; `cafile` a PEM file in place of the system's roots.

    Raises ValueError for servers that are none, and for SASL without a login.
    """

    servers: str
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str | None = None
    password: str | None = None
    cafile: str | None = None
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.uses_sasl and (self.username is None or self.password is None):
            raise ValueError(f"{self.security_protocol} needs a username and a password")
        if not all(_is_server(server.strip()) for server in self.servers.split(",")):
            raise ValueError(f"{self.servers!r} is no list of host:port")

    def __repr__(self) -> str:
        return f"KafkaAccess({self.description})"

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL")

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol.endswith("SSL")

    @property
    def description(self) -> str:
        user = f" as {self.username!r} by {self.sasl_mechanism}" if self.uses_sasl else ""
        return f"{self.servers}, {self.security_protocol}{user}"

    def connection(self) -> dict[str, Any]:
        """The security arguments of every aiokafka client. Raises UnavailableError for an unreadable `cafile`."""
        sasl = {
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
        }
        return {
            "security_protocol": self.security_protocol,
            "ssl_context": self._tls() if self.uses_tls else None,
            **(sasl if self.uses_sasl else {}),
        }

    def faust_credentials(self) -> faust.SASLCredentials | faust.SSLCredentials | None:
        """The same for a Faust app. Raises UnavailableError for an unreadable `cafile`."""
        tls = self._tls() if self.uses_tls else None
        if self.uses_sasl:
            return faust.SASLCredentials(
                username=self.username, password=self.password, mechanism=self.sasl_mechanism, ssl_context=tls
            )
        return faust.SSLCredentials(tls) if tls else None

    def _tls(self) -> ssl.SSLContext:
        return tls.context(self.cafile, self.certificate, self.key, setting="TEXT2SONG_KAFKA")


async def diagnose(access: KafkaAccess, error: Exception) -> UnavailableError:
    """Why the first broker refuses a connection, which the clients only log; otherwise the error's own text."""
    kind = UnavailableError
    host, port, _ = collect_hosts(access.servers, randomize=False)[0]
    try:
        async with asyncio.timeout(EXPLAIN_SECONDS):
            connection = await create_conn(host, port, **access.connection())
        await connection.close()
    except AUTHENTICATION_ERRORS as refused:
        kind = RefusedError
        reason = (
            f"it refused the login ({refused}). Correct the user, the password or the mechanism: "
            "TEXT2SONG_KAFKA_USERNAME, TEXT2SONG_KAFKA_PASSWORD, TEXT2SONG_KAFKA_MECHANISM"
        )
    except ssl.SSLError as failed:
        found = tls.distrusted(failed, "TEXT2SONG_KAFKA_CA")
        kind = RefusedError if found else UnavailableError
        reason = found or f"TLS failed ({failed}). See that this port speaks TLS and that the CA file is Kafka's"
    except TimeoutError:
        reason = f"it did not answer within {EXPLAIN_SECONDS:g} s. See that Kafka runs and that nothing holds it back"
    except (ConnectionResetError, KafkaError) as failed:
        reason = f"it broke the connection off ({failed!r}). See that this port speaks {access.security_protocol}"
    except OSError as failed:
        reason = f"no connection ({failed.strerror or failed}). Start Kafka, or correct the address"
    else:
        reason = (
            f"{error!r}. Try again, or see that this port speaks {access.security_protocol} and grants these topics"
        )
    return kind(f"Kafka ({access.description}): {reason}.")


async def claim_topics(
    access: KafkaAccess,
    topics: Iterable[Topic],
    *,
    prefix: str,
    replicas: int,
    erase_seconds: float,
    max_record_bytes: int,
) -> None:
    """Creates the topics that are missing and checks the others.

    Raises ConflictError for a topic that would lose records, keep them too long, or spread them otherwise; KafkaError
    and OSError when the broker does not answer.
    """
    wanted = {prefix + topic.name: topic for topic in topics}
    admin = AIOKafkaAdminClient(bootstrap_servers=access.servers, **access.connection())
    try:
        await admin.start()
        missing = wanted.keys() - set(await admin.list_topics())  # asking for one by name might create it
        if missing:
            await _create(
                admin,
                [
                    NewTopic(
                        name,
                        wanted[name].partitions,
                        replicas,
                        topic_configs=_binding(wanted[name], erase_seconds)
                        | _initial(wanted[name], erase_seconds, replicas),
                    )
                    for name in sorted(missing)
                ],
            )
        for name, partitions in (await _partitions(admin, wanted)).items():
            if partitions != wanted[name].partitions:
                raise ConflictError(
                    f"Kafka's topic {name!r} has {partitions} partitions; asked for were {wanted[name].partitions}. "
                    "The number cannot change once a topic exists: put the old number back, or choose another prefix."
                )
        for name, found in (await _configs(admin, wanted)).items():
            _check(name, found, _binding(wanted[name], erase_seconds), max_record_bytes)
    finally:
        await admin.close()


def segment_seconds(erase_seconds: float) -> float:
    """How long records of a compacted topic stay in a segment that Kafka does not clean yet."""
    return min(erase_seconds, MAX_SEGMENT_SECONDS)


def _binding(topic: Topic, erase_seconds: float) -> dict[str, str]:
    """The configuration without which a topic would lose records or keep erased ones."""
    if topic.compacted:
        return {"cleanup.policy": "compact", "max.compaction.lag.ms": _milliseconds(erase_seconds)}
    kept = "-1" if topic.retention_seconds is None else _milliseconds(topic.retention_seconds)
    return {"cleanup.policy": "delete", "retention.ms": kept, "retention.bytes": "-1"}


def _initial(topic: Topic, erase_seconds: float, replicas: int) -> dict[str, str]:
    """What a topic starts with; an operator may tune it."""
    configs = {"min.insync.replicas": str(max(1, replicas - 1)), "unclean.leader.election.enable": "false"}
    if topic.compacted:
        configs |= {
            "segment.ms": _milliseconds(segment_seconds(erase_seconds)),
            "min.cleanable.dirty.ratio": "0.01",
            "delete.retention.ms": _milliseconds(TOMBSTONE_SECONDS),
        }
    elif topic.retention_seconds is not None:
        configs["segment.ms"] = _milliseconds(topic.retention_seconds / 4)  # only whole segments are deleted
    return configs


async def _create(admin: AIOKafkaAdminClient, topics: list[NewTopic]) -> None:
    answer = await admin.create_topics(topics)
    for name, code, message in answer.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            raise ConflictError(f"Kafka did not create the topic {name!r} (error {code}): {message}")


async def _partitions(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    """How many each topic has, once all of them have leaders."""
    while True:
        described = await admin.describe_topics(list(names))
        if all(
            topic["error_code"] == 0 and all(partition["leader"] >= 0 for partition in topic["partitions"])
            for topic in described
        ):
            return {topic["topic"]: len(topic["partitions"]) for topic in described}
        await asyncio.sleep(POLL_SECONDS)


async def _configs(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    found = {}
    for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, message, _, name, entries in answer.resources:
            if code:
                raise ConflictError(
                    f"Kafka does not tell how the topic {name!r} is configured (error {code}): {message}"
                )
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _check(name: str, found: Mapping[str, str], binding: Mapping[str, str], max_record_bytes: int) -> None:
    for option, value in binding.items():
        if found[option] != value:
            raise ConflictError(
                f"Kafka's topic {name!r} has {option}={found[option]}; it must be {value}, or records would be lost or "
                f"kept too long. Set it with kafka-configs --alter --entity-type topics --entity-name {name} "
                f"--add-config {option}={value}"
            )
    if (limit := int(found["max.message.bytes"])) < max_record_bytes:
        raise ConflictError(
            f"Kafka's topic {name!r} has max.message.bytes={limit}; records may have {max_record_bytes}. Raise it."
        )


def _is_server(server: str) -> bool:
    found = SERVER.fullmatch(server)
    return found is not None and (found[1] is None or 1 <= int(found[1]) <= 65535)


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
