"""What a checkpoint's tokenizer reads of a prompt, without importing torch."""

import re
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from domain.reading import Reader, Reading
from workers.engines.checkpoints import Checkpoint

PROMPT_TOKENS: Final = 512
WORD: Final = re.compile(r"\S+")
SPACE: Final = "▁"  # how T5 writes the beginning of a word
UNKNOWN: Final = "<unk>"
REMEMBERED: Final = 256
BEHIND: Final = (sys.maxsize, sys.maxsize)  # any text


def reader(checkpoint: Checkpoint) -> Reader | None:
    """None for a model that has no tokenizer in a file of its own; the noise model reads nothing at all."""
    path = None if checkpoint.folder is None else checkpoint.folder / "tokenizer.json"
    return _Tokens(path) if path is not None and path.exists() else None


class _Tokens:
    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Prompts come again: with another seed, at another length.
        self._read = lru_cache(REMEMBERED)(self._reading)

    def __call__(self, text: str) -> Reading:
        return self._read(text)

    def _reading(self, text: str) -> Reading:
        encoding = self._tokenizer.encode(text)
        tokens, offsets = encoding.tokens, encoding.offsets
        # The last token, which ends every prompt, takes a place.
        cut = offsets[PROMPT_TOKENS - 1][0] if len(tokens) > PROMPT_TOKENS else len(text)
        known = iter(
            span for token, span in zip(tokens, offsets, strict=True) if token != UNKNOWN and token.strip(SPACE)
        )
        words: list[str] = []
        unread: list[str] = []
        start, end = next(known, BEHIND)
        for match in WORD.finditer(text, 0, cut):
            first, last = match.span()
            while end <= first:
                start, end = next(known, BEHIND)
            is_read = start < last
            if is_read or not _is_punctuation(match[0]):
                words.append(match[0])
                if not is_read:
                    unread.append(match[0])
        return Reading(
            words=tuple(words), unread=tuple(unread), cut=text[cut : cut + 40].strip() if cut < len(text) else None
        )


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)
