"""Several ids in one query: `ids=a,b`, or `ids=a&ids=b`."""

from litestar.params import QueryParameter


def several(things: str, least: int, most: int) -> QueryParameter:
    """The parameter `ids` as the documentation has it. One item of it may hold several ids."""
    return QueryParameter(
        description=f"{least} to {most} {things}, with commas between, or each as an `ids` of its own.",
        schema_extra={
            "items": {"type": "string", "pattern": "^[^,]+(,[^,]+)*$"},
            "minItems": 1,
            "maxItems": most,
            "uniqueItems": True,
        },
    )
