"""A tiny MusicGen with random weights, built when it is loaded. It makes noise.

It uses MusicGen's own classes and runs every step that a trained MusicGen runs.
"""

from typing import Any, Final, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

CODES: Final = 64
PAD: Final = "<pad>"
END: Final = "</s>"


def build(*, seed: int = 0, channels: int = 1) -> tuple[MusicgenForConditionalGeneration, PreTrainedTokenizerFast]:
    """A model of 32 kHz, 50 frames a second and 4 codebooks a channel; the same seed gives the same weights."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network: Any = MusicgenForConditionalGeneration(_config(len(tokenizer), channels))
        for head in network.decoder.lm_heads:
            head.weight.mul_(20)
        for layer in network.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
        # Random biases would drown the codes in the same hum in every clip, and every clip in the same codes.
        for part in (network.audio_encoder.decoder, network.audio_encoder.encoder):
            for name, parameter in part.named_parameters():
                if "bias" in name:
                    parameter.zero_()
        network.audio_encoder.encoder.layers[-1].conv.parametrizations.weight.original0.mul_(100)
        network.audio_encoder.decoder.layers[-1].conv.parametrizations.weight.original0.mul_(8)
    network.generation_config.update(pad_token_id=CODES, bos_token_id=CODES, decoder_start_token_id=CODES)
    return network.eval(), tokenizer


def _config(vocabulary: int, channels: int) -> MusicgenConfig:
    return MusicgenConfig(
        text_encoder=T5Config(
            vocab_size=vocabulary, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0
        ),
        audio_encoder=EncodecConfig(
            sampling_rate=32000,
            upsampling_ratios=[8, 5, 4, 4],
            target_bandwidths=[1.2],
            codebook_size=CODES,
            hidden_size=16,
            num_filters=4,
            num_lstm_layers=1,
            use_causal_conv=False,
            use_conv_shortcut=False,
        ),
        decoder=MusicgenDecoderConfig(
            vocab_size=CODES,
            hidden_size=64,
            ffn_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_codebooks=4 * channels,
            audio_channels=channels,
            pad_token_id=CODES,
            bos_token_id=CODES,
            dropout=0.0,
        ),
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then `</s>`, so that it can encode any prompt."""
    alphabet = [PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, alphabet.index(END))]
    )
    fast: Any = PreTrainedTokenizerFast
    return cast("PreTrainedTokenizerFast", fast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END))
