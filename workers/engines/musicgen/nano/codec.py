"""Trains nano's codec: an EnCodec of 16 kHz, 50 frames a second and 4 codebooks of 512.

`python -m workers.engines.musicgen.nano.codec FOLDER` goes on where it was stopped, and leaves `codec.safetensors`;
`--start` begins with the weights of such a file, and `--decoder-only` then leaves their codes as they are, so that what
has learnt them can take the new decoder.
"""

import argparse
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import EncodecConfig, EncodecModel

from workers.engines.musicgen.nano.instruments import RATE
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import compose, play
from workers.engines.musicgen.nano.spectra import pitch_classes, spectrum

BOOKS: Final = 4
CODES: Final = 512
WIDTH: Final = 128
STEPS: Final = 9_000
CLIPS: Final = 1500
BATCH: Final = 12
HELD_OUT: Final = 5_000_000
CONTINUOUS_SHARE: Final = 0.1
WINDOWS: Final = (128, 512, 2048)
LONG_WINDOW: Final = 4096
PITCHES: Final = 30.0
DECAY: Final = 0.99
DEAD: Final = 0.02
# Of the waveform against the spectra: at first, for the phases; it falls to a fifth, for the timbre.
WAVEFORM: Final = 20.0


def config() -> EncodecConfig:
    return EncodecConfig(
        # The classes derive the number of codebooks from this, at 10 bits each.
        target_bandwidths=[2.0],
        sampling_rate=RATE,
        audio_channels=1,
        normalize=False,
        num_filters=16,
        hidden_size=WIDTH,
        codebook_dim=WIDTH,
        codebook_size=CODES,
        num_residual_layers=1,
        num_lstm_layers=1,
        upsampling_ratios=[4, 4, 4, 5],
        use_causal_conv=False,
        norm_type="weight_norm",
        kernel_size=7,
        last_kernel_size=7,
        residual_kernel_size=3,
        dilation_growth_rate=2,
        compress=2,
        pad_mode="constant",
        trim_right_ratio=1.0,
    )


