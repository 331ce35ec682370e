"""Which pairs a voter compares, in which order and on which sides; and ids that hide it."""

import os
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from api.http.sealing import Seal
from domain.errors import NotFoundError
from domain.events.ab_tests import MAX_PAIRS
from domain.trials import Trial, trials

KEY: Final = b"the studio's key"
VOTERS: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
COUNTS: Final = st.integers(1, 60)


def given_to(voter: str, count: int, catch_trials: int = 0, test: str = "test", **options: object) -> list[Trial]:
    left_out = options.get("left_out", ())
    assert isinstance(left_out, set | tuple)
    return trials(test, voter, range(count), catch_trials, left_out=left_out, key=KEY)


def proper(found: list[Trial]) -> list[Trial]:
    return [trial for trial in found if not trial.catch]


@given(VOTERS, COUNTS, st.integers(0, 20))
def test_each_voter_gets_every_pair_once_and_sides_in_balance(voter: str, count: int, catch_trials: int) -> None:
    found = given_to(voter, count, catch_trials)
    assert sorted(trial.pair for trial in proper(found)) == list(range(count))
    sides = Counter(trial.left for trial in proper(found))
    assert abs(sides["A"] - sides["B"]) == count % 2
    assert {(trial.ab_test_id, trial.voter) for trial in found} == {("test", voter)}
    assert given_to(voter, count, catch_trials) == found


