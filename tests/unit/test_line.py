"""Who is next: ranks, owners in turn, and age."""

from collections import Counter, defaultdict
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from workers.line import Line

RANKS = (-9, 0)
OWNERS = ("ann", "bob", "cem", "")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(RANKS), st.sampled_from(OWNERS)),
        st.tuples(st.just("serve"), st.just(0), st.just("")),
        # It is cancelled, wherever in the line it stands.
        st.tuples(st.just("gone"), st.integers(0, 50), st.just("")),
    ),
    max_size=80,
)


@given(steps)
def test_everybody_who_waits_is_served_within_a_round(steps: list[tuple[str, int, str]]) -> None:
    line, numbers = Line(), count()
    there: dict[str, tuple[int, str, int]] = {}
    served_since: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)

    def serve(id_: str) -> None:
        rank, owner, _ = there.pop(id_)
        line.pass_on(rank, owner)
        served_since[rank, owner].clear()
        for other_rank, other in {(rank, other) for rank, other, _ in there.values()}:
            if (other_rank, other) != (rank, owner) and other_rank == rank:
                served_since[other_rank, other][owner] += 1
                # Whoever waits sees each of the others served once at most.
                assert served_since[other_rank, other][owner] <= 1
        for key in list(served_since):
            if key not in {(rank, owner) for rank, owner, _ in there.values()}:
                del served_since[key]

    for what, number, owner in steps:
        if what == "put":
            order = next(numbers)
            there[f"t{order}"] = (number, owner, order)
            line.put(number, owner, order, f"t{order}")
            continue
        first = line.first(lambda id_: id_ in there)
        assert (first is None) is not bool(there)
        if first is None:
            continue
        rank, whose, order = there[first]
        assert rank == min(rank for rank, _, _ in there.values())
        assert order == min(order for r, o, order in there.values() if (r, o) == (rank, whose))
        if what == "serve":
            serve(first)
        elif what == "gone":
            del there[list(there)[number % len(there)]]
    while (first := line.first(lambda id_: id_ in there)) is not None:
        serve(first)
    assert not there


def test_five_hundred_things_of_one_owner_do_not_hold_up_another() -> None:
    line, waiting = Line(), set[str]()
    for number in range(500):
        waiting.add(f"a{number}")
        line.put(0, "ann", number, f"a{number}")
    order = []
    for number in range(500):
        if number == 3:
            for late in range(3):
                waiting.add(f"b{late}")
                line.put(0, "bob", 1000 + late, f"b{late}")
        first = line.first(waiting.__contains__)
        assert first is not None
        waiting.remove(first)
        line.pass_on(0, "ann" if first.startswith("a") else "bob")
        order.append(first)
    assert order[:9] == ["a0", "a1", "a2", "a3", "b0", "a4", "b1", "a5", "b2"]


def test_a_long_line_takes_a_logarithm_of_its_length() -> None:
    """Counted in questions about things, as time on a shared machine says nothing."""
    line, asked = Line(), count()
    waiting = {f"t{number}" for number in range(20_000)}
    for number in range(20_000):
        line.put(0, f"owner {number % 5_000}", number, f"t{number}")

    def may_go(id_: str) -> bool:
        next(asked)
        return id_ in waiting

    for _ in range(20_000):
        first = line.first(may_go)
        assert first is not None
        waiting.remove(first)
        line.pass_on(0, f"owner {int(first[1:]) % 5_000}")
    assert next(asked) <= 2 * 20_000


def test_owners_that_have_enough_are_passed_over_and_keep_their_turn() -> None:
    line = Line()
    for number, owner in enumerate(("ann", "ann", "bob")):
        line.put(0, owner, number, f"{owner}{number}")
    assert line.first(lambda _: True, lambda owner: owner == "ann") == "bob2"
    assert line.first(lambda _: True, lambda _: True) is None
    assert line.first(lambda _: True) == "ann0"
