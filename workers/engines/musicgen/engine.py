"""MusicGen with its own decoding loop: takes of many requests in one batch, which they join late and leave early."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
)

from domain.models import Model
from workers.engine import EngineError, EngineRequest, Update
from workers.engines import noise
from workers.engines.checkpoints import Checkpoint
from workers.engines.faults import NOT_FINITE, failed, is_short_of_memory, short_of_memory, unloadable, usable
from workers.engines.musicgen.codec import Rendering
from workers.engines.musicgen.crew import Crew
from workers.engines.musicgen.decoder import Decoder
from workers.engines.musicgen.listening import check, heard
from workers.engines.musicgen.takes import ActiveRequest, ActiveTake, activate, window_frames
from workers.engines.musicgen.texts import Text, Texts

STEPS_PER_ADVANCE: Final = 20
MOST_ROWS: Final = {"cpu": 16, "cuda": 64}
# The rest of the free memory is for the text encoder, EnCodec, and what a step holds for a moment.
SHARE_OF_MEMORY: Final = 0.6
JOINED: Final = object()

Piece: TypeAlias = tuple[ActiveTake, Rendering, Future[None]]

logger = logging.getLogger(__name__)


class MusicgenEngine:
    """Each `advance` runs about 20 decoding steps of all rows, and renders some seconds of what they have made."""

    def __init__(
        self, network: Any, tokenizer: Any, model: Model, device: torch.device, rows: int | None = None
    ) -> None:
        """`network` is a MusicgenForConditionalGeneration in fp32, or a MusicgenMelodyForConditionalGeneration, which
        follows melodies too; `tokenizer` is the one of its text encoder.

        `rows` is the most takes at once, None as many as memory and device are good for.
        """
        self.model = model
        self._device = device
        self._tokenizer = tokenizer
        if device.type == "cuda":
            # EnCodec loses audible precision below fp32, and T5 overflows in fp16; the decoder is where the time goes.
            half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            network.decoder.to(half)
        self.network = network.eval().to(device)
        self._window = window_frames(model.max_duration, network.audio_encoder.config, network.decoder.config)
        self._texts = Texts(network, tokenizer)
        self._frame_rate = network.audio_encoder.config.sampling_rate / network.audio_encoder.config.hop_length
        lead = self._texts.longest_lead
        self._rows = rows or _rows(Decoder.row_bytes(network.decoder, self._window, lead), device)
        self._crew = Crew(device)
        self._decoder = Decoder(network.decoder, self._crew, self._rows, self._window, lead)
        self._active: dict[str, ActiveRequest] = {}
        self._waiting: deque[ActiveTake] = deque()
        self._joining: tuple[ActiveTake, Iterator[None]] | None = None
        self._decoding: list[ActiveTake] = []
        self._updates: list[Update] = []

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | None = None) -> Self:
        """`device` is a torch device name; None selects the GPU if there is one. Raises EngineError."""
        place = usable(device)
        # With a damaged file the libraries can raise any exception.
        try:
            network, tokenizer = noise.build() if checkpoint.folder is None else read(checkpoint.folder)
            return cls(network, tokenizer, checkpoint.model, place)
        except Exception as error:
            raise unloadable(checkpoint.model, place, error) from error

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def capacity(self) -> int:
        return self._rows

    def admit(self, request: EngineRequest) -> None:
        longest = self.model.max_extended_duration
        if request.id in self._active:
            raise EngineError(f"Request {request.id} is already running.")
        if not request.takes:
            raise EngineError("The request has no takes.")
        if not 0 < request.duration <= longest:
            raise EngineError(
                f"The duration is {request.duration:g} s; {self.model.id} makes clips of up to {longest:g} s. "
                "Ask for a shorter clip."
            )
        if request.opening is not None:
            check(request.opening, request.duration, self.network)
        if request.melody and not self._texts.is_melody:
            raise EngineError(f"{self.model.id} follows no melody. Ask one of MusicGen's melody models.")
        try:
            active = activate(request, self.network, self._window, self._device)
        except Exception as error:
            if not is_short_of_memory(error):
                raise
            raise EngineError(short_of_memory(self.device, request.duration), transient=True) from error
        self._active[request.id] = active
        self._waiting.extend(active.takes)

    # Tensors that were made during `advance` can be changed in this mode alone.
    @torch.inference_mode()
    def cancel(self, request_id: str) -> None:
        if request_id in self._active:
            self._drop(self._active[request_id])

    @torch.inference_mode()
    def advance(self) -> Sequence[Update]:
        """Raises only torch.AcceleratorError: the device is then unusable, and the process must end."""
        self._updates = []
        self._join()
        pieces = self._render()
        self._decode()
        clips = self._rendered(pieces)
        self._updates += [active.progress() for active in self._active.values() if active.started is not None]
        for take in clips:
            if take.owner.request.id not in self._active:
                continue
            try:
                self._updates.append(take.clip())
            except Exception as error:
                self._fail([take], error)
                continue
            take.owner.unsung -= 1
            if not take.owner.unsung:
                self._drop(take.owner)
        return self._updates

    def _join(self) -> None:
        """Brings waiting takes into the batch while rows are free, in the order in which they were admitted."""
        while self._joining is not None or (self._waiting and len(self._decoding) < self._rows):
            take, pieces = self._joining or (self._waiting[0], None)
            try:
                pieces = pieces or self._begin(take)
                if pieces is None or next(pieces, JOINED) is not JOINED:
                    return
            except Exception as error:
                self._fail([take], error)
            else:
                self._decoding.append(take)
                self._joining = None

    def _begin(self, take: ActiveTake) -> Iterator[None] | None:
        """None while there is no room for the take's adapter."""
        active, request = take.owner, take.owner.request
        if active.started is None:
            active.started = time.monotonic()
            self._updates.append(active.progress("encoding"))
        text = self._texts.encoded(request.prompt)
        columns = None
        if request.adapter is not None and (columns := self._decoder.slots.hold(request.adapter)) is None:
            return None
        self._waiting.popleft()
        pieces = self._pieces(take, text, columns)
        self._joining = take, pieces
        return pieces

    def _pieces(self, take: ActiveTake, text: Text, columns: range | None) -> Iterator[None]:
        """What there is to do until the take is in the batch."""
        active = take.owner
        if active.request.opening is not None and active.opening is None:
            parts = []
            for part in heard(active.request.opening, self.network):
                parts.append(part)
                yield
            active.opening = torch.cat(parts, dim=1)
        take.row = take.next_row(text, columns)
        take.row.lead = self._texts.lead(text, active.request.melody, take.row.offset / self._frame_rate)
        yield from self._decoder.join(take.row)

    def _decode(self) -> None:
        if not self._decoding:
            return
        rows = [(take, take.row) for take in self._decoding if take.row is not None]
        try:
            self._decoder.run(min(STEPS_PER_ADVANCE, *(self._decoder.left(row) for _, row in rows)))
            unsound = self._decoder.unsound()
            for take, row in rows:
                take.collect(row, self._decoder)
        except Exception as error:
            self._fail(list(self._decoding), error)
            return
        for take, row in rows:
            if take not in self._decoding:
                # Its request has failed with another of its takes.
                continue
            if row in unsound:
                self._fail([take], EngineError(NOT_FINITE, transient=True))
            elif not self._decoder.left(row):
                if row.is_judged:
                    take.evidence += self._decoder.evidence(row)
                self._leave(take)
                if not take.is_decoded:
                    self._waiting.appendleft(take)

    def _render(self) -> list[Piece]:
        """Begins the next pieces of audio, as many as the rows decode meanwhile, those of decoded takes first."""
        ready = [take for active in self._active.values() for take in active.takes if take.can_render]
        ready.sort(key=lambda take: not take.is_decoded)
        count = 1 + len(self._decoding) // 8 if self._decoding else self._crew.size
        return [
            (take, take.rendering, self._crew.begin(partial(take.render, take.rendering))) for take in ready[:count]
        ]

    def _rendered(self, pieces: list[Piece]) -> list[ActiveTake]:
        """Waits for the pieces. The takes whose audio is done, without those that began again or ended meanwhile."""
        clips = []
        for take, rendering, piece in pieces:
            error = piece.exception()
            if take.rendering is not rendering or take.owner.request.id not in self._active:
                continue
            if isinstance(error, Exception):
                self._fail([take], error)
            elif rendering.is_done:
                clips.append(take)
        return clips

    def _leave(self, take: ActiveTake) -> None:
        """Takes it out of the batch, where it is in it, and lets its adapter go."""
        if take in self._decoding and take.row is not None:
            self._decoding.remove(take)
            self._decoder.leave(take.row)
        elif self._joining is not None and take is self._joining[0]:
            self._joining = None
        else:
            return
        if (adapter := take.owner.request.adapter) is not None:
            self._decoder.slots.let_go(adapter.sha256)

    def _drop(self, active: ActiveRequest) -> None:
        del self._active[active.request.id]
        for take in active.takes:
            self._leave(take)
        self._waiting = deque(take for take in self._waiting if take.owner is not active)

    def _fail(self, takes: list[ActiveTake], error: Exception) -> None:
        """Ends the requests of these takes; where memory was short, only if they cannot be done with half the rows."""
        if isinstance(error, torch.AcceleratorError):
            raise error
        if is_short_of_memory(error) and self._rows > 1:
            self._halve()
            return
        for active in {take.owner.request.id: take.owner for take in takes}.values():
            failure = failed(active.request, self.device, error)
            if failure.request_id in self._active:
                self._drop(active)
                self._updates.append(failure)
        self._free_memory()

    def _halve(self) -> None:
        """Goes on with half the rows. Takes that were in the batch begin again, and come out the same."""
        logger.warning("%s ran out of memory with %d rows; going on with half of them.", self.device, self._rows)
        joining = self._joining[0] if self._joining else None
        takes = [take for active in self._active.values() for take in active.takes]
        begun = [take for take in takes if take.row is not None or take is joining]
        again = [take for take in begun if not take.is_decoded]
        for take in again:
            self._leave(take)
            take.restart()
        self._waiting = deque([*again, *(take for take in self._waiting if take not in again)])
        self._rows //= 2
        self._decoder.resize(self._rows)

    def _free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def read(folder: Path) -> tuple[Any, Any]:
    """The network of a checkpoint, in fp32, and its tokenizer. With a damaged file any exception can come."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    is_melody = isinstance(config, MusicgenMelodyConfig)
    network: Any = MusicgenMelodyForConditionalGeneration if is_melody else MusicgenForConditionalGeneration
    network, report = network.from_pretrained(
        folder,
        local_files_only=True,
        dtype=torch.float32,
        attn_implementation={"decoder": "sdpa"},
        output_loading_info=True,
    )
    # The library gives weights that the file lacks random values.
    absent = sorted(key for key in report["missing_keys"] if key.startswith("decoder."))
    if absent:
        raise ValueError(f"its weights lack {absent[0]}.")
    return network, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _rows(bytes_: int, device: torch.device) -> int:
    """How many rows of so many bytes the free memory holds, up to what the device is good for."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    fitting = int(SHARE_OF_MEMORY * free / bytes_) - 1
    return max(1, min(MOST_ROWS.get(device.type, 1), fitting))


def _free_memory() -> int:
    """In bytes, with what the system would give back of its caches."""
    try:
        words = Path("/proc/meminfo").read_text().split()
        return int(words[words.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
