"""Nano's tokenizer: one token for each word and number of the training prompts, `<unk>` for any other."""

import re
from typing import Any, Final, cast

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from workers.engines.musicgen.nano import descriptions
from workers.engines.musicgen.nano.songs import MAX_TEMPO, MIN_TEMPO, compose

PAD: Final = "<pad>"
EOS: Final = "</s>"
UNK: Final = "<unk>"
NUMBERS: Final = range(30, 241)
NUM_SAMPLED_PROMPTS: Final = 20_000


def build_tokenizer() -> PreTrainedTokenizerFast:
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for seed in range(NUM_SAMPLED_PROMPTS):
        words.update(re.findall(r"[a-z]+", descriptions.describe(compose(seed), rng).lower()))
    vocabulary = [PAD, EOS, UNK, *sorted(words), *map(str, NUMBERS)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+|[0-9]+"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, vocabulary.index(EOS))]
    )
    tokenizer_class: Any = PreTrainedTokenizerFast
    fast = tokenizer_class(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK)
    return cast("PreTrainedTokenizerFast", fast)


def tempo_embeddings(hidden_size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Initial embeddings `[len(NUMBERS), hidden_size]`: tempi that are close have similar ones."""
    place = np.log(np.clip(NUMBERS, MIN_TEMPO, MAX_TEMPO) / MIN_TEMPO) / np.log(MAX_TEMPO / MIN_TEMPO)
    waves = 2 ** (np.arange(hidden_size // 2) / (hidden_size // 2) * 4)
    phase = np.pi * place[:, None] * waves
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)
