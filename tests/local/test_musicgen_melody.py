"""MusicGen's melody variants, whose decoder reads text and melody before the codes."""

import copy
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from transformers import MusicgenMelodyConfig, MusicgenMelodyDecoderConfig, MusicgenMelodyForConditionalGeneration

from domain.events.jobs import Sampling
from domain.models import NOISE
from tests.local.adapters import fill
from workers import chroma
from workers.engine import Adapter, Clip, EngineError, EngineRequest, Failure, Opening, Take
from workers.engines import noise
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.listening import heard
from workers.training.errors import TrainingError
from workers.training.network import Network

pytestmark = pytest.mark.usefixtures("one_thread")

CPU: Final = torch.device("cpu")
PROMPTS: Final = ("slow dub techno with a warm bass", "a piano", "brass")
GREEDY: Final = Sampling(temperature=0.0)
SCALE: Final = (0, 2, 4, 5, 7, 9, 11, 0, 0, 11, 9, 7, 5, 4, 2)


def melody(channels: int = 1, chroma: int = 70) -> tuple[Any, Any]:
    """A tiny one with random weights; by default its lead takes more than one piece to read."""
    plain, tokenizer = noise.build(channels=channels)
    config: Any = plain.config
    decoder = {name: getattr(config.decoder, name) for name in ("vocab_size", "hidden_size", "ffn_dim")}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        network: Any = MusicgenMelodyForConditionalGeneration(
            MusicgenMelodyConfig(
                text_encoder=config.text_encoder,
                audio_encoder=config.audio_encoder,
                decoder=MusicgenMelodyDecoderConfig(
                    **decoder,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_codebooks=4 * channels,
                    audio_channels=channels,
                    pad_token_id=noise.CODES,
                    bos_token_id=noise.CODES,
                    dropout=0.0,
                ),
                chroma_length=chroma,
                num_chroma=12,
            )
        )
        network.audio_encoder.load_state_dict(plain.audio_encoder.state_dict())
        for head in network.decoder.lm_heads:
            head.weight.mul_(20)
        network.audio_enc_to_dec_proj.weight.mul_(20)
    network.generation_config.update(
        pad_token_id=noise.CODES, bos_token_id=noise.CODES, decoder_start_token_id=noise.CODES
    )
    return network.eval(), tokenizer


def asked(ident: str, *seeds: int, duration: float = 1.0, sampling: Sampling = GREEDY, **rest: Any) -> EngineRequest:
    takes = [Take(index, seed) for index, seed in enumerate(seeds or (0,))]
    prompt = PROMPTS[sum(map(ord, ident)) % 3]
    return EngineRequest(id=ident, prompt=prompt, duration=duration, takes=takes, sampling=sampling, **rest)


def sing(engine: MusicgenEngine, *requests: EngineRequest) -> dict[tuple[str, int], Any]:
    for request in requests:
        engine.admit(request)
    made: dict[tuple[str, int], Any] = {}
    while len(made) < sum(len(request.takes) for request in requests):
        for update in engine.advance():
            assert not isinstance(update, Failure), update.error
            if isinstance(update, Clip):
                made[update.request_id, update.index] = update.pcm
    return made


def generated(network: Any, tokenizer: Any, request: EngineRequest, codes: Any = None) -> Any:
    frames = math.ceil(request.duration * 50)
    options: dict[str, Any] = {} if codes is None else {"decoder_input_ids": codes}
    if request.melody:
        options["input_features"] = F.one_hot(torch.tensor([request.melody]), chroma.TONES).float()
    with torch.inference_mode():
        audio = network.generate(
            **tokenizer(request.prompt, return_tensors="pt"),
            **options,
            do_sample=False,
            guidance_scale=request.sampling.guidance_scale,
            max_new_tokens=frames + 3 - (0 if codes is None else codes.shape[1]),
        )[0].numpy()
    return audio / max(1.0, np.abs(audio).max())


@pytest.mark.parametrize("channels", [1, 2])
def test_greedy_takes_of_mixed_lengths_and_guidance_are_those_of_generate(channels: int) -> None:
    network, tokenizer = melody(channels)
    model = replace(NOISE, channels=channels)
    told: tuple[tuple[float, float, tuple[int, ...]], ...] = (
        *((1.0, 3.0, ()), (0.5, 1.0, ()), (1.4, 2.0, ())),
        *((1.0, 3.0, SCALE), (0.7, 1.0, SCALE[:5]), (0.6, 2.0, SCALE * 6)),
    )
    requests = [
        asked(f"{number}", duration=duration, sampling=replace(GREEDY, guidance_scale=guidance), melody=tones)
        for number, (duration, guidance, tones) in enumerate(told)
    ]
    made = sing(MusicgenEngine(copy.deepcopy(network), tokenizer, model, CPU, 3), *requests)
    for request in requests:
        pcm, expected = made[request.id, 0], generated(network, tokenizer, request)
        assert np.abs(pcm - expected[:, : pcm.shape[1]]).max() < 1e-5
    assert len({pcm.tobytes() for pcm in made.values()}) == 6


