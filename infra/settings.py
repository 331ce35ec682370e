"""Every setting: from the command line, else the environment, else a TOML file, else its default."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from domain.errors import Fault, InvalidError

PREFIX: Final = "TEXT2SONG_"
FILE: Final = "text2song.toml"
PATHS: Final = (
    *("data", "model", "output_dir", "heartbeat"),
    *("kafka_ca", "kafka_certificate", "kafka_key", "store_ca", "store_certificate", "s3_ca"),
)
# Each is also read from the file that the variable with _FILE names.
SECRETS: Final = ("key", "store", "kafka_password", "s3_access_key", "s3_secret_key")
ENVIRONMENT: Final = "environment "
# Variables that other programs of the kind have; those with the prefix go before.
UNPREFIXED: Final = {
    "port": "PORT",
    "output_dir": "OUTPUT_DIR",
    "cors_allow_origins": "CORS_ALLOW_ORIGINS",
    "otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
}
HIDDEN: Final = "********"
# From the first colon behind the scheme to the last @: a password may hold each of the characters that end one.
PASSWORD: Final = re.compile(r"^([^:/]*:/+)?+([^:]*):.*@", re.DOTALL)
PAIR: Final = re.compile("[^&;]+")
SPEAKING: Final = re.compile("password|passwd|token|secret|credential", re.IGNORECASE)

FORM: Final = "form"  # of a text, in words, among what its Meta has besides

Text = Annotated[str, Meta(min_length=1, extra={FORM: "text of at least one character"})]
Device = Annotated[str, Meta(pattern="^(cpu|cuda(:[0-9]+)?)$", extra={FORM: "cpu, cuda or cuda:1"})]
Name = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9._-]{1,100}$",
        extra={FORM: "1 to 100 letters, digits, dots, dashes and underscores, such as views-1"},
    ),
]
Limit = Annotated[
    str,
    Meta(
        pattern="^(off|[1-9][0-9]{0,8}/(second|minute|hour|day))$",
        extra={FORM: "a whole number a second, minute, hour or day, such as 6000/minute, or off"},
    ),
]
Minutes = Annotated[
    str, Meta(pattern=r"^(off|[0-9]{1,6}(\.[0-9]{1,6})?)$", extra={FORM: "a number of minutes, such as 15, or off"})
]
Url = Annotated[str, Meta(pattern="^https?://.+$", extra={FORM: "an address that begins with http:// or https://"})]


class Settings(Struct, frozen=True, kw_only=True):
    """Each field is read from `TEXT2SONG_` and its name in capitals, or from its name in the file."""

    host: Annotated[Text, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    allowed_hosts: Annotated[
        Text | None, Meta(description="further hosts to answer to, with commas between; * answers to all")
    ] = None
    data: Annotated[Text, Meta(description="folder that keeps everything; a restart on it goes on where it was")] = (
        "text2song-data"
    )
    model: Annotated[Text, Meta(description="a known model, or the folder of a checkpoint")] = "text2song/musicgen-nano"
    device: Annotated[Device | None, Meta(description="cpu, cuda or cuda:1, by default what there is")] = None
    unload_after: Annotated[
        Minutes, Meta(description="minutes without a job after which a worker unloads its model until the next; or off")
    ] = "off"
    lease_seconds: Annotated[float, Meta(ge=1, le=3600, description="how long a silent worker keeps its jobs")] = 6.0
    renditions_mb: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="MB of formats other than FLAC that are kept, to be sent again")
    ] = 1_000
    track_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="how long POST /api/generate waits for its track before it answers 202")
    ] = 120.0
    output_dir: Annotated[
        Text | None, Meta(description="folder that finished tracks are also written to, as WAV and MP3")
    ] = None
    cors_allow_origins: Annotated[
        Text, Meta(description="origins of other pages that may use the API, with commas between; * for all")
    ] = "http://localhost:3000,http://localhost:5173"
    webhook_loopback: Annotated[bool, Meta(description="send webhooks to this machine's own addresses too")] = False
    heartbeat: Annotated[
        Text | None, Meta(description="file that a role touches every 5 s as long as it lives, for probes")
    ] = None
    log_format: Annotated[Literal["text", "json"], Meta(description="how roles log on standard error")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="what roles log; info has each request")
    ] = "warning"
    otlp_endpoint: Annotated[
        Url | None, Meta(description="URL of an OpenTelemetry collector that traces are sent to over HTTP")
    ] = None
    open: Annotated[
        bool, Meta(description="answer without keys beyond loopback too, while there are none: behind a proxy")
    ] = False
    key: Annotated[Text | None, Meta(description="API key that the commands of a client send")] = None
    read_limit: Annotated[
        Limit | None,
        Meta(description="GET requests of a key, or else of an address, such as 6000/minute; or off"),
    ] = None
    write_limit: Annotated[
        Limit | None,
        Meta(description="other requests of a key, or else of an address, such as 1200/minute; or off"),
    ] = None
    open_jobs: Annotated[
        int, Meta(ge=1, le=1_000_000_000, description="how many open jobs the owner of a key may have")
    ] = 1_000
    log: Annotated[
        str,
        Meta(
            pattern="^(sqlite|kafka://.+)$",
            description="sqlite in the data folder, or kafka://host:port,host:port",
            extra={FORM: "sqlite or kafka://host:port,host:port"},
        ),
    ] = "sqlite"
    store: Annotated[
        str,
        Meta(
            pattern=r"^(sqlite|mongodb(\+srv)?://.+)$",
            description="sqlite in the data folder, or mongodb://host:port/database",
            extra={FORM: "sqlite or mongodb://host:port/database"},
        ),
    ] = "sqlite"
    objects: Annotated[
        str,
        Meta(
            pattern="^(files|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])$",
            description="files in the data folder, or s3://bucket",
            extra={FORM: "files or s3://bucket, with 3 to 63 small letters, digits, dots and dashes"},
        ),
    ] = "files"
    store_ca: Annotated[
        Text | None, Meta(description="file of certificates that MongoDB is checked by; connects by TLS")
    ] = None
    store_certificate: Annotated[
        Text | None, Meta(description="file of this client's certificate and key, for a MongoDB that asks for one")
    ] = None
    instance: Annotated[Name | None, Meta(description="name of this projection process, by default the host's")] = None
    kafka_prefix: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9._-]{0,60}$",
            description="what the topics' names begin with",
            extra={FORM: "up to 60 small letters, digits, dots, dashes and underscores, such as text2song."},
        ),
    ] = "text2song."
    kafka_replication: Annotated[int, Meta(ge=1, le=9, description="replicas of topics that are created")] = 1
    kafka_security: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Meta(description="how connections are secured")
    ] = "PLAINTEXT"
    kafka_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Meta(description="how a SASL connection is authenticated")
    ] = "PLAIN"
    kafka_username: Annotated[Text | None, Meta(description="user of a SASL connection")] = None
    kafka_password: Annotated[Text | None, Meta(description="password of a SASL connection")] = None
    kafka_ca: Annotated[Text | None, Meta(description="file of certificates that TLS brokers are checked by")] = None
    kafka_certificate: Annotated[
        Text | None, Meta(description="file of this client's certificate, for TLS brokers that ask for one")
    ] = None
    kafka_key: Annotated[Text | None, Meta(description="file of its key, by default the certificate's")] = None
    s3_endpoint: Annotated[Url | None, Meta(description="URL of an S3 server that is not Amazon's")] = None
    s3_region: Annotated[Text, Meta(description="region of the bucket")] = "us-east-1"
    s3_access_key: Annotated[Text | None, Meta(description="access key, by default as other S3 clients find it")] = None
    s3_secret_key: Annotated[Text | None, Meta(description="its secret")] = None
    s3_ca: Annotated[Text | None, Meta(description="file of certificates that an https endpoint is checked by")] = None

    @property
    def folder(self) -> Path:
        return path(self, "data")


class Setting(Struct, frozen=True):
    """A value as it may be shown, and where it came from."""

    name: str
    value: str
    meaning: str
    origin: str


def load(environment: Mapping[str, str], **overrides: object) -> Settings:
    """Overrides that are None count as not given. Raises InvalidError naming what does not fit, and where it stands."""
    return _convert(_layers(environment, overrides))


def describe(environment: Mapping[str, str], **overrides: object) -> list[Setting]:
    """Every setting, in order. Raises as `load` does."""
    values = _layers(environment, overrides)
    settings = _convert(values)
    return [
        Setting(
            name=name,
            value=masked(name, str(value)) if (value := getattr(settings, name)) is not None else "",
            meaning=_meaning(name),
            origin=_place(name, values[name][1]) if name in values else "default",
        )
        for name in Settings.__struct_fields__
    ]


def masked(name: str, value: str) -> str:
    """The setting's value with its secrets hidden, even in a malformed address."""
    if name == "key" or name.endswith(("password", "secret_key")):
        return HIDDEN
    address, mark, query = PASSWORD.sub(rf"\1\2:{HIDDEN}@", value).partition("?")
    return address + mark + PAIR.sub(_masked_pair, query)


