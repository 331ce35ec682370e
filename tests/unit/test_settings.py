import os
import re
from pathlib import Path

import pytest

from domain.errors import InvalidError, UnavailableError
from infra.bootstrap import adapters
from infra.cluster import kafka, mongo
from infra.hosts import projection_host
from infra.roles import allowed_hosts
from infra.settings import HIDDEN, PREFIX, Settings, describe, load, masked
from infra.storage.s3_objects import Bucket, S3Objects

DOCUMENTED = Path(__file__).parents[2] / "infra" / "README.md"


def test_the_environment_sets_and_the_command_line_overrides() -> None:
    settings = load({"TEXT2SONG_PORT": "9000", "TEXT2SONG_HOST": "::1", "PATH": "/bin"}, port=9001, data=None)
    assert (settings.port, settings.host, settings.data) == (9001, "::1", Settings().data)


def test_a_file_is_overruled_by_the_environment_and_that_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "studio.toml"
    file.write_text('host = "::1"\nport = 9000\ndata = "kept"\n')
    environment = {"TEXT2SONG_CONFIG": str(file), "TEXT2SONG_PORT": "9001", "TEXT2SONG_DATA": "elsewhere"}
    settings = load(environment, data="here")
    assert (settings.host, settings.port, settings.data) == ("::1", 9001, "here")
    origins = {setting.name: setting.origin for setting in describe(environment, data="here")}
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
        ("port = 70000", "port in .* is 70000; write a whole number from 0 to 65535."),
        ('port = "soon"', "port in .* is 'soon'; write a whole number from 0 to 65535."),
        ("port = [8000]", r"port in .* is \[8000\]; write a whole number"),
        ("host = {name = 1}", "host in .* is {'name': 1}; write text of at least one character."),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "studio.toml"
    file.write_text(text)
    with pytest.raises(InvalidError, match=complaint):
        load({"TEXT2SONG_CONFIG": str(file)})


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_an_empty_variable_is_not_set(name: str) -> None:
    assert load({f"{PREFIX}{name.upper()}": "", "TEXT2SONG_CONFIG": ""}) == Settings()


def test_an_empty_value_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"--host is ''; write text of at least one character\."):
        load({}, host="")
    file = tmp_path / "studio.toml"
    file.write_text('host = ""\nkafka_prefix = ""\n')
    with pytest.raises(InvalidError, match=r"host in .*studio.toml is ''; write text"):
        load({"TEXT2SONG_CONFIG": str(file)})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "studio.toml"
    file.write_text("port = 8123\n", "utf-8-sig")
    assert load({"TEXT2SONG_CONFIG": str(file)}).port == 8123
    file.write_text("port = 8123\n", "utf-16")
    with pytest.raises(InvalidError, match=r"studio.toml cannot be read: it is not UTF-8. Correct it as TOML in UTF-8"):
        load({"TEXT2SONG_CONFIG": str(file)})


def test_home_is_expanded_and_one_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert Settings(data="~/music").folder == Path("/home/ann/music")
    secured = Settings(log="kafka://a:1", kafka_security="SSL", kafka_ca="~/ca.pem")
    assert kafka(secured).cafile == "/home/ann/ca.pem"
    for name in ("DATA", "MODEL", "KAFKA_CA"):
        with pytest.raises(InvalidError, match=rf"_{name} is '~nobody-here/x': there is no such home folder\."):
            load({PREFIX + name: "~nobody-here/x"})
    with pytest.raises(
        InvalidError, match=r"file ~nobody-here/x cannot be read: .* name another with TEXT2SONG_CONFIG\."
    ):
        load({"TEXT2SONG_CONFIG": "~nobody-here/x"})


@pytest.mark.parametrize(
    ("data", "reason"), [("caf\udce9", "cannot be used: its name is not UTF-8."), ("a\0b", "cannot be made: embedded")]
)
async def test_a_folder_that_no_file_can_be_in_is_named(tmp_path: Path, data: str, reason: str) -> None:
    with pytest.raises(UnavailableError, match=f"{reason}.* Choose another with --data"):
        async with adapters(load({}, data=str(tmp_path / data))):
            pass


