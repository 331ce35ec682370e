import re
from pathlib import Path

import pytest

from domain.errors import InvalidError
from infra.settings import HIDDEN, PREFIX, Settings, explain, read

README = Path(__file__).parents[2] / "README.md"


def test_the_environment_sets_and_the_command_line_overrides() -> None:
    settings = read({"TEXT2SONG_PORT": "9000", "TEXT2SONG_HOST": "::1", "PATH": "/bin"}, port=9001, data=None)
    assert (settings.port, settings.host, settings.data) == (9001, "::1", Settings().data)


def test_a_file_is_overruled_by_the_environment_and_that_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "studio.toml"
    file.write_text('host = "::1"\nport = 9000\ndata = "kept"\n')
    environment = {"TEXT2SONG_CONFIG": str(file), "TEXT2SONG_PORT": "9001", "TEXT2SONG_DATA": "elsewhere"}
    settings = read(environment, data="here")
    assert (settings.host, settings.port, settings.data) == ("::1", 9001, "here")
    origins = {setting.name: setting.origin for setting in explain(environment, data="here")}
    assert [origins[name] for name in ("host", "port", "data", "model")] == [
        f"host in {file}",
        "TEXT2SONG_PORT",
        "--data",
        "default",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hots = 1", "sets hots, which is no setting; there are host, port"),
        ("host = ", "cannot be read"),
        ("port = 70000", "port in .* is 70000: Expected"),
        ('port = "soon"', "port in .* is 'soon': Expected"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "studio.toml"
    file.write_text(text)
    with pytest.raises(InvalidError, match=complaint):
        read({"TEXT2SONG_CONFIG": str(file)})


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="No such file"):
        read({"TEXT2SONG_CONFIG": str(tmp_path / "absent.toml")})


def test_secrets_are_not_shown() -> None:
    environment = {
        "TEXT2SONG_STORE": "mongodb://user:hunter2@db:27017/studio",
        "TEXT2SONG_KAFKA_PASSWORD": "hunter2",
        "TEXT2SONG_S3_SECRET_KEY": "hunter2",
    }
    shown = {setting.name: setting.value for setting in explain(environment)}
    assert shown["store"] == f"mongodb://user:{HIDDEN}@db:27017/studio"
    assert "hunter2" not in str(shown)
    with pytest.raises(InvalidError) as caught:
        read({"TEXT2SONG_KAFKA_PASSWORD": ""})
    assert "hunter2" not in str(caught.value)


def test_a_value_that_does_not_fit_is_named_with_its_variable() -> None:
    with pytest.raises(
        InvalidError, match=re.escape("TEXT2SONG_LEASE_SECONDS is 'soon': Expected `float`, got `str`.")
    ):
        read({"TEXT2SONG_LEASE_SECONDS": "soon"})


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
        ("LOG", "kafka:"),
        ("STORE", "postgres://db"),
        ("OBJECTS", "s3://UPPER"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidError, match=f"TEXT2SONG_{name} is '{value}': Expected"):
        read({f"TEXT2SONG_{name}": value})


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{PREFIX}{name.upper()}`" in README.read_text()