def path(settings: Settings, name: str) -> Path:
    """The file or folder that the setting names. Raises InvalidError for a `~` that stands for nobody's folder."""
    try:
        return Path(getattr(settings, name)).expanduser()
    except RuntimeError:
        raise unusable(settings, name, "there is no such home folder. Write the whole path.") from None


def unusable(settings: Settings, name: str, why: str) -> InvalidError:
    """The error for a value of valid syntax that nothing can be done with; `why` ends with the way out."""
    shown = masked(name, str(getattr(settings, name)))
    return InvalidError([Fault(f"/{name}", f"{PREFIX}{name.upper()} is {shown!r}: {why}")])


def _masked_pair(pair: re.Match[str]) -> str:
    name, equals, _ = pair[0].partition("=")
    # What has no name may be the rest of a secret with an & in it.
    return pair[0] if equals and not SPEAKING.search(pair[0]) else f"{name if equals else ''}{equals}{HIDDEN}"


def _convert(values: Mapping[str, tuple[Any, str]]) -> Settings:
    try:
        settings = msgspec.convert({name: value for name, (value, _) in values.items()}, Settings, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).partition(" - at `$.")[2].partition("`")[0].partition(".")[0]
        value, origin = values[name]
        shown = masked(name, value) if isinstance(value, str) else value
        detail = f"{_place(name, origin)} is {shown!r}; write {_form(name)}."
        raise InvalidError([Fault(f"/{name}", detail)]) from None
    for name in PATHS:
        if (getattr(settings, name) or "").startswith("~"):
            path(settings, name)
    return settings