def test_allowed_hosts_are_a_list_with_commas() -> None:
    allowed = allowed_hosts(Settings(host="10.0.0.5", allowed_hosts="music.example.org, studio,"))
    assert allowed.names == {"localhost", "127.0.0.1", "::1", "10.0.0.5", "music.example.org", "studio"}
    with pytest.raises(InvalidError, match=r"TEXT2SONG_ALLOWED_HOSTS is 'a,http://b': 'http://b' is no name .* commas"):
        allowed_hosts(Settings(allowed_hosts="a,http://b"))


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="No such file"):
        load({"TEXT2SONG_CONFIG": str(tmp_path / "absent.toml")})


def test_secrets_are_not_shown() -> None:
    environment = {
        "TEXT2SONG_STORE": "mongodb://user:hunter2@db:27017/studio",
        "TEXT2SONG_KAFKA_PASSWORD": "hunter2",
        "TEXT2SONG_S3_SECRET_KEY": "hunter2",
    }
    shown = {setting.name: setting.value for setting in describe(environment)}
    assert shown["store"] == f"mongodb://user:{HIDDEN}@db:27017/studio"
    assert "hunter2" not in str(shown)
    with pytest.raises(InvalidError) as caught:
        load(environment, kafka_password="")
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
        ("STORE", "mongodb://db/?tlsCAFile=/dev/null/ca.pem", "file is not readable. Write mongodb://"),
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
        async with adapters(load(environment)):
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


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("LEASE_SECONDS", "0", "a number from 1 to 3600"),
        ("LEASE_SECONDS", "nan", "a number from 1 to 3600"),
        ("LEASE_SECONDS", "soon", "a number from 1 to 3600"),
        ("UNLOAD_AFTER", "soon", "a number of minutes, such as 15, or off"),
        ("UNLOAD_AFTER", "-1", "a number of minutes, such as 15, or off"),
        ("PORT", "70000", "a whole number from 0 to 65535"),
        ("PORT", "-1", "a whole number from 0 to 65535"),
        ("OPEN", "maybe", "true or false"),
        ("DEVICE", "tpu", "cpu, cuda or cuda:1"),
        ("DEVICE", "mps", "cpu, cuda or cuda:1"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("KAFKA_MECHANISM", "plain", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
        ("READ_LIMIT", "6000", "a whole number a second, minute, hour or day, such as 6000/minute, or off"),
        ("OTLP_ENDPOINT", "localhost:4318", "an address that begins with http:// or https://"),
        ("INSTANCE", "a b", "1 to 100 letters, digits, dots, dashes and underscores, such as views-1"),
        ("LOG", "kafka:", "sqlite or kafka://host:port,host:port"),
        ("STORE", "postgres://db", "sqlite or mongodb://host:port/database"),
        ("OBJECTS", "s3://UPPER", "files or s3://bucket, with 3 to 63 small letters, digits, dots and dashes"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_variable_and_its_form(name: str, value: str, form: str) -> None:
    with pytest.raises(InvalidError, match=f"^TEXT2SONG_{name} is '{re.escape(value)}'; write {re.escape(form)}\\.$"):
        load({PREFIX + name: value})


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_has_a_form_in_words(tmp_path: Path, name: str) -> None:
    file = tmp_path / "studio.toml"
    file.write_text(f"{name} = []\n")
    with pytest.raises(InvalidError, match=rf"^{name} in .* is \[\]; write [a-zA-Z0-9]") as caught:
        load({"TEXT2SONG_CONFIG": str(file)})
    assert "^" not in str(caught.value)


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{PREFIX}{name.upper()}`" in DOCUMENTED.read_text()


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    named = {"TEXT2SONG_KAFKA_PASSWORD_FILE": str(file)}
    assert load(named).kafka_password == "s3cret"  # noqa: S105
    [shown] = (each for each in describe(named) if each.name == "kafka_password")
    assert (shown.value, shown.origin) == ("********", "TEXT2SONG_KAFKA_PASSWORD_FILE")
    with pytest.raises(InvalidError, match="KAFKA_PASSWORD and TEXT2SONG_KAFKA_PASSWORD_FILE are both set"):
        load({**named, "TEXT2SONG_KAFKA_PASSWORD": "other"})
    with pytest.raises(InvalidError, match=r"_FILE is .* which cannot be read: No such file"):
        load({"TEXT2SONG_KEY_FILE": str(tmp_path / "none")})
    file.write_text("\n")
    with pytest.raises(InvalidError, match=r"_FILE is .* which is empty"):
        load(named)
