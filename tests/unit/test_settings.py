import re
from pathlib import Path

import pytest

from domain.errors import InvalidError
from infra.settings import PREFIX, Settings, from_environment

README = Path(__file__).parents[2] / "README.md"


def test_the_environment_sets_and_the_command_line_overrides() -> None:
    read = from_environment({"TEXT2SONG_PORT": "9000", "TEXT2SONG_HOST": "::1", "PATH": "/bin"}, port=9001, data=None)
    assert (read.port, read.host, read.data) == (9001, "::1", Settings().data)


def test_a_value_that_does_not_fit_is_named_with_its_variable() -> None:
    with pytest.raises(
        InvalidError, match=re.escape("TEXT2SONG_LEASE_SECONDS is 'soon': Expected `float`, got `str`.")
    ):
        from_environment({"TEXT2SONG_LEASE_SECONDS": "soon"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "nan"),
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("HOST", ""),
        ("MODEL", ""),
        ("DEVICE", "tpu"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidError, match=f"TEXT2SONG_{name} is '{value}': Expected"):
        from_environment({f"TEXT2SONG_{name}": value})


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{PREFIX}{name.upper()}`" in README.read_text()