def _form(name: str) -> str:
    """What can be written, in words."""
    kind = get_type_hints(Settings, include_extras=True)[name]
    told: list[Meta] = []
    while get_origin(kind) not in {None, Literal}:
        told += getattr(kind, "__metadata__", ())
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        *others, last = get_args(kind)
        return f"{', '.join(others)} or {last}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return next(str(meta.extra[FORM]) for meta in told if meta.extra)
    low, high = (next(getattr(meta, end) for meta in told) for end in ("ge", "le"))
    return f"a {'whole ' if kind is int else ''}number from {low} to {high}"


def _meaning(name: str) -> str:
    hint = get_type_hints(Settings, include_extras=True)[name]
    return next(str(meta.description) for meta in hint.__metadata__ if meta.description)


def _layers(environment: Mapping[str, str], overrides: Mapping[str, object]) -> dict[str, tuple[Any, str]]:
    """The values given, each with its origin: the file, "environment" with the variable, or "command line"."""
    named = environment.get(f"{PREFIX}CONFIG")
    file = Path(named or FILE)
    values = {name: (value, str(file)) for name, value in _file(file, must_exist=bool(named)).items()}
    for name in Settings.__struct_fields__:
        # Files for containers write `NAME: ${NAME:-}`, which leaves a variable empty where nobody sets it.
        for variable in (UNPREFIXED.get(name, ""), PREFIX + name.upper()):
            if value := environment.get(variable):
                values[name] = (value, ENVIRONMENT + variable)
        if name in SECRETS and (named := environment.get(variable := f"{PREFIX}{name.upper()}_FILE")):
            values[name] = (_secret(name, variable, named, environment), ENVIRONMENT + variable)
    return values | {name: (value, "command line") for name, value in overrides.items() if value is not None}


def _file(file: Path, *, must_exist: bool) -> dict[str, Any]:
    if not must_exist and not file.exists():
        return {}
    try:
        values = tomllib.loads(file.expanduser().read_text("utf-8-sig"))
    except UnicodeDecodeError:
        raise _unreadable(file, "it is not UTF-8") from None
    except (OSError, RuntimeError, tomllib.TOMLDecodeError) as error:
        raise _unreadable(file, str(getattr(error, "strerror", None) or error)) from None
    if unknown := sorted(set(values) - set(Settings.__struct_fields__)):
        known = ", ".join(Settings.__struct_fields__)
        raise InvalidError([Fault("", f"{file} sets {unknown[0]}, which is no setting; there are {known}.")])
    return values


def _secret(name: str, variable: str, file: str, environment: Mapping[str, str]) -> str:
    if environment.get(PREFIX + name.upper()):
        plain = PREFIX + name.upper()
        raise InvalidError([Fault(f"/{name}", f"{plain} and {variable} are both set. Set one of them.")])
    try:
        value = Path(file).expanduser().read_text("utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, RuntimeError, ValueError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        detail = f"{variable} is {file!r}, which cannot be read: {reason}. Name a file that holds the secret alone."
        raise InvalidError([Fault(f"/{name}", detail)]) from None
    if not value:
        detail = f"{variable} is {file!r}, which is empty. Name a file that holds the secret alone."
        raise InvalidError([Fault(f"/{name}", detail)])
    return value


def _unreadable(file: Path, reason: str) -> InvalidError:
    way_out = f"Correct it as TOML in UTF-8, or name another with {PREFIX}CONFIG."
    return InvalidError([Fault("", f"The settings file {file} cannot be read: {reason}. {way_out}")])


def _place(name: str, origin: str) -> str:
    match origin:
        case variable if variable.startswith(ENVIRONMENT):
            return variable.removeprefix(ENVIRONMENT)
        case "command line":
            return "--" + name.replace("_", "-")
        case file:
            return f"{name} in {file}"