@given(VOTERS, COUNTS, st.integers(0, 20))
def test_catch_trials_are_a_tenth_at_most_and_spread_and_never_first(voter: str, count: int, catch_trials: int) -> None:
    found = given_to(voter, count, catch_trials)
    catches = [trial for trial in found if trial.catch]
    assert len(catches) == min(catch_trials, count // 9)
    assert len(catches) * 10 <= len(found)
    assert not found[0].catch
    assert [trial.number for trial in catches] == list(range(1, len(catches) + 1))
    assert len({trial.pair for trial in catches}) == len(catches)
    assert all(trial.left == trial.catch == trial.arm("left") == trial.arm("right") for trial in catches)
    for one, next_one in pairwise(found):
        assert not (one.catch and next_one.catch)
        assert one.pair != next_one.pair
    heard_before = [len(proper(found[: found.index(trial)])) for trial in catches]
    stretches = [(heard - 1) * len(catches) // count for heard in heard_before]
    assert all(abs(stretch - number) <= 1 for number, stretch in enumerate(stretches))
    assert stretches == sorted(stretches)


@given(VOTERS, COUNTS, st.integers(0, 20), st.data())
def test_pairs_that_are_left_out_change_nothing_for_the_others(
    voter: str, count: int, catch_trials: int, data: st.DataObject
) -> None:
    left_out = data.draw(st.sets(st.integers(0, count - 1)))
    before, after = given_to(voter, count, catch_trials), given_to(voter, count, catch_trials, left_out=left_out)
    assert proper(after) == [trial for trial in proper(before) if trial.pair not in left_out]
    assert [trial for trial in before if trial in after] == after
    assert sum(trial.catch is not None for trial in after) * 10 <= len(after)
    assert not after or not after[0].catch


def test_the_other_side_is_the_other_arm() -> None:
    for trial in given_to("v", 20):
        assert {trial.arm("left"), trial.arm("right")} == {"A", "B"}
        assert trial.arm("left") == trial.left


def test_over_voters_each_pair_has_each_arm_on_the_left_and_each_place_equally_often() -> None:
    voters, pairs = 2_000, 6
    found = [given_to(f"voter {number}", pairs) for number in range(voters)]
    left = Counter(trial.pair for each in found for trial in each if trial.left == "A")
    first = Counter(each[0].pair for each in found)
    last_by_first = Counter((each[0].pair, each[-1].pair) for each in found)
    # 4.5 standard deviations: what is deterministic either always passes or never.
    assert all(abs(left[pair] - voters / 2) < 4.5 * (voters / 4) ** 0.5 for pair in range(pairs))
    assert all(abs(first[pair] - voters / 6) < 4.5 * (voters * 5 / 36) ** 0.5 for pair in range(pairs))
    assert len(last_by_first) == pairs * (pairs - 1)


def test_over_voters_an_odd_number_of_pairs_favours_neither_arm() -> None:
    left = Counter(trial.left for number in range(2_000) for trial in given_to(f"voter {number}", 1))
    assert abs(left["A"] - 1_000) < 4.5 * 500**0.5


def test_what_a_voter_was_told_says_next_to_nothing_of_the_next_trial() -> None:
    """The arms are told after each vote. The guess that the arm goes left that has been there less is right in about
    5 of 9 cases for ten pairs; in blocks of two it would be right in every second trial for certain."""
    alternating = [
        one.left != next_one.left
        for number in range(1_000)
        for one, next_one in pairwise(given_to(f"voter {number}", 10)[:4])
    ]
    assert abs(sum(alternating) / len(alternating) - 5 / 9) < 0.04


def test_tests_and_keys_shuffle_anew() -> None:
    here = [(trial.pair, trial.left) for trial in given_to("v", 30)]
    there = [(trial.pair, trial.left) for trial in given_to("v", 30, test="other")]
    keyed = [(trial.pair, trial.left) for trial in trials("test", "v", range(30), 0, key=b"another studio's")]
    assert here != there
    assert here != keyed


def test_every_process_shuffles_alike() -> None:
    script = "from domain.trials import trials; print(trials('test', 'v', range(30), 3))"
    root = str(Path(__file__).parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{trials('test', 'v', range(30), 3)}\n".encode()}


SEAL: Final = Seal(bytes(range(32)))
TRIAL: Final = Trial(ab_test_id="test-1", pair=7, voter="anna", left="B")


@given(VOTERS, st.integers(0, MAX_PAIRS - 1), st.sampled_from("AB"), st.sampled_from([None, "A", "B"]))
def test_a_sealed_trial_opens_to_itself(voter: str, pair: int, left: str, catch: str | None) -> None:
    trial = Trial(ab_test_id="test-1", pair=pair, voter=voter, left=left, catch=catch, number=pair)  # type: ignore[arg-type]
    sealed = SEAL.seal(trial)
    assert SEAL.open(sealed) == trial
    assert SEAL.seal(trial) == sealed
    assert len(sealed) == len(SEAL.seal(replace(TRIAL, voter=voter)))
    assert sealed.isascii()
    assert not set(sealed) & set("+/=%?# ")


def test_no_two_trials_have_one_id_and_no_id_shows_what_it_hides() -> None:
    every = [
        replace(TRIAL, **change)
        for change in ({}, {"pair": 8}, {"voter": "annb"}, {"left": "A"}, {"catch": "B"}, {"number": 1})
    ] + [replace(TRIAL, ab_test_id="test-2")]
    sealed = [SEAL.seal(trial) for trial in every]
    assert len(set(sealed)) == len(every)
    raw = [urlsafe_b64decode(text + "==") for text in sealed]
    assert not any(word in each for each in raw for word in (b"anna", b"test-1"))
    # An id differs from another's in half of its bits everywhere, wherever the two trials differ.
    for each in raw[1:6]:
        same = sum(one == two for one, two in zip(raw[0], each, strict=True))
        assert same < len(each) // 3


def test_forged_cut_and_foreign_ids_open_to_nothing() -> None:
    sealed = SEAL.seal(TRIAL)
    raw = urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
    forged = [
        urlsafe_b64encode(bytes(b ^ (at == i) for i, b in enumerate(raw))).rstrip(b"=").decode()
        for at in range(len(raw))
    ]
    cut = [sealed[:length] for length in range(len(sealed))]
    foreign = Seal(b"\1" * 32).seal(TRIAL)
    odd = [f"{sealed}=", f"{sealed}==", f" {sealed}", f"{sealed}\n", f"{sealed[:9]}!{sealed[9:]}", "\0", "left"]
    odd += ["ü" * 40, "A" * 5_000]
    for text in (*forged, *cut, foreign, *odd):
        with pytest.raises(NotFoundError, match="There is no trial") as caught:
            SEAL.open(text)
        assert len(str(caught.value)) < 250


def test_bits_that_the_encoding_leaves_over_make_no_second_id() -> None:
    every = [SEAL.seal(replace(TRIAL, voter="v" * length)) for length in (1, 2, 3)]
    sealed = next(text for text in every if len(text) % 4 == 2)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = sealed[:-1] + alphabet[alphabet.index(sealed[-1]) ^ 1]
    assert urlsafe_b64decode(f"{twin}==") == urlsafe_b64decode(f"{sealed}==")
    with pytest.raises(NotFoundError):
        SEAL.open(twin)


def test_marks_are_the_studios_own() -> None:
    marks = {SEAL.mark("a", "b"), SEAL.mark("a", "c"), SEAL.mark("ab"), Seal(b"\1" * 32).mark("a", "b")}
    assert len(marks) == 4
    assert SEAL.mark("a", "b") in marks
