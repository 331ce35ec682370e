"""The prompts of a turn of the loop: for pairs, and others for the blind test."""

from collections.abc import Collection, Iterator, Sequence
from itertools import cycle, islice
from typing import Final

import numpy as np

from infra.cli.loop_state import Options
from workers.engines.musicgen.nano.descriptions import describe
from workers.engines.musicgen.nano.songs import compose

# The built-in model learnt from songs of lower numbers.
FIRST_SONG: Final = 9_000_000
FIRST_TESTED: Final = 9_500_000
SONGS: Final = 2_000  # of one turn
TURNS: Final = 200  # that differ
SHARE_TESTED: Final = 5  # of this many given prompts, one is for the test
FEWEST: Final = 5


def of_pairs(options: Options) -> list[str]:
    """One for each pair. More pairs have the same prompts first."""
    own = _split(options.prompts)[0] or built_in(FIRST_SONG, options.seed)
    return list(islice(cycle(own) if isinstance(own, list) else own, options.pairs))


def of_test(options: Options) -> list[str]:
    """At most `test_pairs`, none of which is a pair's."""
    if tested := _split(options.prompts)[1]:
        return tested[: options.test_pairs]
    return list(islice(built_in(FIRST_TESTED, options.seed, set(of_pairs(options))), options.test_pairs))


def built_in(first: int, seed: int, without: Collection[str] = ()) -> Iterator[str]:
    """Different ones of the kind that the built-in model learnt from."""
    seen = set(without)
    for number in range(first + seed % TURNS * SONGS, first + 2 * TURNS * SONGS):
        prompt = describe(compose(number), np.random.default_rng(number))
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def _split(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """For pairs and for the test; few are all for pairs."""
    different = list(dict.fromkeys(prompts))
    if len(different) < FEWEST:
        return different, []
    tested = different[SHARE_TESTED - 1 :: SHARE_TESTED]
    return [prompt for prompt in different if prompt not in tested], tested
