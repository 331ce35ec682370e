"""Audio samples side by side."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, TypeAlias

from litestar import get
from msgspec import Struct
from msgspec.structs import asdict

from api.audio import AudioBody, body
from api.http.faults import shown
from api.http.positions import CURRENT
from api.http.services import Injected
from api.http.several import several
from domain.errors import Fault, InvalidError, NotFoundError
from projections.audio import AUDIO, AudioSample

SAMPLES: Final = (2, 16)  # at least, and at most
Value: TypeAlias = bool | int | float | str | None


class Difference(Struct, frozen=True, kw_only=True):
    """`values` are by sample id, in the order asked for; an `adapter_id` of null is the base model. A parameter of some
    models alone is called `parameters.` and its name, and null where the sample's model has no such one.
    """

    parameter: str
    values: dict[str, Value]


class Comparison(Struct, frozen=True, kw_only=True):
    """`samples` are in the order asked for. `differences` has each parameter that is not the same in all of them."""

    samples: list[AudioBody]
    same_prompt: bool
    differences: list[Difference]


Ids: TypeAlias = Annotated[
    list[str],
    several("samples", *SAMPLES),
]


@get("/audio/compare", operation_id="compareAudio", opt=CURRENT, tags=["audio"])
async def compare_audio(services: Injected, ids: Ids) -> Comparison:
    """What is the same and what differs between samples. `same_prompt` means one prompt, not the same words."""
    asked = [entry for part in ids for entry in part.split(",")]
    if faults := list(_faults(asked)):
        raise InvalidError(faults)
    found = await services.views.get(AUDIO, asked)
    if missing := [id_ for id_ in asked if id_ not in found or found[id_].hidden]:
        raise NotFoundError("audio sample", *missing)
    samples = [found[id_] for id_ in asked]
    return Comparison(
        samples=[body(services, sample) for sample in samples],
        same_prompt=len({sample.prompt_id for sample in samples}) == 1,
        differences=_differences(samples),
    )


ROUTES: Final = (compare_audio,)


def _faults(ids: Sequence[str]) -> Iterator[Fault]:
    least, most = SAMPLES
    named = Counter(id_ for id_ in ids if id_)
    if not least <= (count := named.total()) <= most:
        said = f"ids names {count} sample{'' if count == 1 else 's'}"
        yield Fault("/ids", f"{said}; name {least} to {most}, with commas between.")
    if named and (places := [str(place) for place, id_ in enumerate(ids, 1) if not id_]):
        yield Fault("/ids", f"ids has nothing at place {', '.join(places)}; write one comma between two samples.")
    for id_, times in named.items():
        if times > 1:
            yield Fault("/ids", f"ids names {shown(id_)} {times} times; name each sample once.")


def _differences(samples: Sequence[AudioSample]) -> list[Difference]:
    by_sample = {sample.id: _parameters(sample) for sample in samples}
    return [
        Difference(parameter=name, values={id_: parameters.get(name) for id_, parameters in by_sample.items()})
        for name in dict.fromkeys(name for parameters in by_sample.values() for name in parameters)
        if len({parameters.get(name) for parameters in by_sample.values()}) > 1
    ]


def _parameters(sample: AudioSample) -> Mapping[str, Value]:
    params = asdict(sample.generation_params)
    own: Mapping[str, Value] = params.pop("parameters")
    return {
        "prompt": sample.prompt,
        "lyrics": sample.lyrics,
        "model_id": sample.model_id,
        "adapter_id": sample.adapter.id if sample.adapter else None,
        **params,
        **{f"parameters.{name}": value for name, value in own.items()},
    }
