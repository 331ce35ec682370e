import math
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.training.features import Ear
from workers.training.listener import listen
from workers.training.preference import Hearing, Pairs, choose_ridge, fit, folds, left_out, slopes

EAR = Ear(16_000)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tones(count: int, *, bright: bool, seed: int) -> torch.Tensor:
    """A second of noise each, whose highs are louder where it is bright; they vary by far more than that."""
    dice = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 16_000, generator=dice)
    smooth = torch.nn.functional.avg_pool1d(noise[:, None], 8, 1, 4, count_include_pad=False)[:, 0, :16_000]
    loudness = 0.1 * torch.rand(count, 1, generator=dice) + 0.02
    return loudness * (smooth + (0.5 if bright else 0.3) * noise)


def groups(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def test_a_model_minimises_what_it_says_it_does() -> None:
    dice = torch.Generator().manual_seed(1)
    differences = torch.randn(20, 5, generator=dice, dtype=torch.float64)
    weights = torch.rand(20, generator=dice, dtype=torch.float64) + 0.5
    ridge = 0.05
    found = differences.T @ fit(differences @ differences.T, weights, ridge)
    slopes = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([slopes], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def cost() -> torch.Tensor:
        descent.zero_grad()
        likely = torch.nn.functional.softplus(-(differences @ slopes))
        value = (weights * likely).sum() / weights.sum() + ridge / 2 * (slopes**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    descent.step(cost)  # type: ignore[no-untyped-call]
    assert torch.allclose(found, slopes.detach(), atol=1e-5)


def many(count: int, numbers: int) -> tuple[torch.Tensor, Pairs]:
    dice = torch.Generator().manual_seed(2)
    differences = torch.randn(count, numbers, generator=dice, dtype=torch.float64) + 0.2
    weights = torch.rand(count, generator=dice, dtype=torch.float64) + 0.5
    return differences @ differences.T, Pairs(differences, weights, groups(count))


@pytest.mark.parametrize("ridge", [1.0, 0.05, 0.001])
def test_more_pairs_than_numbers_have_the_same_model_by_a_smaller_system(ridge: float) -> None:
    gram, pairs = many(60, 7)
    expected = pairs.differences.T @ fit(gram, pairs.weights, ridge)
    assert torch.allclose(slopes(gram, pairs, ridge), expected, rtol=0, atol=1e-6)
    padded = torch.nn.functional.pad(pairs.differences, (0, 60))
    as_many_numbers = Pairs(padded, pairs.weights, pairs.groups)
    assert torch.allclose(left_out(gram, pairs, 3), left_out(gram, as_many_numbers, 3), rtol=0, atol=1e-6)


def test_two_thousand_pairs_are_fitted_in_seconds() -> None:
    gram, pairs = many(2_000, 40)
    begun = time.monotonic()
    left_out(gram, pairs, 3)
    assert time.monotonic() - begun < 30


def test_a_stop_ends_the_fitting_at_the_next_fit() -> None:
    gram, pairs = many(30, 4)
    fits = iter(range(3))

    def stop_at_the_fourth() -> None:
        if next(fits, None) is None:
            raise InterruptedError

    for fitting in (
        lambda: choose_ridge(gram, pairs, range(30), 3, stop_at_the_fourth),
        lambda: left_out(gram, pairs, 3, stop_at_the_fourth),
    ):
        with pytest.raises(InterruptedError):
            fitting()


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40), st.integers(2, 9))
def test_folds_keep_each_prompt_in_one(names: Sequence[str], count: int) -> None:
    split = folds(names, count, 3)
    assert sorted(place for fold in split for place in fold) == [*range(len(names))]
    of = [{names[place] for place in fold} for fold in split]
    assert sum(map(len, of)) == len(set(names))
    assert split == folds(names, count, 3)


@given(st.lists(st.floats(-5, 5), max_size=80))
def test_a_share_lies_in_its_interval(margins: Sequence[float]) -> None:
    hearing = Hearing.of(torch.tensor(margins, dtype=torch.float64))
    assert 0 <= hearing.low <= hearing.share <= hearing.high <= 1
    assert 0 <= hearing.chance <= 1
    opposite = Hearing.of(-torch.tensor(margins, dtype=torch.float64))
    assert math.isclose(hearing.share + opposite.share, 1)


def test_guesses_are_heard_no_more_often_than_promised() -> None:
    dice = torch.Generator().manual_seed(5)
    heard = 0
    for _ in range(8):
        differences = torch.randn(24, 12, generator=dice, dtype=torch.float64)
        gram = differences @ differences.T
        pairs = Pairs(differences, torch.ones(24, dtype=torch.float64), groups(24))
        heard += Hearing.of(left_out(gram, pairs, 0)).is_heard
    assert heard <= 2


def test_what_was_learnt_is_not_judged_by_itself() -> None:
    """Copies of a prompt's pair are in one fold, or the model would know them by heart."""
    dice = torch.Generator().manual_seed(2)
    differences = torch.randn(12, 40, generator=dice, dtype=torch.float64).repeat(4, 1)
    differences *= torch.randint(0, 2, (12, 1), generator=dice).repeat(4, 1) * 2 - 1
    gram = differences @ differences.T
    pairs = Pairs(differences, torch.ones(48, dtype=torch.float64), groups(12) * 4)
    assert Hearing.of(left_out(gram, pairs, 0)).share < 0.9
    assert choose_ridge(gram, pairs, range(48), 0)[0] > 0


def test_a_listener_hears_what_is_brighter_and_says_so() -> None:
    sides = [EAR.hear(tones(24, bright=bright, seed=seed)) for bright, seed in ((True, 1), (False, 2))]
    for side in sides:
        side["timbre"] = torch.zeros(24, 4)
    listener = listen(EAR, *sides, weights=torch.ones(24), groups=groups(24), held=[False] * 24, seed=0)
    assert listener.hearing.is_heard
    assert listener.hearing.share > 0.8
    assert "brighter" in [opinion.words for opinion in listener.opinions]
    assert (listener.score(sides[0]) > listener.score(sides[1])).float().mean() > 0.8


def test_a_listener_who_contradicts_himself_is_not_heard() -> None:
    alike = [tones(12, bright=True, seed=seed) for seed in (1, 2)]
    sides = [EAR.hear(torch.cat(each)) for each in (alike, alike[::-1])]
    for side in sides:
        side["timbre"] = torch.zeros(24, 4)
    assert not listen(
        EAR, *sides, weights=torch.ones(24), groups=groups(24), held=[False] * 24, seed=0
    ).hearing.is_heard


def test_every_number_that_is_heard_has_a_name() -> None:
    heard = EAR.hear(tones(2, bright=True, seed=0))
    assert {group: len(names) for group, names in EAR.names.items()} == {
        group: values.shape[1] for group, values in heard.items()
    }


@pytest.mark.parametrize("sound", [torch.zeros(1, 8_000), torch.ones(1, 8_000), torch.randn(1, 1_600) * 1e-6])
def test_silence_and_steady_sounds_have_finite_numbers_and_slopes(sound: torch.Tensor) -> None:
    sound = sound.clone().requires_grad_()
    total = torch.cat([*EAR.hear(sound).values()], dim=1).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert total.isfinite()
    assert sound.grad is not None
    assert sound.grad.isfinite().all()
