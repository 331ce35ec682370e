"""EnCodec's decoder in pieces: audio of the first seconds while later ones are still being decoded."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from workers.engine import EngineError

CHUNK: Final = 250
CONTEXT: Final = 25


class Rendering:
    """The audio of one take. The recurrent layer goes on where it stopped; the other layers hear CONTEXT frames around
    each chunk, beyond which they are deaf. So the pieces fit together, and memory does not grow but by the audio.
    """

    def __init__(self, network: Any, channels: int, frames: int, samples: int) -> None:
        """`network` is an EncodecModel; each channel has the codebooks whose number leaves its own when divided."""
        self._network = network
        self._channels = channels
        self.frames = frames
        self._hop = network.config.hop_length
        self.pcm: NDArray[np.float32] = np.zeros((channels, samples), np.float32)
        self._done = 0
        self._state: Any = None
        # Hidden frames from `_start` on, which end at `_heard`.
        self._hidden: torch.Tensor | None = None
        self._start = self._heard = 0

    @property
    def share(self) -> float:
        return self._done / self.frames

    @property
    def is_done(self) -> bool:
        return self._done >= self.frames

    @property
    def kept_from(self) -> int:
        """Codes of earlier frames are not needed any more."""
        return max(0, self._heard - CONTEXT)

    @property
    def needs(self) -> int:
        """How many frames of codes the next piece needs, from the beginning."""
        return min(self.frames, self._done + CHUNK + 2 * CONTEXT)

    def render(self, codes: torch.Tensor) -> None:
        """Makes the next piece. `codes` are `[codebooks, frames]` from `kept_from` to `needs`. Raises EngineError for
        numbers that are not finite. After an error, which may be for want of memory, the piece can be made again.
        """
        hidden, heard, state = self._hear(codes)
        end = min(self._done + CHUNK, self.frames)
        first = max(0, self._done - CONTEXT)
        piece = hidden[..., first - self._start : end + CONTEXT - self._start]
        for layer in self._network.decoder.layers[2:]:
            piece = layer(piece)
        lead, length = (self._done - first) * self._hop, (end - self._done) * self._hop
        sound = piece[:, 0, lead : lead + length].float().cpu().numpy()
        if not np.isfinite(sound).all():
            error = "The audio decoder's output is not finite; its weights may be damaged."
            raise EngineError(error, transient=True)
        start = self._done * self._hop
        place = self.pcm[:, start : start + length]
        place[:] = sound[:, : place.shape[1]]
        self._done, self._heard, self._state = end, heard, state
        keep = max(0, end - CONTEXT)
        self._hidden, self._start = hidden[..., keep - self._start :], keep

    def _hear(self, codes: torch.Tensor) -> tuple[torch.Tensor, int, Any]:
        """Takes the frames up to CONTEXT behind the piece through the first two layers. Their outcome, where it ends,
        and the state of the recurrent layer there.
        """
        end = min(self._done + CHUNK + CONTEXT, self.frames)
        if self._hidden is not None and end <= self._heard:
            return self._hidden, self._heard, self._state
        first = self.kept_from
        channels = torch.stack([codes[channel :: self._channels] for channel in range(self._channels)], dim=1)
        widen, recur = self._network.decoder.layers[:2]
        wide = widen(self._network.quantizer.decode(channels))[..., self._heard - first : end - first]
        flow = wide.permute(2, 0, 1)
        out, state = recur.lstm(flow, self._state)
        heard = (out + flow).permute(1, 2, 0)
        return heard if self._hidden is None else torch.cat([self._hidden, heard], dim=-1), end, state

    def finished(self) -> NDArray[np.float32]:
        """Within full scale."""
        peak = np.abs(self.pcm).max()
        if peak > 1:
            self.pcm /= peak
        return self.pcm
