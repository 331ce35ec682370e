"""How much audio is made in a second of work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine_pace import HALF_LIFE, Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rest_does_not_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert [pace.real_time_factor] == [None]
    pace.go_on()
    clock.now += 2
    pace.go_on()
    assert [pace.real_time_factor] == [None]
    pace.made(8)
    assert pace.real_time_factor == 4
    pace.rest()
    clock.now += 1000
    assert pace.real_time_factor == 4
    pace.go_on()
    clock.now += 2
    assert pace.real_time_factor == 2
    pace.rest()
    pace.rest()
    assert pace.real_time_factor == 2


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=50))
def test_what_is_long_ago_is_forgotten(lengths: list[float]) -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.go_on()
    for length in lengths:
        clock.now += length
        pace.made(3 * length)
        assert pace.real_time_factor == pytest.approx(3)
    for _ in range(100):
        clock.now += HALF_LIFE / 10
        pace.made(HALF_LIFE / 10)
    assert pace.real_time_factor == pytest.approx(1, abs=0.05)
