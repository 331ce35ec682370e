"""A Kafka that asks for a user and a password: the log, and the host that Faust runs, get in and do their work."""

import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from domain.envelope import encode
from domain.errors import UnavailableError
from domain.events.prompts import PromptCreated
from infra.servers import ports
from infra.servers.kafka import Kafka
from infra.servers.process import Process
from infra.storage.kafka import KafkaAccess
from infra.storage.kafka_log import KafkaLog
from tests.audit import is_folded
from tests.cluster.roles import PATIENCE, studio
from tests.conditions import eventually, eventually_sync
from tests.servers import servers

# Beside the listener that its health is asked on, one that asks who is there.
PROPERTIES: Final = """\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_PLAINTEXT://127.0.0.1:{locked}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{locked}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=\
  org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="s3cret";
"""
PROMPT: Final = encode(
    PromptCreated(prompt_id="prompt", text="rain on a tin roof"), event_id="event", time="2026-01-01T00:00:00.000000Z"
)


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaAccess]:
    servers()
    folder = tmp_path_factory.mktemp("kafka")
    port, controller, locked = islice(ports.free(), 3)
    kafka = Kafka(folder, port, controller)
    configured = PROPERTIES.format(port=port, controller=controller, locked=locked)
    process = Process.spawn(kafka.command(kafka.install(print), configured), kafka.environment(), folder / "log")
    try:
        eventually_sync(kafka.answers, PATIENCE)
        yield KafkaAccess(
            servers=f"127.0.0.1:{locked}",
            security_protocol="SASL_PLAINTEXT",
            username="ann",
            password="s3cret",  # noqa: S106
        )
    finally:
        process.end(signal.SIGKILL, PATIENCE)


async def test_a_user_with_the_right_password_writes_reads_and_folds(access: KafkaAccess, tmp_path: Path) -> None:
    async with studio(servers().addresses, tmp_path) as place:
        place.environment |= {
            "TEXT2SONG_LOG": f"kafka://{access.servers}",
            "TEXT2SONG_KAFKA_SECURITY": access.security_protocol,
            "TEXT2SONG_KAFKA_USERNAME": str(access.username),
            "TEXT2SONG_KAFKA_PASSWORD": str(access.password),
        }
        async with place.adapters() as (log, store, _):
            [at] = await log.append([PROMPT])
            [record] = await log.read(at.topic, at.partition, at.offset)
            assert (record.key, record.value) == (PROMPT.key, PROMPT.value)
            project = place.role("project")
            await project.start()
            await eventually(lambda: is_folded(log, store), PATIENCE)
        assert await project.stop() == 0
        assert "Traceback" not in project.said


async def test_a_wrong_password_is_refused(access: KafkaAccess) -> None:
    with pytest.raises(UnavailableError, match=r"it refused the login .* Correct the user, the password") as refused:
        await KafkaLog.open(replace(access, password="guessed"))  # noqa: S106
    assert "guessed" not in str(refused.value)