class Quantiser(torch.nn.Module):
    """Residual vector quantisation, learnt by moving averages; codes that fall out of use start again elsewhere."""

    books: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    ready: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("books", torch.zeros(BOOKS, CODES, WIDTH))
        self.register_buffer("counts", torch.zeros(BOOKS, CODES))
        self.register_buffer("sums", torch.zeros(BOOKS, CODES, WIDTH))
        self.register_buffer("ready", torch.tensor(False))

    @torch.no_grad()
    def start(self, latents: torch.Tensor) -> None:
        """k-means on latents `[frames, WIDTH]`, book after book on what the last one left."""
        rest = latents
        for book in range(BOOKS):
            centres = rest[torch.randperm(len(rest))[:CODES]].clone()
            for _ in range(10):
                count, total = _gather(rest, nearest(rest, centres))
                spare = rest[torch.randint(len(rest), (CODES,))]
                centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], spare)
            self.books[book] = centres
            self.counts[book] = len(rest) / CODES * 0.05
            self.sums[book] = centres * self.counts[book][:, None]
            rest = rest - centres[nearest(rest, centres)]
        self.ready.fill_(True)

    @torch.no_grad()
    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes `[books, frames]` of latents `[frames, WIDTH]`, and what they stand for, as the latents are.

        In training the books follow the latents.
        """
        rest, found = latents, []
        for number, book in enumerate(self.books):
            codes = nearest(rest, book)
            picked = book[codes]
            if self.training:
                self._follow(number, rest, codes)
            found.append(codes)
            rest = rest - picked
        return torch.stack(found), latents - rest

    def _follow(self, book: int, latents: torch.Tensor, codes: torch.Tensor) -> None:
        count, total = _gather(latents, codes)
        self.counts[book].mul_(DECAY).add_(count, alpha=1 - DECAY)
        self.sums[book].mul_(DECAY).add_(total, alpha=1 - DECAY)
        dead = self.counts[book] < DEAD
        if births := int(dead.sum()):
            fresh = latents[torch.randint(len(latents), (births,))]
            self.counts[book][dead] = 10 * DEAD
            self.sums[book][dead] = fresh * 10 * DEAD
        self.books[book] = self.sums[book] / self.counts[book][:, None].clamp(min=1e-6)


def load(path: Path) -> tuple[Any, Quantiser]:
    """A trained codec from its safetensors file, or from that of a checkpoint with a codec in it."""
    network: Any = EncodecModel(config())
    prefix, weights = "audio_encoder.", load_file(path)
    within = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    network.load_state_dict(within or weights)
    return network.eval(), quantiser_of(network)


def quantiser_of(network: Any) -> Quantiser:
    """The quantiser of a trained codec."""
    quantiser = Quantiser()
    quantiser.books.copy_(torch.stack([layer.codebook.embed for layer in network.quantizer.layers]).float())
    # As if every code had been used alike.
    quantiser.counts.fill_(1.0)
    quantiser.sums.copy_(quantiser.books)
    quantiser.ready.fill_(True)
    return quantiser.eval()


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points, centres).argmin(1)


def _gather(points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.bincount(codes, minlength=CODES).float()
    return count, torch.zeros(CODES, points.shape[1]).index_add_(0, codes, points)


def encode(network: Any, audio: torch.Tensor) -> torch.Tensor:
    """Latents `[clips · frames, WIDTH]` of audio `[clips, samples]`."""
    hidden: torch.Tensor = network.encoder(audio[:, None])
    return hidden.float().transpose(1, 2).reshape(-1, WIDTH)


def codes_of(network: Any, quantiser: Quantiser, audio: torch.Tensor) -> torch.Tensor:
    """The codes `[clips, BOOKS, frames]` of audio `[clips, samples]`."""
    codes: torch.Tensor = quantiser(encode(network, audio))[0]
    return codes.view(BOOKS, len(audio), -1).transpose(0, 1)


def decode(network: Any, latents: torch.Tensor, clips: int) -> torch.Tensor:
    """Audio `[clips, samples]`."""
    hidden = latents.view(clips, -1, WIDTH).transpose(1, 2)
    sound: torch.Tensor = network.decoder(hidden)
    return sound[:, 0].float()


def distance(made: torch.Tensor, wanted: torch.Tensor, waveform: float, *, long: bool) -> torch.Tensor:
    """Log magnitudes and spectral convergence over several resolutions, and the waveform itself with that weight.

    When `long`, one more resolution, and the pitch classes.
    """
    loss = waveform * functional.l1_loss(made, wanted)
    for window in (*WINDOWS, LONG_WINDOW) if long else WINDOWS:
        ours, theirs = spectrum(made, window), spectrum(wanted, window)
        loss = loss + functional.l1_loss((ours + 1e-2).log(), (theirs + 1e-2).log())
        loss = loss + (ours - theirs).norm() / (theirs.norm() + 1e-3)
    if long:
        loss = loss + PITCHES * (1 - (chroma(made) * chroma(wanted)).sum(1).mean())
    return loss


@torch.no_grad()
def measure(network: Any, quantiser: Quantiser, audio: torch.Tensor) -> dict[str, float]:
    """SI-SDR in dB, log-spectral distance (mean |Δ ln|, window 1024), chroma cosine, share of codes in use."""
    latents = encode(network, audio)
    codes, quantised = quantiser(latents) if quantiser.ready else (torch.zeros(BOOKS, 0), latents)
    made = decode(network, quantised, len(audio))[:, : audio.shape[1]]
    scale = (made * audio).sum(1, keepdim=True) / audio.square().sum(1, keepdim=True)
    error = (made - scale * audio).square().sum(1)
    sdr = 10 * torch.log10((scale * audio).square().sum(1) / error)
    logs = [(spectrum(sound, 1024) + 1e-2).log() for sound in (made, audio)]
    used = [len(book.unique()) / CODES for book in codes]
    return {
        "si_sdr": float(sdr.mean()),
        "log_spectral_distance": float((logs[0] - logs[1]).abs().mean()),
        "chroma_cosine": float((chroma(made) * chroma(audio)).sum(1).mean()),
        "codes_used": sum(used) / len(used),
    }


def chroma(audio: torch.Tensor) -> torch.Tensor:
    """Energy by pitch class, unit vectors `[clips, 12, frames]` over windows of a quarter of a second."""
    energy = spectrum(audio, LONG_WINDOW).square()
    return functional.normalize(pitch_classes(energy, 80, 4000), dim=1)


def songs(first: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([play(compose(seed)) for seed in range(first, first + count)]))


def train(
    folder: Path, steps: int = STEPS, clips: int = CLIPS, start: Path | None = None, *, decoder_only: bool = False
) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    network, quantiser = (EncodecModel(config()), Quantiser()) if start is None else load(start)
    network.train(), quantiser.train(not decoder_only)
    network.encoder.requires_grad_(not decoder_only)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-3, betas=(0.8, 0.99), weight_decay=1e-4)
    run = Run(folder, steps, network=network, quantiser=quantiser, optimiser=optimiser)
    heard, held_out = _heard(folder / "songs.npy", clips), songs(HELD_OUT, 12)
    for step in run:
        for group in optimiser.param_groups:
            group["lr"] = run.rate(1e-3)
        audio = _pieces(heard)
        if step >= CONTINUOUS_SHARE * steps and not quantiser.ready:
            with torch.no_grad():
                quantiser.start(torch.cat([encode(network, _pieces(heard)) for _ in range(40)]))
        with torch.autocast("cpu", torch.bfloat16):
            latents = encode(network, audio)
        commitment = torch.zeros(())
        if quantiser.ready:
            _, quantised = quantiser(latents.detach())
            commitment = functional.mse_loss(latents, quantised)
            latents = latents + (quantised - latents).detach()
        with torch.autocast("cpu", torch.bfloat16):
            made = decode(network, latents, BATCH)
        waveform = WAVEFORM * (1 - 0.8 * step / steps)
        loss = distance(made[:, :RATE], audio, waveform, long=step % 2 == 0) + 0.25 * commitment
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 5.0)
        optimiser.step()
        if step % 250 == 0:
            network.eval(), quantiser.eval()
            figures = measure(network, quantiser, held_out)
            network.train(), quantiser.train(not decoder_only)
            shown = {name: round(value, 3) for name, value in figures.items()}
            print(f"{time.strftime('%H:%M:%S')} step {step} loss {loss.item():.3f} {shown}", flush=True)
    network.eval(), quantiser.eval()
    for layer, book in zip(network.quantizer.layers, quantiser.books, strict=True):
        layer.codebook.embed.copy_(book)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "codec.safetensors")
    return measure(network, quantiser, songs(HELD_OUT, 60))


def _heard(path: Path, clips: int) -> torch.Tensor:
    if not path.exists():
        np.save(path, songs(0, clips).half().numpy())
    return torch.from_numpy(np.load(path))


def _pieces(heard: torch.Tensor) -> torch.Tensor:
    """A second each of BATCH clips."""
    clip = torch.randint(len(heard), (BATCH,)).tolist()
    start = torch.randint(heard.shape[1] - RATE, (BATCH,)).tolist()
    return torch.stack([heard[c, s : s + RATE] for c, s in zip(clip, start, strict=True)]).float()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--decoder-only", action="store_true")
    print(train(**vars(parser.parse_args())))
