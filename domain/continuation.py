"""Clips that go on where a stored sample ends."""

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from msgspec import Struct

from domain.errors import Fault, plain
from domain.events.jobs import Continuation
from domain.models import MIN_DURATION, Model


class Source(Struct, frozen=True, kw_only=True):
    """A sample that can be heard, as far as clips that continue it need to know. `duration` is in seconds."""

    sample_id: str
    model_id: str
    duration: float
    storage_path: str
    sha256: str


# Finds a sample by its id: None unless it can be heard.
Sources: TypeAlias = Callable[[str], Awaitable[Source | None]]


def continuation(source: Source, seconds: float | None, model: Model) -> Continuation:
    """By default a clip begins with as much of the source's end as a window does with that of the one before."""
    return Continuation(
        sample_id=source.sample_id,
        seconds=min(source.duration, model.kept_duration) if seconds is None else seconds,
        storage_path=source.storage_path,
        sha256=source.sha256,
    )


def faults(kept: Continuation, source: Source, model: Model, duration: float) -> Iterator[Fault]:
    """`duration` is that of the new clip, with what is kept."""
    named = f"sample {source.sample_id}"
    if source.model_id != model.id:
        detail = f"The {named} was made by {source.model_id}, but the current model is {model.id}; "
        yield Fault("/continue_from", f"{detail}a sample can only be continued by its own model.")
    elif not model.may("continuation"):
        yield Fault("/continue_from", f"{model.id} cannot continue the {named}; leave continue_from out.")
    elif not MIN_DURATION <= kept.seconds <= source.duration:
        yield Fault(
            "/continue_seconds",
            f"continue_seconds is {plain(kept.seconds)}; of {named}, from {plain(MIN_DURATION)} s "
            f"to all its {plain(source.duration)} s can be kept.",
        )
    elif kept.seconds >= duration:
        yield Fault(
            "/continue_seconds",
            f"The duration is {plain(duration)} s, of which {plain(kept.seconds)} s are kept of {named}: nothing would "
            "be new. Ask for a longer duration, or for fewer continue_seconds.",
        )
