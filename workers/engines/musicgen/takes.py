"""Requests and their takes, as the engine works on them."""

import math
import time
from pathlib import Path
from typing import Any, Final

import torch
from msgspec import Struct, field

from domain.models import KEPT_SHARE
from workers.engine import Clip, EngineRequest, Progress, Take
from workers.engines import memory
from workers.engines.musicgen.batch import Row
from workers.engines.musicgen.codec import Rendering
from workers.engines.musicgen.decoder import Decoder
from workers.engines.musicgen.liking import Liking
from workers.engines.musicgen.texts import Text

DECODING_SHARE: Final = 0.95


class ActiveRequest(Struct, eq=False):
    """`unsung` takes have no clip yet; `started` is when the first of them began, on the monotonic clock.

    `opening` are the codes that each take begins with, once they are known; `liking` judges takes that are judged.
    """

    request: EngineRequest
    takes: list["ActiveTake"] = field(default_factory=list)
    unsung: int = 0
    started: float | None = None
    fraction: float = 0.0
    opening: torch.Tensor | None = None
    liking: Liking | None = None

    @property
    def given(self) -> int:
        """The frames that every take has from the beginning."""
        return 0 if self.opening is None else self.opening.shape[1]

    def progress(self, stage: str | None = None) -> Progress:
        """`stage` is worked out where it is not given."""
        # A take that has to begin again does not take back what was said.
        self.fraction = max(self.fraction, sum(take.share for take in self.takes) / len(self.takes))
        eta = None
        if self.fraction and self.started is not None:
            eta = (time.monotonic() - self.started) * (1 - self.fraction) / self.fraction
        decoded = all(take.is_decoded for take in self.takes)
        stage = stage or ("rendering" if decoded else "decoding")
        return Progress(request_id=self.request.id, fraction=self.fraction, stage=stage, eta_seconds=eta)


class ActiveTake(Struct, eq=False):
    """`window` is the most frames that the decoder makes at a stretch; `made` frames of `codes` are there.

    `evidence` is the decoder's, of all windows that are done."""

    owner: ActiveRequest
    take: Take
    network: Any
    window: int
    codes: torch.Tensor
    rendering: Rendering
    made: int = 0
    evidence: float = 0.0
    row: Row | None = None

    @property
    def frames(self) -> int:
        return self.codes.shape[1]

    @property
    def is_decoded(self) -> bool:
        return self.made == self.frames

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        given = self.owner.given
        decoded = max(0, self.made - given) / (self.frames - given)
        return DECODING_SHARE * decoded + (1 - DECODING_SHARE) * self.rendering.share

    @property
    def can_render(self) -> bool:
        return not self.rendering.is_done and self.made >= self.rendering.needs

    def next_row(self, text: Text, columns: range | None) -> Row:
        """The next window, which begins with the end of the one before."""
        request, opening = self.owner.request, self.owner.opening
        if opening is not None and not self.made:
            self.made = opening.shape[1]
            self.codes[:, : self.made] = opening
        given = min(self.made, round(self.window * KEPT_SHARE))
        start = self.made - given
        self.row = Row(
            text=text.states,
            frames=min(self.window, self.frames - start),
            sampling=request.sampling,
            seed=self.take.seed,
            offset=start,
            prompt=self.codes[:, start : self.made] if given else None,
            columns=columns,
            scale=request.adapter.scale if request.adapter else 1.0,
            is_judged=request.is_judged,
        )
        return self.row

    def collect(self, row: Row, decoder: Decoder) -> None:
        """Copies the codes that have come since the last time."""
        made = row.offset + decoder.made(row)
        if made > self.made:
            self.codes[:, self.made : made] = decoder.codes(row, self.made - row.offset, made - row.offset)
            self.made = made

    # Threads have this mode each for itself.
    @torch.inference_mode()
    def render(self, rendering: Rendering) -> None:
        """The next piece of a rendering that is this take's, or was until it had to begin again."""
        rendering.render(self.codes[:, rendering.kept_from : rendering.needs])
        if self.frames > self.window:
            # A piece leaves holes between what lives on, and a long clip has many pieces.
            memory.give_back()

    def restart(self) -> None:
        self.made, self.row, self.evidence = 0, None, 0.0
        self.rendering = rendering(self.network, self.owner.request.duration)

    @property
    def likelihood(self) -> float | None:
        """A code's mean evidence, in nats."""
        if not self.owner.request.is_judged:
            return None
        drawn = len(self.codes) * (self.frames - self.owner.given)
        return self.evidence / max(1, drawn)

    @property
    def preference(self) -> float | None:
        if (liking := self.owner.liking) is None:
            return None
        channels = self.network.decoder.config.audio_channels
        return liking.score(self.rendering.finished(), self.codes, self.network.audio_encoder, channels)

    def clip(self) -> Clip:
        return Clip(
            request_id=self.owner.request.id,
            index=self.take.index,
            seed=self.take.seed,
            sample_rate=self.network.audio_encoder.config.sampling_rate,
            pcm=self.rendering.finished(),
            likelihood=self.likelihood,
            preference=self.preference,
        )


def activate(request: EngineRequest, network: Any, window: int, device: torch.device) -> ActiveRequest:
    """`network` is a MusicgenForConditionalGeneration."""
    active = ActiveRequest(request, unsung=len(request.takes))
    if request.is_judged and request.adapter is not None:
        active.liking = Liking.load(Path(request.adapter.folder), network.audio_encoder.config.sampling_rate)
    for take in request.takes:
        audio = rendering(network, request.duration)
        codes = torch.zeros(network.decoder.config.num_codebooks, audio.frames, dtype=torch.int64, device=device)
        active.takes.append(ActiveTake(active, take, network, window, codes, audio))
    return active


def rendering(network: Any, duration: float) -> Rendering:
    codec = network.audio_encoder
    samples = round(duration * codec.config.sampling_rate)
    frames = math.ceil(samples / codec.config.hop_length)
    return Rendering(codec, network.decoder.config.audio_channels, frames, samples)


def window_frames(max_duration: float, codec: Any, decoder: Any) -> int:
    """The frames of the model's longest clip, if its table of positions has a place for each of the steps."""
    most: int = decoder.max_position_embeddings - decoder.num_codebooks // decoder.audio_channels + 1
    frames: int = math.ceil(round(max_duration * codec.sampling_rate) / codec.hop_length)
    return min(frames, most)
