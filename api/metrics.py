"""What Prometheus asks an API process: its own work, and how the studio stands.

No label is what a stranger wrote: models that the studio does not know are counted together, and so are paths without
a route.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from litestar import Request, Response, get
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.http.access import ADMIN
from api.http.meter import OTHER
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from domain.aggregates import AGGREGATES
from domain.errors import UnavailableError
from domain.events.progress import WorkerAlive
from domain.jobs import JOBS
from domain.ports import Query
from domain.webhooks import WEBHOOKS

PATIENCE_SECONDS: Final = 1.0

logger: Final = logging.getLogger(__name__)


class Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


@get("/metrics", operation_id="getMetrics", opt=ADMIN | CURRENT, include_in_schema=False)
async def metrics(request: Request[Any, Any, Any], services: Injected) -> Response[bytes]:
    """As text of Prometheus, or of OpenMetrics where that is accepted.

    A figure whose server does not answer within a second is left out, and `text2song_up` of that source is 0.
    """
    registry = CollectorRegistry()
    counted = services.feed.meter.registry.collect()
    registry.register(Families([*counted, *_process(services), *await _stores(services)]))
    encode, media_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), media_type=media_type)


ROUTES: Final = (metrics,)


def _process(services: Services) -> Iterator[Metric]:
    """What this process knows without asking anybody."""
    yield _gauge("text2song_event_streams", "Clients that listen to events.", services.feed.streams)
    yield _gauge(
        "text2song_views_ready", "1 once the views have all that was on the log at the start.", services.folded.ready
    )
    yield from _workers(services)
    kept = services.renditions
    yield _gauge(
        "text2song_renditions_bytes",
        "Audio in other formats than the masters that is known to be kept.",
        kept.known_bytes,
    )
    yield _gauge("text2song_renditions_limit_bytes", "How much of it may be kept.", kept.limit)
    asked = CounterMetricFamily("text2song_renditions", "Audio in other formats that was asked for.", labels=["found"])
    asked.add_metric(["kept"], kept.hits)
    asked.add_metric(["made"], kept.misses)
    yield asked


def _workers(services: Services) -> Iterator[Metric]:
    """By model; models that the studio does not know are counted together."""
    by_model = defaultdict[str, list[WorkerAlive]](list)
    for alive in services.feed.workers():
        by_model[alive.model_id if services.registry.find(alive.model_id) else OTHER].append(alive)
    states = GaugeMetricFamily("text2song_workers", "Workers heard of lately.", labels=["model", "state"])
    capacity = GaugeMetricFamily("text2song_worker_capacity", "Samples that workers make at once.", labels=["model"])
    busy = GaugeMetricFamily("text2song_worker_busy", "Samples that they are making.", labels=["model"])
    speed = GaugeMetricFamily(
        "text2song_real_time_factor",
        "Seconds of audio that the workers make in a second.",
        labels=["model"],
    )
    for model, workers in sorted(by_model.items()):
        for state in ("ready", "busy", "broken"):
            states.add_metric([model, state], sum(alive.state == state for alive in workers))
        capacity.add_metric([model], sum(alive.capacity or 0 for alive in workers))
        busy.add_metric([model], sum(alive.busy or 0 for alive in workers))
        speed.add_metric([model], sum(alive.real_time_factor or 0 for alive in workers))
    yield from (states, capacity, busy, speed)


async def _stores(services: Services) -> list[Metric]:
    """What the log and the views say, each asked at the same time as the other."""
    asked: dict[str, Callable[[Services], Awaitable[Sequence[Metric]]]] = {"log": _lag, "views": _queues}
    answers = await asyncio.gather(*(_asked(source, ask(services)) for source, ask in asked.items()))
    up = GaugeMetricFamily("text2song_up", "1 where the source has answered within a second.", labels=["source"])
    for source, answer in zip(asked, answers, strict=True):
        up.add_metric([source], answer is not None)
    return [up, *(family for answer in answers for family in answer or ())]


async def _asked(source: str, answer: Awaitable[Sequence[Metric]]) -> Sequence[Metric] | None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await answer
    except (UnavailableError, TimeoutError) as error:
        logger.warning("There are no figures of the %s: %s", source, str(error) or "it did not answer in time.")
        return None


async def _lag(services: Services) -> Sequence[Metric]:
    lag = GaugeMetricFamily("text2song_unfolded_records", "Records of the log that the views lack.", labels=["topic"])
    ends = await asyncio.gather(*(services.journal.log.ends(topic) for topic in AGGREGATES))
    for topic, partitions in zip(AGGREGATES, ends, strict=True):
        folded = services.folded.offsets
        lag.add_metric([topic], sum(max(0, end - folded.get((topic, at), 0)) for at, end in partitions.items()))
    return [lag]


async def _queues(services: Services) -> Sequence[Metric]:
    queued = GaugeMetricFamily("text2song_queued_jobs", "Jobs that wait for a worker.", labels=["model"])
    oldest = GaugeMetricFamily(
        "text2song_oldest_queued_job_seconds", "For how long the first of them has waited.", labels=["model"]
    )
    views, total = services.views, 0
    for model in services.registry.models:
        query = Query(equal={"status": "queued", "model_id": model.id}, limit=1)
        count = await views.count(JOBS, query)
        total += count
        queued.add_metric([model.id], count)
        first = await views.find(JOBS, replace(query, offset=count - 1)) if count else []
        oldest.add_metric([model.id], max((_age(job.created_at) for job in first), default=0.0))
    others = await views.count(JOBS, Query(equal={"status": "queued"})) - total
    queued.add_metric([OTHER], max(0, others))
    backlog = await views.count(WEBHOOKS, Query(equal={"open": True}))
    return [queued, oldest, _gauge("text2song_webhook_backlog", "Webhooks that have not been delivered yet.", backlog)]


def _gauge(name: str, text: str, figure: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=figure)


def _age(created_at: str) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(created_at)).total_seconds())
