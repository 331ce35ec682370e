"""EnCodec's encoder in pieces: the codes of audio that a clip begins with."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from workers.engine import EngineError, Opening

CHUNK: Final = 250
# The recurrent layer hears for a second what comes before a chunk.
CONTEXT: Final = 50
# A master may fade out over so many seconds; the frames that do are made anew.
FADE_SECONDS: Final = 0.005


def check(opening: Opening, duration: float, network: Any) -> None:
    """Raises EngineError for an opening that no clip of this duration can have."""
    codec, channels = network.audio_encoder.config, network.decoder.config.audio_channels
    if opening.pcm.ndim != 2 or len(opening.pcm) != channels or not np.isfinite(opening.pcm).all():
        raise EngineError(f"The audio to continue must be {channels} channel(s) of finite numbers.")
    if not 0 < opening.kept <= opening.pcm.shape[1] or opening.kept >= duration * codec.sampling_rate:
        kept = opening.kept / codec.sampling_rate
        raise EngineError(f"{kept:g} s of audio cannot be continued to a clip of {duration:g} s.")


def heard(opening: Opening, network: Any) -> Iterator[torch.Tensor]:
    """The codes of what is kept, `[codebooks, frames]`, some seconds at a time."""
    codec, decoder = network.audio_encoder, network.decoder.config
    hop, channels = codec.config.hop_length, decoder.audio_channels
    frames = max(0, opening.kept - round(FADE_SECONDS * codec.config.sampling_rate)) // hop
    first = opening.pcm.shape[1] - opening.kept
    for start in range(0, max(1, frames), CHUNK):
        end = min(start + CHUNK, frames)
        lead = min(CONTEXT, start + first // hop)
        part = opening.pcm[:, first + (start - lead) * hop : first + (end + CONTEXT) * hop]
        sound = torch.from_numpy(part).to(codec.device, codec.dtype)[:, None]
        codes = codec.quantizer.encode(codec.encoder(sound), codec.config.target_bandwidths[-1])
        # [codebooks, channels, frames]: the channels' codebooks take turns.
        codes = codes[: decoder.num_codebooks // channels, :, lead : lead + end - start]
        yield codes.flatten(0, 1)