def test_a_melody_changes_what_is_made_and_each_window_hears_its_own_part_of_it() -> None:
    network, tokenizer = melody()
    engine = MusicgenEngine(network, tokenizer, replace(NOISE, max_duration=2.0), CPU, 2)
    low, high = (0,) * 70, (7,) * 70
    plain, sung, other = (
        sing(engine, asked("a", duration=3.6, melody=tones))["a", 0] for tones in (low, high, (*high[:10], *low[:60]))
    )
    # No melody is that of the first tone, but for the null half, which both have.
    assert np.array_equal(plain, sing(engine, asked("a", duration=3.6))["a", 0])
    assert np.abs(plain - sung).max() > 0.01
    assert np.abs(sung - other).max() > 0.01
    # Of a second window, which begins at 1.2 s, the melody goes on where it is then: at its tenth moment.
    texts, text = engine._texts, engine._texts.encoded("x")
    whole, later = texts.lead(text, SCALE * 3, 0.0), texts.lead(text, SCALE * 3, 1.2)
    assert whole is not None
    assert later is not None
    assert torch.equal(later[0, :60], whole[0, 9:69])
    assert torch.equal(later[1], whole[1])


def test_a_model_that_follows_no_melody_says_so() -> None:
    engine = MusicgenEngine(*noise.build(), NOISE, CPU, 1)
    with pytest.raises(EngineError, match="wiring-noise follows no melody"):
        engine.admit(asked("a", melody=SCALE))


def test_a_seed_gives_the_same_audio_alone_and_in_company() -> None:
    network, tokenizer = melody()
    engine = MusicgenEngine(network, tokenizer, replace(NOISE, max_duration=2.0), CPU, 3)
    # The third is longer than a window, and the fourth begins with other audio.
    opening = Opening(pcm=np.sin(np.arange(32000, dtype=np.float32) / 20)[None], kept=24000)
    requests = [
        asked("a", 1, 2, sampling=Sampling()),
        asked("b", 3, duration=0.6, sampling=Sampling(guidance_scale=1.0)),
        asked("c", 4, duration=3.3, sampling=Sampling()),
        asked("d", 5, duration=1.5, sampling=Sampling(), opening=opening, melody=SCALE),
        asked("e", 6, 7, duration=2.9, sampling=Sampling(), melody=SCALE * 9),
    ]
    together = sing(engine, *requests)
    for request in requests:
        for name, pcm in sing(engine, request).items():
            assert np.array_equal(pcm, together[name])


def test_a_greedy_continuation_is_that_of_generate_after_the_same_codes() -> None:
    network, tokenizer = melody()
    engine = MusicgenEngine(copy.deepcopy(network), tokenizer, NOISE, CPU, 1)
    opening = Opening(pcm=np.sin(np.arange(32000, dtype=np.float32) / 20)[None], kept=24000)
    request = asked("a", duration=1.5, opening=opening)
    made = sing(engine, request)["a", 0]
    [codes] = heard(opening, network)
    assert np.abs(made - generated(network, tokenizer, request, codes)).max() < 1e-5


def test_a_checkpoint_is_loaded_from_its_folder_and_takes_adapters(tmp_path: Path) -> None:
    network, tokenizer = melody()
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    wrapped: Any = get_peft_model(
        network.decoder, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1"])
    )
    torch.manual_seed(0)
    fill(wrapped, 0.2)
    wrapped.save_pretrained(tmp_path / "lora")
    network.decoder = wrapped.merge_and_unload()
    checkpoint = resolve(str(tmp_path / "model"))
    assert (checkpoint.model.family, checkpoint.model.max_duration) == ("musicgen", 30.0)
    engine = MusicgenEngine.load(checkpoint, "cpu")
    plain = asked("a")
    adapted = replace(plain, id="d", adapter=Adapter(sha256="d", folder=str(tmp_path / "lora")))
    made = sing(engine, plain, adapted)
    expected = generated(network, tokenizer, adapted)
    assert np.abs(made["d", 0] - expected[:, : made["d", 0].shape[1]]).max() < 1e-5
    assert np.abs(made["a", 0] - made["d", 0]).max() > 0.01


def test_a_training_of_it_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    network, tokenizer = melody()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="follows melodies and cannot be trained") as refused:
        Network(resolve(str(tmp_path)))
    assert not refused.value.transient


def test_an_adapter_of_the_attention_to_the_text_is_refused_by_name(tmp_path: Path) -> None:
    plain: Any = noise.build()[0]
    wrapped: Any = get_peft_model(plain.decoder, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path)
    engine = MusicgenEngine(*melody(), NOISE, CPU, 1)
    engine.admit(asked("a", adapter=Adapter(sha256="a", folder=str(tmp_path))))
    [failure] = [update for update in engine.advance() if isinstance(update, Failure)]
    assert "encoder_attn" in failure.error
    assert "the model has no attention to the text." in failure.error
