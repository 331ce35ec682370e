import secrets
from collections.abc import Mapping

from commands.transact import Receipt, Views, append, transact
from domain import keys
from domain.aggregates import AGGREGATES
from domain.envelope import decode
from domain.errors import NotFoundError
from domain.journal import Journal
from domain.keys import KEYS, Key, KeyRequest
from domain.ports import EventLog, TopicPartition


async def create(journal: Journal, views: Views, request: KeyRequest) -> tuple[Receipt, str]:
    """The key's text too, which is kept nowhere. Raises InvalidError."""
    key_id, secret = journal.new_id(), secrets.token_urlsafe(32)
    events = keys.create(request, key_id, keys.digest(secret), journal.now())
    return await append(journal, views, key_id, events), keys.text(key_id, secret)


async def revoke(journal: Journal, views: Views, key_id: str) -> Receipt:
    """Raises NotFoundError."""
    return await transact(journal, views, KEYS, key_id, lambda key: keys.revoke(key, key_id))


async def logged(log: EventLog, ends: Mapping[TopicPartition, int] | None = None) -> dict[str, Key]:
    """Every key by the log alone, up to the offsets given, by default to its end. Raises as EventLog.read does."""
    if ends is None:
        ends = {(KEYS.name, number): end for number, end in (await log.ends(KEYS.name)).items()}
    found: dict[str, Key] = {}
    for (topic, partition), end in ends.items():
        offset = 0
        while topic == KEYS.name and offset < end and (page := await log.read(topic, partition, offset)):
            for recorded in map(decode, page):
                if (key := AGGREGATES[topic].apply(found.get(recorded.key), recorded)) is not None:
                    found[recorded.key] = key
            offset = page[-1].position.offset + 1
    return found


async def create_on(journal: Journal, request: KeyRequest) -> tuple[Key, str]:
    """As `create`, where no process has to answer for the log. Raises InvalidError."""
    key_id, secret = journal.new_id(), secrets.token_urlsafe(32)
    await journal.append(*keys.create(request, key_id, keys.digest(secret), journal.now()))
    return (await logged(journal.log))[key_id], keys.text(key_id, secret)


async def revoke_on(journal: Journal, key_id: str) -> Key:
    """As `revoke`, where no process has to answer for the log. Raises NotFoundError."""
    if events := keys.revoke((await logged(journal.log)).get(key_id), key_id):
        await journal.append(*events)
    found = (await logged(journal.log)).get(key_id)
    if found is None:
        raise NotFoundError("key", key_id)
    return found
