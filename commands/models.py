from commands.transact import Receipt, Views, transact
from domain import models
from domain.journal import Journal
from domain.models import CHOICE, MODEL_CHOICES, Registry


async def activate(journal: Journal, views: Views, registry: Registry, model_id: str) -> Receipt:
    """Raises InvalidError for a model that no worker has loaded."""
    able = registry.activable(model_id).id
    return await transact(journal, views, MODEL_CHOICES, CHOICE, lambda choice: models.activate(choice, able))
