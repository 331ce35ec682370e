from typing import Final

from litestar import get

from api.http.pages import Page
from api.http.services import Injected
from domain.models import Model


@get("/models", operation_id="listModels", tags=["models"])
async def list_models(services: Injected) -> Page[Model]:
    """Every supported model with its limits; the active one is what jobs are made with."""
    models = list(services.registry.models)
    return Page(items=models, total=len(models), limit=len(models), offset=0, next_cursor=None)


ROUTES: Final = (list_models,)
