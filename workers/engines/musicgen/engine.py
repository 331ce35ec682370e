"""MusicGen with its own decoding loop: takes are seeded, report their progress and can be cancelled."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from domain.events.jobs import Sampling
from domain.models import Model
from workers.engine import Clip, EngineError, EngineRequest, Failure, Progress, Take, Update
from workers.engines import noise
from workers.engines.checkpoints import Checkpoint
from workers.engines.reading import PROMPT_TOKENS

STEPS_PER_ADVANCE: Final = 20
CHUNK_FRAMES: Final = 250
CONTEXT_FRAMES: Final = 25
DECODING_SHARE: Final = 0.95
MASK: Final = 0xFFFFFFFF

logger = logging.getLogger(__name__)

Report = Callable[[str, float], Progress]


class MusicgenEngine:
    """Handles one request at a time, take after take; each `advance` runs about 20 decoding steps."""

    capacity = 1

    def __init__(self, network: Any, tokenizer: Any, model: Model, device: torch.device) -> None:
        """`network` is a MusicgenForConditionalGeneration in fp32, `tokenizer` the one of its text encoder."""
        self.model = model
        self._device = device
        self._tokenizer = tokenizer
        if device.type == "cuda":
            # EnCodec loses audible precision below fp32, and T5 overflows in fp16; the decoder is where the time goes.
            half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            network.decoder.to(half)
        self.network = network.eval().to(device)
        self._request: EngineRequest | None = None
        self._updates: Iterator[Progress | Clip] = iter(())

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | None = None) -> Self:
        """`device` is a torch device name; None selects the GPU if there is one. Raises EngineError."""
        try:
            place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.zeros(1, device=place)
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f"Device {device} cannot be used: {_brief(error)}") from error
        # With a damaged file the libraries can raise any exception.
        try:
            network, tokenizer = noise.build() if checkpoint.folder is None else _read(checkpoint.folder)
            return cls(network, tokenizer, checkpoint.model, place)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"Model {checkpoint.model.id} does not fit into the memory of {place}; it needs about "
                f"{checkpoint.model.vram_gb:g} GB. Choose a smaller model, or TEXT2SONG_DEVICE=cpu."
            ) from error
        except Exception as error:
            raise EngineError(f"Model {checkpoint.model.id} cannot be loaded: {_brief(error)}") from error

    @property
    def device(self) -> str:
        return str(self._device)

    def admit(self, request: EngineRequest) -> None:
        if self._request is not None:
            raise EngineError("The model is busy with another request.", transient=True)
        if request.adapter is not None:
            raise EngineError(f"{self.model.id} cannot use adapters yet.")
        if not request.takes:
            raise EngineError("The request has no takes.")
        if not 0 < request.duration <= self.model.max_duration:
            raise EngineError(
                f"The duration is {request.duration:g} s; {self.model.id} makes clips of up to "
                f"{self.model.max_duration:g} s."
            )
        self._request = request
        self._updates = self._perform(request)

    def advance(self) -> Sequence[Update]:
        """Raises only torch.AcceleratorError: the device is then unusable, and the process must end."""
        request = self._request
        if request is None:
            return []
        try:
            with torch.inference_mode():
                update = next(self._updates)
        except torch.AcceleratorError:
            raise
        except torch.OutOfMemoryError:
            failure = Failure(
                request_id=request.id,
                error=f"{self.device} ran out of memory on a clip of {request.duration:g} s.",
                transient=True,
            )
        except EngineError as error:
            failure = Failure(request_id=request.id, error=str(error), transient=error.transient)
        except Exception as error:
            logger.exception("Request %s failed", request.id)
            failure = Failure(request_id=request.id, error=f"Generation failed: {_brief(error)}", transient=True)
        else:
            if isinstance(update, Clip) and update.index == request.takes[-1].index:
                self._release()
            return [update]
        self._release()
        return [failure]

    def cancel(self, request_id: str) -> None:
        if self._request is not None and self._request.id == request_id:
            self._release()

    def _release(self) -> None:
        self._request = None
        self._updates = iter(())
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _perform(self, request: EngineRequest) -> Iterator[Progress | Clip]:
        started = time.monotonic()
        done = 0

        def report(stage: str, share: float) -> Progress:
            fraction = (done + share) / len(request.takes)
            eta = (time.monotonic() - started) * (1 - fraction) / fraction if fraction else None
            return Progress(request_id=request.id, fraction=fraction, stage=stage, eta_seconds=eta)

        yield report("encoding", 0)
        text = self._encode(request.prompt, guided=request.sampling.guidance_scale > 1)
        codec = self.network.audio_encoder.config
        samples = round(request.duration * codec.sampling_rate)
        for done, take in enumerate(request.takes):  # noqa: B007  (read by report)
            codes = yield from self._decode(text, math.ceil(samples / codec.hop_length), take, request.sampling, report)
            pcm = yield from self._render(codes, samples, report)
            yield Clip(
                request_id=request.id,
                index=take.index,
                seed=take.seed,
                sample_rate=codec.sampling_rate,
                pcm=pcm,
            )

    def _encode(self, prompt: str, *, guided: bool) -> torch.Tensor:
        """The text's hidden states for the decoder, `[rows, tokens, hidden]`; guidance adds a row of zeros."""
        tokens = self._tokenizer(prompt, truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt").input_ids
        text = self.network.text_encoder(tokens.to(self._device)).last_hidden_state
        if hasattr(self.network, "enc_to_dec_proj"):
            text = self.network.enc_to_dec_proj(text)
        text = text.to(self.network.decoder.dtype)
        return torch.cat([text, torch.zeros_like(text)]) if guided else text

    def _decode(
        self, text: torch.Tensor, frames: int, take: Take, sampling: Sampling, report: Report
    ) -> Generator[Progress, None, torch.Tensor]:
        """Codes `[codebooks, frames]`. Codebook k of a channel is delayed by k steps, which are padding."""
        decoder, config = self.network.decoder, self.network.decoder.config
        rows, books = len(text), torch.arange(config.num_codebooks, device=self._device)
        delay = books // config.audio_channels
        steps = frames + config.num_codebooks // config.audio_channels - 1
        frame = torch.arange(steps, device=self._device)[:, None] - delay
        due = (frame >= 0) & (frame < frames)
        grid = torch.full((steps, config.num_codebooks), config.pad_token_id, device=self._device)
        latest = grid[0]
        sound = torch.tensor(True, device=self._device)
        cache = None
        for step in range(steps):
            output = decoder(latest.repeat(rows)[:, None], encoder_hidden_states=text, cache=cache, use_cache=True)
            cache = output.cache
            logits = output.logits.view(rows, config.num_codebooks, -1).float()
            if rows == 2:
                logits = logits[1:] + (logits[:1] - logits[1:]) * sampling.guidance_scale
            sound &= logits.isfinite().all()
            latest = grid[step] = grid[step].where(~due[step], draw(logits[0], sampling, take.seed, step))
            if (step + 1) % STEPS_PER_ADVANCE == 0 or step + 1 == steps:
                if not sound:
                    raise EngineError("The model's output is not finite; its weights may be damaged.", transient=True)
                yield report("decoding", DECODING_SHARE * (step + 1) / steps)
        return grid[torch.arange(frames, device=self._device) + delay[:, None], books[:, None]]

    def _render(
        self, codes: torch.Tensor, samples: int, report: Report
    ) -> Generator[Progress, None, NDArray[np.float32]]:
        """Audio `[channels, samples]`. The recurrent layer runs over the whole clip, the later layers over chunks."""
        codec, channels = self.network.audio_encoder, self.network.decoder.config.audio_channels
        frames, hop = codes.shape[1], codec.config.hop_length
        hidden = codec.quantizer.decode(torch.stack([codes[channel::channels] for channel in range(channels)], dim=1))
        widen, recur, *upsample = codec.decoder.layers
        hidden = recur(widen(hidden))
        pieces = []
        for start in range(0, frames, CHUNK_FRAMES):
            lead = min(start, CONTEXT_FRAMES)
            piece = hidden[..., start - lead : start + CHUNK_FRAMES + CONTEXT_FRAMES]
            for layer in upsample:
                piece = layer(piece)
            pieces.append(piece[:, 0, lead * hop : (lead + CHUNK_FRAMES) * hop].cpu())
            yield report("rendering", DECODING_SHARE + (1 - DECODING_SHARE) * min(1, (start + CHUNK_FRAMES) / frames))
        pcm = torch.cat(pieces, dim=1)[:, :samples].numpy()
        peak = np.abs(pcm).max()
        if not np.isfinite(peak):
            raise EngineError("The audio decoder's output is not finite; its weights may be damaged.", transient=True)
        return np.asarray(pcm / max(1.0, peak), np.float32)


def _read(folder: Path) -> tuple[Any, Any]:
    network: Any = MusicgenForConditionalGeneration
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


def draw(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> torch.Tensor:
    """One token per codebook, `[codebooks]`, from logits `[codebooks, tokens]`; temperature 0 takes the most likely."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    warm = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    return (keep(warm, sampling.top_k, sampling.top_p) + gumbel(logits, seed, position)).argmax(-1)


def keep(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Sets the logits of all tokens to -inf, except for those to sample from.

    These are the fewest of the `top_k` most likely tokens whose probabilities add up to `top_p`.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        chance = ordered.softmax(-1)
        surplus = chance.cumsum(-1) - chance >= top_p
        surplus[..., 0] = False
        logits = logits.masked_fill(torch.empty_like(surplus).scatter(-1, order, surplus), -torch.inf)
    return logits


def gumbel(like: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    """Gumbel noise `[codebooks, tokens]`: each number is a hash of its seed, position, codebook and token.

    So a seed gives the same draws in any batch.
    """
    tokens = torch.arange(like.numel(), device=like.device).view_as(like)
    bits = _mix(_mix(tokens) ^ _mix(_mix(torch.full_like(tokens, seed)) + position))
    # fp32 represents 23 bits plus one half exactly. With one more bit the largest would round to 1: infinite noise.
    uniform = ((bits >> 9).float() + 0.5) / 2**23
    return -torch.log(-torch.log(uniform))


def _mix(number: torch.Tensor) -> torch.Tensor:
    """A 32-bit hash (lowbias32 of C. Wellons' hash-prospector) in 64-bit integers."""
    number = number & MASK
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & MASK
    number = ((number ^ (number >> 15)) * 0x846CA68B) & MASK
    return number ^ (number >> 16)


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
