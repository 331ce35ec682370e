import os
import re
from pathlib import Path

import pytest

from domain.errors import InvalidError, UnavailableError
from infra.bootstrap import adapters, kafka, mongo, projection_host
from infra.s3_objects import Bucket, S3Objects
from infra.settings import HIDDEN, PREFIX, Settings, explain, masked, read

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


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("mongodb://ann:hunter2@hunter2@db/studio", f"mongodb://ann:{HIDDEN}@db/studio"),
        ("mongodb://ann:hunter2/hunter2?hunter2@db/studio", f"mongodb://ann:{HIDDEN}@db/studio"),
        ("mongodb://ann@home:hunter2@db:27017", f"mongodb://ann@home:{HIDDEN}@db:27017"),
        ("mongodb://ann@db:27017/studio", "mongodb://ann@db:27017/studio"),
        ("mongodb://a:27017,b:27017/studio?replicaSet=rs0", "mongodb://a:27017,b:27017/studio?replicaSet=rs0"),
        (
            "mongodb+srv://db/?tls=true&tlsCertificateKeyFilePassword=hunter2&hunter2&w=1",
            f"mongodb+srv://db/?tls=true&tlsCertificateKeyFilePassword={HIDDEN}&{HIDDEN}&w=1",
        ),
        (
            "mongodb://db/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
            f"mongodb://db/?authMechanismProperties={HIDDEN}",
        ),
        ("mongodb:/ann:hunter2@db", f"mongodb:/ann:{HIDDEN}@db"),
        ("mongodb:ann:hunter2@db", f"mongodb:{HIDDEN}@db"),
        ("http://ann:hunter2@s3:8333", f"http://ann:{HIDDEN}@s3:8333"),
    ],
)
def test_secrets_in_an_address_are_not_shown(value: str, shown: str) -> None:
    assert masked("store", value) == shown


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        *(
            ("LOG", f"kafka://{servers}", "names no servers of Kafka. Write kafka://host:port")
            for servers in ("a:1,,b:1", "a:0", "a:99999", "::1", "ann:hunter2@a:1", "a:1/topic")
        ),
        ("STORE", "mongodb://[::1", "[::1 cannot be used: an IPv6 address"),
        ("STORE", "mongodb://ann:1/hunter2@db/studio", "db cannot be used: Bad database name. Write mongodb://"),
        ("STORE", "mongodb://db/a.b", "database names cannot contain the character '.'. Write mongodb://"),
        ("STORE", "mongodb://db/?tlsCAFile=/dev/null/ca.pem", "'/dev/null/ca.pem'. Write mongodb://"),
        *(
            ("S3_ENDPOINT", url, "names no server. Write http://host:port")
            for url in ("http://s3_1:8333", "http://s3:99999", "http://[::1")
        ),
    ],
)
async def test_an_address_that_no_client_can_use_is_named_without_its_secrets(
    tmp_path: Path, name: str, value: str, complaint: str
) -> None:
    environment = {"TEXT2SONG_DATA": str(tmp_path), "TEXT2SONG_OBJECTS": "s3://bucket", f"TEXT2SONG_{name}": value}
    with pytest.raises(InvalidError, match=f"^TEXT2SONG_{name} is '.*{re.escape(complaint)}") as caught:
        async with adapters(read(environment)):
            pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "servers", ["kafka", "kafka:9092", "kafka-1.studio_net:9092, 10.0.0.2:9092", "[::1]:9092", "[fe80::1]"]
)
def test_servers_of_kafka_are_taken(servers: str) -> None:
    assert kafka(Settings(log=f"kafka://{servers}")).servers == servers


@pytest.mark.parametrize(
    ("address", "database"),
    [("db/", "text2song"), ("a:1,b:1/studio?tls=true", "studio"), ("db?tlsCAFile=/ca.pem", "text2song")],
)
def test_the_database_is_the_path_of_the_address(address: str, database: str) -> None:
    assert mongo(Settings(store=f"mongodb://{address}")) == (f"mongodb://{address}", database)


def test_a_host_of_views_on_faust_needs_a_log_on_kafka() -> None:
    with pytest.raises(InvalidError, match=r"TEXT2SONG_LOG is 'sqlite': .* Set kafka://host:port"):
        projection_host(Settings())


@pytest.mark.parametrize(
    ("endpoint", "access_key", "where"),
    [(None, None, "Amazon's S3"), ("http://127.0.0.1:9", None, "S3 at http://127.0.0.1:9"), (None, "a", "Amazon's S3")],
)
async def test_s3_without_keys_names_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, access_key: str | None, where: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=f"^{where} .*TEXT2SONG_S3_ACCESS_KEY and TEXT2SONG_S3_SECRET_KEY"):
        await S3Objects.open(Bucket(name="bucket", region="us-east-1", endpoint=endpoint, access_key=access_key))


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
