"""Tiny pipelines of diffusers, of the real classes: they make noise, by every step of a large one."""

import io
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
import transformers

from tests.conditions import eventually_sync
from tests.local.conftest import Running
from tests.local.engine import updates
from workers.engine import Clip, Engine, EngineRequest, Failure, Take
from workers.engines import noise

RATE: Final = 4000

library: Final[Any] = transformers


def _seeded(build: Callable[[Any], Any]) -> Callable[[], Any]:
    @wraps(build)
    def seeded() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            pipeline = build(import_module("diffusers"))
            for part in pipeline.components.values():
                if isinstance(part, torch.nn.Module):
                    _waken(part.eval())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return seeded


def _waken(network: torch.nn.Module) -> None:
    """Weights that a training would begin with at zero shut out what comes through them."""
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.3)


def _tokenizer(longest: int) -> Any:
    tokenizer: Any = noise._tokenizer()
    tokenizer.model_max_length = longest
    return tokenizer


def _codec(diffusers: Any, channels: int) -> Any:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[2, 4, 10],
        channel_multiples=[1, 2, 2],
        decoder_channels=6,
        decoder_input_channels=channels,
        audio_channels=2,
        sampling_rate=RATE,
    )


@_seeded
def stable_audio(diffusers: Any) -> Any:
    """Stable Audio Open, of 4 kHz in stereo and up to 3 s."""
    parts = import_module("diffusers.pipelines.stable_audio")
    tokenizer = _tokenizer(32)
    return diffusers.StableAudioPipeline(
        vae=_codec(diffusers, 4),
        text_encoder=library.T5EncoderModel(
            library.T5Config(
                vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
            )
        ),
        projection_model=parts.StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=32
        ),
        tokenizer=tokenizer,
        transformer=diffusers.StableAudioDiTModel(
            sample_size=150,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            out_channels=4,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        ),
        scheduler=diffusers.CosineDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, solver_order=2, prediction_type="v_prediction", sigma_schedule="exponential"
        ),
    )


@_seeded
def ace_step(diffusers: Any) -> Any:
    """ACE-Step 1.5, the model that has guidance, of 4 kHz in stereo."""
    parts = import_module("diffusers.pipelines.ace_step")
    tokenizer = _tokenizer(4096)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 8,
    }
    return diffusers.AceStepPipeline(
        vae=_codec(diffusers, 8),
        text_encoder=library.Qwen3Model(
            library.Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer,
        transformer=diffusers.AceStepTransformer1DModel(
            num_hidden_layers=1, in_channels=24, audio_acoustic_hidden_dim=8, **sizes
        ),
        condition_encoder=parts.AceStepConditionEncoder(
            text_hidden_dim=16,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            **sizes,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


@_seeded
def stable_audio_3(diffusers: Any) -> Any:
    """Stable Audio 3, the distilled model, of 4 kHz in stereo and up to 384 s."""
    parts = import_module("diffusers.pipelines.stable_audio_3")
    tokenizer = _tokenizer(32)
    words = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
    }
    return diffusers.StableAudio3Pipeline(
        vae=diffusers.AutoencoderSAME(
            patch_size=16,
            encoder_channels=8,
            encoder_c_mults=[2],
            encoder_strides=[4],
            encoder_transformer_depths=[1],
            latent_dim=8,
            dim_heads=8,
            ff_mult=2,
            sampling_rate=RATE,
        ),
        text_encoder=library.T5GemmaEncoderModel(
            library.T5GemmaConfig(
                encoder=library.T5GemmaModuleConfig(**words),
                decoder=library.T5GemmaModuleConfig(**words),
                is_encoder_decoder=False,
                vocab_size=len(tokenizer),
            )
        ),
        tokenizer=tokenizer,
        duration_embedder=parts.StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8),
        transformer=diffusers.StableAudio3DiTModel(
            io_channels=8,
            embed_dim=16,
            depth=1,
            num_heads=2,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=9,
            timestep_features_dim=8,
            ff_mult=2.0,
            num_memory_tokens=2,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    )


@_seeded
def riffusion(diffusers: Any) -> Any:
    """Stable Diffusion as Riffusion has it, with pictures of 512 by 512."""
    tokenizer = _tokenizer(77)
    shapes = {"layers_per_block": 1, "norm_num_groups": 2}
    return diffusers.StableDiffusionImg2ImgPipeline(
        vae=diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[4, 4, 4, 4],
            **shapes,
        ),
        text_encoder=library.CLIPTextModel(
            library.CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=0,
                eos_token_id=1,
            )
        ),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=64,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=[4, 8],
            cross_attention_dim=16,
            attention_head_dim=2,
            **shapes,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def saved(pipeline: Any, folder: Path) -> Path:
    """As a folder of a checkpoint."""
    pipeline.save_pretrained(folder)
    return folder


def pipeline(folder: Path) -> Any:
    """Read as the library does it. Weights that were made and not read stand at other addresses, and some processors
    then add up in another order.
    """
    found: Any = import_module("diffusers").DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def request(*seeds: int, **fields: Any) -> EngineRequest:
    """Of one second, unless told otherwise."""
    takes = [Take(index, seed) for index, seed in enumerate(seeds or (0,))]
    return EngineRequest(id="r", takes=takes, **{"prompt": "slow dub", "duration": 1.0, **fields})


def sing(engine: Engine, request: EngineRequest) -> list[Any]:
    seen = list(updates(engine, request))
    assert not isinstance(seen[-1], Failure), seen[-1].error
    return [update.pcm for update in seen if isinstance(update, Clip)]


def leveled(audio: Any) -> Any:
    return audio / max(1.0, np.abs(audio).max())


def heard(folder: Path, data: Path, **body: Any) -> dict[str, int]:
    """What a studio of its own makes with the checkpoint, of one request."""
    studio = Running(data / "data", TEXT2SONG_MODEL=str(folder))
    try:
        studio.wait_until_ready()
        answer = studio.http.post("/generate", json={"prompt": "slow dub", "seed": 5, **body})
        assert answer.status_code == 202, answer.text
        job = f"/jobs/{answer.json()['job_id']}"
        eventually_sync(lambda: studio.http.get(job).json()["status"] in {"completed", "failed"})
        done = studio.http.get(job).json()
        assert done["status"] == "completed", done
        [sample] = done["sample_ids"]
        flac = studio.http.get(f"/audio/{sample}/stream", params={"format": "flac"}).content
    finally:
        assert studio.stop() == 0, studio.errors()
    assert "Warning" not in studio.errors()
    sound = soundfile.info(io.BytesIO(flac))
    return {"sample_rate": sound.samplerate, "channels": sound.channels, "frames": sound.frames}
