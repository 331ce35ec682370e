"""Trains nano's codec: an EnCodec of 16 kHz, 50 frames a second and 4 codebooks of 512.

`python -m workers.engines.musicgen.nano.codec FOLDER` resumes a run that was stopped, and writes `codec.safetensors`.
`--start` starts from the weights in such a file. With `--decoder-only` the encoder and the codebooks stay as they are,
so that a language model trained on their codes works with the new decoder.
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

from workers.engines.musicgen.nano.instruments import SAMPLE_RATE
from workers.engines.musicgen.nano.run import Run
from workers.engines.musicgen.nano.songs import compose, play
from workers.engines.musicgen.nano.spectra import pitch_classes, spectrum

NUM_CODEBOOKS: Final = 4
CODEBOOK_SIZE: Final = 512
CODEBOOK_DIM: Final = 128
STEPS: Final = 9_000
NUM_CLIPS: Final = 1500
BATCH_SIZE: Final = 12
LEARNING_RATE: Final = 1e-3
VALIDATION_FIRST_SEED: Final = 5_000_000
# At first the encoder and decoder train without quantisation.
UNQUANTISED_STEPS_SHARE: Final = 0.1
STFT_WINDOWS: Final = (128, 512, 2048)
LONG_STFT_WINDOW: Final = 4096
# The waveform loss teaches phases, and the spectral loss timbre: the weight falls to a fifth over the run.
WAVEFORM_LOSS_WEIGHT: Final = 20.0
CHROMA_LOSS_WEIGHT: Final = 30.0
COMMITMENT_LOSS_WEIGHT: Final = 0.25
EMA_DECAY: Final = 0.99
DEAD_CODE_THRESHOLD: Final = 0.02


def config() -> EncodecConfig:
    return EncodecConfig(
        # EncodecConfig derives the number of codebooks from this, at 10 bits each.
        target_bandwidths=[2.0],
        sampling_rate=SAMPLE_RATE,
        audio_channels=1,
        normalize=False,
        num_filters=16,
        hidden_size=CODEBOOK_DIM,
        codebook_dim=CODEBOOK_DIM,
        codebook_size=CODEBOOK_SIZE,
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
    """Residual vector quantisation with codebooks that follow the latents by exponential moving averages (EMA).

    `counts` and `sums` are the averages, for each code, of the number of its latents and of their sum. `ready` is false
    until the codebooks are initialised.
    """

    books: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    ready: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("books", torch.zeros(NUM_CODEBOOKS, CODEBOOK_SIZE, CODEBOOK_DIM))
        self.register_buffer("counts", torch.zeros(NUM_CODEBOOKS, CODEBOOK_SIZE))
        self.register_buffer("sums", torch.zeros(NUM_CODEBOOKS, CODEBOOK_SIZE, CODEBOOK_DIM))
        self.register_buffer("ready", torch.tensor(False))

    @torch.no_grad()
    def init_codebooks(self, latents: torch.Tensor) -> None:
        """Runs k-means on latents `[frames, CODEBOOK_DIM]`, for each codebook on the residual of the ones before."""
        residual = latents
        for index in range(NUM_CODEBOOKS):
            codebook = residual[torch.randperm(len(residual))[:CODEBOOK_SIZE]].clone()
            for _ in range(10):
                counts, sums = _cluster_sums(residual, nearest_codes(residual, codebook))
                spare = residual[torch.randint(len(residual), (CODEBOOK_SIZE,))]
                codebook = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], spare)
            self.books[index] = codebook
            self.counts[index] = len(residual) / CODEBOOK_SIZE * 0.05
            self.sums[index] = codebook * self.counts[index][:, None]
            residual = residual - codebook[nearest_codes(residual, codebook)]
        self.ready.fill_(True)

    @torch.no_grad()
    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes `[NUM_CODEBOOKS, frames]` of latents `[frames, CODEBOOK_DIM]`, and the quantised latents.

        In training this also updates the codebooks.
        """
        residual, all_codes = latents, []
        for index, codebook in enumerate(self.books):
            codes = nearest_codes(residual, codebook)
            quantised = codebook[codes]
            if self.training:
                self._update_codebook(index, residual, codes)
            all_codes.append(codes)
            residual = residual - quantised
        return torch.stack(all_codes), latents - residual

    def _update_codebook(self, index: int, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Moves the averages on; dead codes, which hardly any latent uses, restart from random latents."""
        counts, sums = _cluster_sums(latents, codes)
        self.counts[index].mul_(EMA_DECAY).add_(counts, alpha=1 - EMA_DECAY)
        self.sums[index].mul_(EMA_DECAY).add_(sums, alpha=1 - EMA_DECAY)
        dead = self.counts[index] < DEAD_CODE_THRESHOLD
        if num_dead := int(dead.sum()):
            replacements = latents[torch.randint(len(latents), (num_dead,))]
            self.counts[index][dead] = 10 * DEAD_CODE_THRESHOLD
            self.sums[index][dead] = replacements * 10 * DEAD_CODE_THRESHOLD
        self.books[index] = self.sums[index] / self.counts[index][:, None].clamp(min=1e-6)


def load(path: Path) -> tuple[Any, Quantiser]:
    """A trained codec, from its own safetensors file or from that of a whole checkpoint."""
    network: Any = EncodecModel(config())
    prefix, weights = "audio_encoder.", load_file(path)
    codec_weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    network.load_state_dict(codec_weights or weights)
    return network.eval(), quantiser_of(network)


def quantiser_of(network: Any) -> Quantiser:
    """The quantiser of a trained codec. The checkpoint has no averages: all codes start with a count of 1."""
    quantiser = Quantiser()
    quantiser.books.copy_(torch.stack([layer.codebook.embed for layer in network.quantizer.layers]).float())
    quantiser.counts.fill_(1.0)
    quantiser.sums.copy_(quantiser.books)
    quantiser.ready.fill_(True)
    return quantiser.eval()


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.cdist(latents, codebook).argmin(1)


def _cluster_sums(latents: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each code, the number of its latents and their sum."""
    counts = torch.bincount(codes, minlength=CODEBOOK_SIZE).float()
    return counts, torch.zeros(CODEBOOK_SIZE, latents.shape[1]).index_add_(0, codes, latents)


def encode(network: Any, audio: torch.Tensor) -> torch.Tensor:
    """Latents `[clips · frames, CODEBOOK_DIM]` of audio `[clips, samples]`."""
    hidden_states: torch.Tensor = network.encoder(audio[:, None])
    return hidden_states.float().transpose(1, 2).reshape(-1, CODEBOOK_DIM)


def encode_to_codes(network: Any, quantiser: Quantiser, audio: torch.Tensor) -> torch.Tensor:
    """The codes `[clips, NUM_CODEBOOKS, frames]` of audio `[clips, samples]`."""
    codes: torch.Tensor = quantiser(encode(network, audio))[0]
    return codes.view(NUM_CODEBOOKS, len(audio), -1).transpose(0, 1)


def decode(network: Any, latents: torch.Tensor, clips: int) -> torch.Tensor:
    """Audio `[clips, samples]` of latents `[clips · frames, CODEBOOK_DIM]`."""
    hidden_states = latents.view(clips, -1, CODEBOOK_DIM).transpose(1, 2)
    audio: torch.Tensor = network.decoder(hidden_states)
    return audio[:, 0].float()


def reconstruction_loss(
    decoded: torch.Tensor, target: torch.Tensor, waveform_weight: float, *, long: bool
) -> torch.Tensor:
    """Log-magnitude and spectral-convergence losses over several STFT windows, and the weighted waveform loss.

    `long` adds the longest window and the chroma loss.
    """
    loss = waveform_weight * functional.l1_loss(decoded, target)
    for window in (*STFT_WINDOWS, LONG_STFT_WINDOW) if long else STFT_WINDOWS:
        decoded_spectrum, target_spectrum = spectrum(decoded, window), spectrum(target, window)
        loss = loss + functional.l1_loss((decoded_spectrum + 1e-2).log(), (target_spectrum + 1e-2).log())
        loss = loss + (decoded_spectrum - target_spectrum).norm() / (target_spectrum.norm() + 1e-3)
    if long:
        loss = loss + CHROMA_LOSS_WEIGHT * (1 - (chroma(decoded) * chroma(target)).sum(1).mean())
    return loss


@torch.no_grad()
def measure(network: Any, quantiser: Quantiser, audio: torch.Tensor) -> dict[str, float]:
    """SI-SDR in dB, log-spectral distance (mean |Δ ln|, window 1024), chroma cosine, share of codes in use."""
    latents = encode(network, audio)
    codes, quantised = quantiser(latents) if quantiser.ready else (torch.zeros(NUM_CODEBOOKS, 0), latents)
    decoded = decode(network, quantised, len(audio))[:, : audio.shape[1]]
    scale = (decoded * audio).sum(1, keepdim=True) / audio.square().sum(1, keepdim=True)
    error = (decoded - scale * audio).square().sum(1)
    si_sdr = 10 * torch.log10((scale * audio).square().sum(1) / error)
    log_spectra = [(spectrum(sound, 1024) + 1e-2).log() for sound in (decoded, audio)]
    used = [len(codebook_codes.unique()) / CODEBOOK_SIZE for codebook_codes in codes]
    return {
        "si_sdr": float(si_sdr.mean()),
        "log_spectral_distance": float((log_spectra[0] - log_spectra[1]).abs().mean()),
        "chroma_cosine": float((chroma(decoded) * chroma(audio)).sum(1).mean()),
        "codes_used": sum(used) / len(used),
    }


def chroma(audio: torch.Tensor) -> torch.Tensor:
    """Energy by pitch class, unit vectors `[clips, 12, frames]` over windows of a quarter of a second."""
    energy = spectrum(audio, LONG_STFT_WINDOW).square()
    return functional.normalize(pitch_classes(energy, 80, 4000), dim=1)


def render_songs(first_seed: int, count: int) -> torch.Tensor:
    """Audio `[count, samples]` of the songs of successive seeds."""
    return torch.from_numpy(np.stack([play(compose(seed)) for seed in range(first_seed, first_seed + count)]))


def train(
    folder: Path,
    steps: int = STEPS,
    num_clips: int = NUM_CLIPS,
    init_from: Path | None = None,
    *,
    decoder_only: bool = False,
) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    network, quantiser = (EncodecModel(config()), Quantiser()) if init_from is None else load(init_from)
    network.train(), quantiser.train(not decoder_only)
    network.encoder.requires_grad_(not decoder_only)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=LEARNING_RATE, betas=(0.8, 0.99), weight_decay=1e-4)
    run = Run(folder, steps, network=network, quantiser=quantiser, optimiser=optimiser)
    clips, held_out = _cached_songs(folder / "songs.npy", num_clips), render_songs(VALIDATION_FIRST_SEED, 12)
    for step in run:
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(LEARNING_RATE)
        audio = _random_crops(clips)
        if step >= UNQUANTISED_STEPS_SHARE * steps and not quantiser.ready:
            with torch.no_grad():
                quantiser.init_codebooks(torch.cat([encode(network, _random_crops(clips)) for _ in range(40)]))
        with torch.autocast("cpu", torch.bfloat16):
            latents = encode(network, audio)
        commitment_loss = torch.zeros(())
        if quantiser.ready:
            _, quantised = quantiser(latents.detach())
            commitment_loss = functional.mse_loss(latents, quantised)
            # The straight-through estimator: gradients pass the quantiser unchanged.
            latents = latents + (quantised - latents).detach()
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decode(network, latents, BATCH_SIZE)
        waveform_weight = WAVEFORM_LOSS_WEIGHT * (1 - 0.8 * step / steps)
        loss = reconstruction_loss(decoded[:, :SAMPLE_RATE], audio, waveform_weight, long=step % 2 == 0)
        loss = loss + COMMITMENT_LOSS_WEIGHT * commitment_loss
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 5.0)
        optimiser.step()
        if step % 250 == 0:
            network.eval(), quantiser.eval()
            figures = measure(network, quantiser, held_out)
            network.train(), quantiser.train(not decoder_only)
            shown = {name: round(value, 3) for name, value in figures.items()}
            print(f"{time.strftime('%H:%M:%S')} step {step} loss {loss.item():.3f} validation {shown}", flush=True)
    network.eval(), quantiser.eval()
    for layer, codebook in zip(network.quantizer.layers, quantiser.books, strict=True):
        layer.codebook.embed.copy_(codebook)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "codec.safetensors")
    return measure(network, quantiser, render_songs(VALIDATION_FIRST_SEED, 60))


def _cached_songs(path: Path, count: int) -> torch.Tensor:
    """Audio `[count, samples]` from the file, which is made if it is not there."""
    if not path.exists():
        np.save(path, render_songs(0, count).half().numpy())
    return torch.from_numpy(np.load(path))


def _random_crops(clips: torch.Tensor) -> torch.Tensor:
    """Audio `[BATCH_SIZE, SAMPLE_RATE]`: a second of each of as many random clips."""
    chosen = torch.randint(len(clips), (BATCH_SIZE,)).tolist()
    starts = torch.randint(clips.shape[1] - SAMPLE_RATE, (BATCH_SIZE,)).tolist()
    return torch.stack([clips[c, s : s + SAMPLE_RATE] for c, s in zip(chosen, starts, strict=True)]).float()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", dest="init_from", type=Path)
    parser.add_argument("--decoder-only", action="store_true")
    print(train(**vars(parser.parse_args())))
