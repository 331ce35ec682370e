from commands.transact import Receipt, Views, append, load, seen
from domain import webhooks
from domain.journal import Journal
from domain.webhooks import WEBHOOKS


async def replay(journal: Journal, views: Views, delivery_id: str) -> Receipt:
    """The receipt's id is that of the delivery to look at. Raises NotFoundError."""
    delivery = await load(views, WEBHOOKS, delivery_id)
    events = webhooks.replay(delivery, delivery_id, journal.new_id())
    id_ = events[0].delivery_id if events else delivery_id
    return await append(journal, views, id_, events, seen(WEBHOOKS, delivery))
