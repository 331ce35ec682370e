"""The base model in training: its decoder with a LoRA, what it says of the next codes, and its codec."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers.utils import logging as library

from domain.lora import MODULES
from domain.models import Model
from workers.engines import noise
from workers.engines.checkpoints import Checkpoint
from workers.engines.musicgen.engine import read
from workers.engines.reading import PROMPT_TOKENS
from workers.training.errors import TrainingError
from workers.training.labels import inputs, labels, of_frames

NAME: Final = "default"


class Network:
    """A MusicGen whose weights are frozen, but for those of a LoRA. `device` is a torch device's name."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", *, channels: int | None = None) -> None:
        """`channels` is of the noise model alone. Raises TrainingError for a model that cannot be loaded."""
        library.set_verbosity_error()  # type: ignore[no-untyped-call]
        self.model: Model = checkpoint.model
        self.device = torch.device(device)
        if self.model.family != "musicgen":
            raise TrainingError(f"{self.model.id} cannot be trained here; a model of the family musicgen can.")
        try:
            built = noise.build(channels=channels or 1) if checkpoint.folder is None else read(checkpoint.folder)
            whole: Any = built[0]
            self._tokenizer: Any = built[1]
            whole.to(self.device)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise TrainingError(f"Model {checkpoint.model.id} cannot be loaded: {said}.", transient=True) from error
        if hasattr(whole.config, "chroma_length"):
            # Its decoder reads text and melody in front of the codes, which the losses know nothing of.
            raise TrainingError(f"{self.model.id} follows melodies and cannot be trained; another MusicGen can.")
        whole.requires_grad_(False)
        whole.eval()
        self._whole = whole
        self.codec: Any = whole.audio_encoder
        self.decoder: Any = whole.decoder
        config = whole.decoder.config
        self.books: int = config.num_codebooks
        self.channels: int = config.audio_channels
        self.pad: int = config.pad_token_id
        self.sample_rate: int = whole.audio_encoder.config.sampling_rate
        self.hop: int = whole.audio_encoder.config.hop_length
        self.longest_frames = round(checkpoint.model.max_duration * self.sample_rate / self.hop)

    def adapt(self, rank: int, alpha: float, seed: int, *, checkpointing: bool = False) -> None:
        """Adds a LoRA, which changes nothing before it is trained. `checkpointing` saves memory for time."""
        options = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=[*MODULES])  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = get_peft_model(self.decoder, options, revision=self.model.revision)
        if checkpointing:
            self.decoder.enable_input_require_grads()
            self.decoder.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.decoder.parameters() if parameter.requires_grad]

    @property
    def lora(self) -> dict[str, torch.Tensor]:
        """The LoRA's weights by PEFT's names."""
        state: dict[str, torch.Tensor] = get_peft_model_state_dict(self.decoder, save_embedding_layers=False)
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    @lora.setter
    def lora(self, weights: dict[str, torch.Tensor]) -> None:
        set_peft_model_state_dict(self.decoder, weights)

    def save(self, folder: Path) -> None:
        """As PEFT does, and names the base model and its revision."""
        config = self.decoder.peft_config[NAME]
        config.base_model_name_or_path, config.revision = self.model.id, self.model.revision
        # Or else PEFT asks the hub whether embeddings were changed.
        self.decoder.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], kept: Sequence[bool] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of the prompts, `[clips, tokens, width]`, and their mask `[clips, tokens]`.

        Of a prompt that is not `kept` the mask is zero, as guidance has it of the empty prompt.
        """
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt"
        ).to(self.device)
        states = self._whole.text_encoder(**tokens).last_hidden_state
        if hasattr(self._whole, "enc_to_dec_proj"):
            states = self._whole.enc_to_dec_proj(states)
        mask = tokens.attention_mask
        if kept is not None:
            mask = mask * torch.tensor(kept, device=self.device)[:, None]
        return states * mask[..., None], mask

    def logits(self, codes: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the decoder says of each code before it is heard, `[clips, books, frames, codes]`, of codes
        `[clips, books, frames]`.
        """
        clips, books, frames = codes.shape
        expected = labels(codes, self.channels)
        half = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        with half:
            out = self.decoder(
                input_ids=inputs(expected, self.pad),
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return of_frames(out.float().view(clips, books, expected.shape[2], -1), frames, self.channels)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Without the LoRA and without gradients."""
        with torch.no_grad(), self.decoder.disable_adapter():
            yield

    @torch.no_grad()
    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """Codes `[books, frames]` of audio `[channels, samples]`; left and right take turns."""
        coded = [self.codec.encode(channel[None, None].to(self.device)).audio_codes[0, 0] for channel in pcm]
        return torch.stack(coded, dim=1).flatten(0, 1).cpu()

    @property
    def codebooks(self) -> torch.Tensor:
        """`[books, codes, latent]`."""
        layers = self.codec.quantizer.layers[: self.books // self.channels]
        one = torch.stack([layer.codebook.embed for layer in layers]).float()
        return one.repeat_interleave(self.channels, dim=0)

    def latents(self, codes: torch.Tensor) -> torch.Tensor:
        """`[clips, channels, latent, frames]` of codes `[clips, books, frames]`."""
        found = [
            self.codec.quantizer.decode(codes[:, channel :: self.channels].transpose(0, 1))
            for channel in range(self.channels)
        ]
        return torch.stack(found, dim=1)

    def sound(self, latents: torch.Tensor) -> torch.Tensor:
        """Audio `[clips, channels, samples]` of latents; it can be derived by them."""
        clips = latents.shape[0]
        sound: torch.Tensor = self.codec.decoder(latents.flatten(0, 1))
        return sound.view(clips, self.channels, -1)
