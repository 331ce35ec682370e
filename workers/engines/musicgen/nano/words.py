"""Nano's tokenizer: one token a word or number of the descriptions it was trained on, `<unk>` for any other."""

import re
from typing import Any, Final, cast

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from workers.engines.musicgen.nano import descriptions
from workers.engines.musicgen.nano.songs import FASTEST, SLOWEST, compose

PAD: Final = "<pad>"
END: Final = "</s>"
UNKNOWN: Final = "<unk>"
NUMBERS: Final = range(30, 241)
SAMPLED: Final = 20_000


def build() -> PreTrainedTokenizerFast:
    rng = np.random.default_rng(0)
    found: set[str] = set()
    for seed in range(SAMPLED):
        found.update(re.findall(r"[a-z]+", descriptions.describe(compose(seed), rng).lower()))
    vocabulary = [PAD, END, UNKNOWN, *sorted(found), *map(str, NUMBERS)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+|[0-9]+"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary.index(END))]
    )
    fast: Any = PreTrainedTokenizerFast
    made = fast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    return cast("PreTrainedTokenizerFast", made)


def scale(width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Starting embeddings `[len(NUMBERS), width]` in which tempi that are close sound alike."""
    place = np.log(np.clip(NUMBERS, SLOWEST, FASTEST) / SLOWEST) / np.log(FASTEST / SLOWEST)
    waves = 2 ** (np.arange(width // 2) / (width // 2) * 4)
    phase = np.pi * place[:, None] * waves
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)
