"""The settings of a process: read once, validated, frozen; nothing reads the environment later.

`load` is the way in. Whatever it refuses becomes a `ConfigError` that names the environment variable, says what
is wrong with its value (never a secret) and what to do; the process then exits with 2.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import read_env_file

from bridge_shared.errors import ConfigError

Origin = Literal["default", "environment", "argument"]

PREFIX: Final = "BRIDGE_"
# Settings that other products read under the same name, so they carry no prefix.
_UNPREFIXED: Final = frozenset({"redis_url", "deepgram_api_key", "deepgram_url", "ac_token"})

# Kubernetes writes these for every Service of a namespace ("service links"). A Service called bridge-edge yields
# BRIDGE_EDGE_SERVICE_HOST and BRIDGE_EDGE_PORT_8080_TCP_ADDR; one called bridge even yields BRIDGE_PORT=tcp://…
_SERVICE_LINK_NAME: Final = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_SERVICE_LINK_VALUE: Final = ("tcp://", "udp://", "sctp://")


def env_name(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return field.upper() if field in _UNPREFIXED else PREFIX + field.upper()


def redact(url: str) -> str:
    """`url` with its passwords masked, fit for a log line."""
    head, separator, tail = url.partition("://")
    if not separator:
        head, tail = "", url
    authority, slash, rest = tail.partition("/")
    if "@" not in authority and "@" in rest:
        # A password with an unquoted slash in it: better to mask too much than half of it.
        authority, slash, rest = f"***@{rest.rpartition('@')[2]}", "", ""
    user, at, host = authority.rpartition("@")
    if ":" in user:
        user = user.partition(":")[0] + ":***"
    masked = f"{head}{separator}{user}{at}{host}{slash}{rest}"
    return re.sub(r"(?i)([?&](?:password|token|key)=)[^&#]*", r"\1***", masked)


def _wrong(problem: str, mend: str, setting: str = "") -> PydanticCustomError:
    context = {"problem": problem, "mend": mend, "setting": setting}
    return PydanticCustomError("bridge_setting", "{problem}. {mend}", context)


def _url(value: str, schemes: tuple[str, ...], example: str) -> str:
    """Check the outline of a URL that may name several hosts; what the path means is its reader's business."""
    mend = f"Set it like {example} or leave it unset"
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in schemes:
        raise _wrong(f"{redact(value)!r} does not begin with {' or '.join(s + '://' for s in schemes)}", mend)
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        raise _wrong(f"{redact(value)!r} has white space in it", mend)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    for host in authority.rpartition("@")[2].split(","):
        try:
            parts = urlsplit(f"//{host}")
            named, _ = parts.hostname, parts.port
        except ValueError:
            raise _wrong(f"the port in {redact(value)!r} is not between 0 and 65535", mend) from None
        if not named:
            raise _wrong(f"{redact(value)!r} names no host", mend)
    return value


def _redis_url(value: str) -> str:
    return _url(value, ("redis", "rediss", "redis+sentinel", "redis+cluster"), "redis://localhost:6379/0")


def _agent_url(value: str) -> str:
    return _url(value, ("wss", "ws"), "wss://agent.deepgram.com/v1/agent/converse")


def _issuer_url(value: str) -> str:
    mend = "Set it like https://login.example.com or leave it unset"
    _url(value, ("https", "http"), "https://login.example.com")
    if value.startswith("http://") and urlsplit(value).hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise _wrong(f"{redact(value)!r} would fetch signing keys over an open line", mend)
    return value


def _secret(value: SecretStr) -> SecretStr:
    """Secrets travel in HTTP headers; a line break from a file's end would break them in a way nobody finds."""
    text = value.get_secret_value().strip()
    if not text or re.search(r"[\x00-\x1f\x7f]", text):
        raise _wrong("its value is blank or has control characters in it", "Set it to the bare token or leave it unset")
    return SecretStr(text)


def _tokens(value: SecretStr) -> SecretStr:
    if not all(token.strip() for token in value.get_secret_value().split(",")):
        raise _wrong("one of its tokens is empty", "Separate tokens by single commas or leave it unset")
    return value


def _plain(value: str) -> str:
    if not value.strip() or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise _wrong(f"{value!r} is blank or has white space in it", "Write it without white space or leave it unset")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _fleet(value: str) -> str:
    """The name goes into Redis keys in braces, so it must hold none, and into the names of pods."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", value):
        raise _wrong(f"{value!r:.80} is no name for a fleet", "Set it to 1-40 of A-Z a-z 0-9 _ - or leave it unset")
    return value


RedisUrl = Annotated[str, AfterValidator(_redis_url)]
AgentUrl = Annotated[str, AfterValidator(_agent_url)]
IssuerUrl = Annotated[str, AfterValidator(_issuer_url)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Plain = Annotated[str, AfterValidator(_plain)]
FleetName = Annotated[str, AfterValidator(_fleet)]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]


def _setting(
    default: Any, help: str, unit: str = "", *, low: float | None = None, high: float | None = None, **more: Any
) -> Any:
    extra: dict[str, Any] = {"unit": unit, "low": low, "high": high}
    return Field(default, description=help, ge=low, le=high, json_schema_extra=extra, **more)


class Settings(BaseSettings):
    """Every setting. A field `worker_calls` is the variable ``BRIDGE_WORKER_CALLS``; four names have no prefix.

    Made by `load`, which turns pydantic's errors into `ConfigError`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        case_sensitive=True,
        env_ignore_empty=True,
        alias_generator=env_name,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # Redis
    redis_url: RedisUrl | None = _setting(None, "Redis; unset: `up` starts one of its own", repr=False)
    media_redis_url: RedisUrl | None = _setting(
        None, "a Redis of their own for the inboxes; unset: REDIS_URL", repr=False
    )
    redis_wait_seconds: float = _setting(
        60.0,
        "how long a pod that starts waits for a Redis that does not answer; then it exits with 2",
        "seconds",
        low=0,
        high=3600,
    )
    fleet: FleetName = _setting("fleet", "separates fleets that share one Redis")
    transcript_ttl: int = _setting(
        2_592_000, "how long transcripts and summaries stay", "seconds", low=60, high=315_360_000
    )

    # Deepgram
    deepgram_api_key: Secret | None = _setting(None, "Deepgram's API key; the APP's configuration comes first")
    deepgram_url: AgentUrl = _setting(
        "wss://agent.deepgram.com/v1/agent/converse", "the Voice Agent endpoint", repr=False
    )
    agent_limit: int | None = _setting(
        None,
        "agent connections of the whole fleet, beyond which new calls are refused; some are kept for takeovers",
        "connections",
        low=1,
        high=1_000_000,
    )
    agent_stall_seconds: float = _setting(
        10.0,
        "an agent that shows no sign of answering the caller is replaced, twice as late each time; 0: never",
        "seconds",
        low=0,
        high=600,
    )
    agent_open_timeout: float = _setting(6.0, "one try to open an agent connection", "seconds", low=0.5, high=60)

    agent_session_seconds: float = _setting(
        6600.0,
        "age at which an agent connection is replaced in a pause; Deepgram ends it at 7200",
        "seconds",
        low=1,
        high=7200,
    )

    # The door
    ac_token: Annotated[Secret, AfterValidator(_tokens)] | None = _setting(
        None, "bearer tokens that callers must show, separated by commas"
    )
    oidc_issuer: IssuerUrl | None = _setting(
        None, "issuer of OAuth 2.0 tokens (JWT) that open the door, beside AC_TOKEN if that is set"
    )
    oidc_audience: Plain | None = _setting(None, "audience that those tokens must name")
    oidc_refresh_seconds: float = _setting(
        300.0, "how often the issuer's keys are fetched anew", "seconds", low=1, high=86_400
    )
    oidc_outage_seconds: float = _setting(
        86_400.0, "how long the keys last while the issuer does not answer", "seconds", low=1, high=2_592_000
    )
    authenticate_timeout: float = _setting(
        5.0, "longest run of the APP's `authenticate`; then the caller is refused", "seconds", low=0.05, high=60
    )
    open_door: bool = _setting(False, "lets everyone in when no token and no issuer is set")
    host: Plain = _setting("0.0.0.0", "address to listen on, for callers and for the admin port")
    port: int | None = _setting(
        None, "port for callers, in place of those in the APP; unset: the APP's", low=1, high=65535
    )
    max_message_bytes: int = _setting(
        1_048_576,
        "largest message accepted from a caller; twice as large ones cost the socket",
        "bytes",
        low=4096,
        high=16_777_216,
    )
    messages_per_second: float = _setting(
        500.0, "messages read from one caller, after a burst of 4 s' worth", "messages/s", low=1, high=100_000
    )
    connections: int | None = _setting(
        None,
        "connections to one edge, half-open ones included; unset: 3 for each call",
        "connections",
        low=1,
        high=1_000_000,
    )
    connections_per_address: int | None = _setting(
        None, "of which from one address; unset: all, as behind a load balancer", "connections", low=1, high=1_000_000
    )
    handshake_timeout: float = _setting(
        10.0, "a connection is upgraded by then or dropped, `authenticate` included", "seconds", low=0.1, high=120
    )
    first_message_timeout: float = _setting(
        10.0, "a connection that has said nothing by then is closed", "seconds", low=0.1, high=60
    )
    initiate_timeout: float = _setting(
        10.0, "a connection that has named no call by then is closed", "seconds", low=0.1, high=60
    )

    # Administration
    admin_port: int = _setting(0, "port of /healthz, /readyz and /metrics; 0: a free one", low=0, high=65535)
    admin_token: Secret | None = _setting(None, "bearer token of the admin API /v1; unset: the API is closed")
    log_level: Level = _setting("INFO", "the least level of our own records")
    log_format: Literal["auto", "text", "json"] = _setting("auto", "auto: text on a terminal, JSON lines otherwise")

    # Pods
    role: Literal["edge", "worker"] | None = _setting(None, "what `python app.py` starts; unset: everything")
    worker_calls: int = _setting(100, "calls that one worker takes", "calls", low=1, high=100_000)
    edge_calls: int = _setting(500, "calls that one edge takes", "calls", low=1, high=100_000)
    drain_seconds: float = _setting(30.0, "time to give calls away after SIGTERM", "seconds", low=0, high=7200)
    accept_timeout: float = _setting(8.0, "a call without an agent by then is refused", "seconds", low=0.5, high=60)
    ask_again: str = _setting(
        "Sorry, could you say that again?", "what the agent says when a caller's words were lost with a worker"
    )
    failover_target: Plain | None = _setting(None, "where a call is transferred that cannot go on; unset: it is ended")

    app_stuck_seconds: float = _setting(
        120.0,
        "a pod whose APP has blocked its own event loop for so long is unhealthy, and drained by its restart; 0: never",
        "seconds",
        low=0,
        high=86_400,
    )

    # A call
    play_lead_ms: int = _setting(300, "how far playing may run ahead of real time", "milliseconds", low=20, high=5000)
    play_chunk_ms: int = _setting(100, "audio in one message to the caller", "milliseconds", low=10, high=1000)
    redact: str | None = _setting(
        None, "regular expressions, one a line: what they match in an utterance or a function call is never stored"
    )
    abort_prompts: bool = _setting(
        False,
        "on an interruption, send abortPrompts too; what VAIC does with it is unconfirmed",
    )
    start_hold_seconds: float = _setting(
        3.0, "longest wait for the caller's `start` before the greeting", "seconds", low=0, high=30
    )
    caller_silence_ms: int = _setting(
        100, "silence sent at once to the agent while the caller's stream is closed", "milliseconds", low=20, high=1000
    )
    linger_ms: float = _setting(
        10.0, "under load, how long audio waits for more of it on its way through Redis", "milliseconds", low=0, high=50
    )
    before_transfer_timeout: float = _setting(
        5.0, "longest run of a `before_transfer` handler; the transfer waits for it", "seconds", low=0.1, high=60
    )
    handler_timeout: float = _setting(30.0, "longest run of a handler of the APP", "seconds", low=0.1, high=3600)
    finish_timeout: float = _setting(30.0, "longest run of a `session_end` handler", "seconds", low=0.1, high=3600)
    lost_seconds: float = _setting(
        30.0, "how long a call goes on without its caller, or without an agent", "seconds", low=1, high=600
    )
    hangup_wait_seconds: float = _setting(8.0, "wait for the caller's end after a hang-up", "seconds", low=0, high=120)
    transfer_wait_seconds: float = _setting(
        60.0, "wait for the caller's end after a transfer", "seconds", low=0, high=600
    )
    last_words_seconds: float = _setting(
        10.0, "longest wait for the agent's sentence before a hang-up", "seconds", low=0, high=120
    )

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    secrets: ClassVar[frozenset[str]] = frozenset({"deepgram_api_key", "ac_token", "admin_token"})

    @property
    def ac_tokens(self) -> tuple[str, ...]:
        """The tokens of AC_TOKEN, of which a caller must show one; empty if it is unset."""
        if self.ac_token is None:
            return ()
        return tuple(token.strip() for token in self.ac_token.get_secret_value().split(","))

    def origin(self, field: str) -> Origin:
        """Where the value of a field came from."""
        return self._origins.get(field, "default")

    @property
    def deepgram_key(self) -> str | None:
        """The bare key of DEEPGRAM_API_KEY."""
        return None if self.deepgram_api_key is None else self.deepgram_api_key.get_secret_value()

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            missing, present = env_name("oidc_audience"), env_name("oidc_issuer")
            if self.oidc_issuer is None:
                missing, present = present, missing
            raise _wrong(
                f"is not set although {present} is", f"Set both or neither of {missing} and {present}", missing
            )
        if self.authenticate_timeout > self.handshake_timeout:
            longest = f"{env_name('handshake_timeout')}, {self.handshake_timeout:g}"
            raise _wrong(
                f"{self.authenticate_timeout:g} is more than {longest}",
                "Set it to at most that",
                env_name("authenticate_timeout"),
            )
        for line in (self.redact or "").splitlines():
            try:
                re.compile(line)
            except re.error as error:
                raise _wrong(f"{line!r} is no regular expression ({error})", "Mend it", env_name("redact")) from None
        if self.play_chunk_ms > self.play_lead_ms:
            raise _wrong(
                f"{self.play_chunk_ms} is more than {env_name('play_lead_ms')}, {self.play_lead_ms}",
                "Set it to at most that",
                env_name("play_chunk_ms"),
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)


class _Environment(EnvSettingsSource):
    """The environment without what Kubernetes puts into it."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {k: v for k, v in self.env_vars.items() if not _is_service_link(k, v or "")}


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting for a person: its variable, value (secrets masked), unit, default, where the value is from."""

    name: str
    value: str
    unit: str
    default: str
    origin: Origin
    help: str


def load(**overrides: object) -> Settings:
    """Read the environment; `overrides` (field name = value, None = not given) win over it.

    Raises:
        ConfigError: a value cannot be used, or there is a ``BRIDGE_`` variable that is no setting.
        TypeError: an override that is no field.
    """
    fields = Settings.model_fields
    if unknown := overrides.keys() - fields.keys():
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    names = {env_name(field): field for field in fields}
    _refuse_unknown(names)
    given = {env_name(field): value for field, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        raise _explain(error.errors()[0], names, given) from None
    for name, field in names.items():
        if name in given:
            settings._origins[field] = "argument"
        elif os.environ.get(name) and not _is_service_link(name, os.environ[name]):
            settings._origins[field] = "environment"
    return settings


def in_dotenv(name: str, folder: Path) -> bool:
    """Whether a file in this folder that calls `load_dotenv()` would find this variable in a ``.env``."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (file := place / ".env").is_file():
            return bool(read_env_file(file, case_sensitive=True).get(name))
    return False


def describe(settings: Settings) -> list[SettingRow]:
    """Every setting in the order of this file, secrets and passwords masked."""
    return [
        SettingRow(
            name=env_name(field),
            value=_shown(field, getattr(settings, field)),
            unit=_extra(info)["unit"],
            default=_shown(field, info.default),
            origin=settings.origin(field),
            help=info.description or "",
        )
        for field, info in Settings.model_fields.items()
    ]


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK_NAME.search(name)) or value.startswith(_SERVICE_LINK_VALUE)


def _refuse_unknown(names: dict[str, str]) -> None:
    for name, value in sorted(os.environ.items()):
        if not name.startswith(PREFIX) or name in names or _is_service_link(name, value):
            continue
        bare = {known.removeprefix(PREFIX): known for known in names}
        near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
        hint = f"Did you mean {bare[near[0]]}?" if near else "Unset it;"
        raise ConfigError(name, "there is no such setting", f"{hint} `bridgectl config` lists them all")


def _explain(error: ErrorDetails, names: dict[str, str], given: dict[str, object]) -> ConfigError:
    """pydantic's first complaint in our words."""
    context: dict[str, Any] = error.get("ctx", {})
    name = str(error["loc"][0]) if error["loc"] else str(context.get("setting", ""))
    if error["type"] == "bridge_setting":
        return ConfigError(context["setting"] or name, context["problem"], context["mend"])
    field = names[name]
    info = Settings.model_fields[field]
    value = "its value" if field in Settings.secrets else repr(str(given.get(name, os.environ.get(name, ""))))[:80]
    what, allowed = _complaint(error["type"], info)
    return ConfigError(name, f"{value} {what}", f"Set it to {allowed} or leave it unset")


def _complaint(kind: str, info: FieldInfo) -> tuple[str, str]:
    extra = _extra(info)
    if kind == "literal_error":
        words = [str(w) for arg in (info.annotation, *get_args(info.annotation)) for w in get_args(arg) if w]
        words = list(dict.fromkeys(w for w in words if w.isalpha()))
        return f"is not one of {', '.join(words)}", " or ".join([", ".join(words[:-1]), words[-1]])
    if kind.startswith("bool"):
        return "is neither true nor false", "true or false"
    allowed = f"{extra['low']}-{extra['high']}"
    if kind.startswith("int"):
        return "is not a whole number", allowed
    if kind.startswith(("float", "finite")):
        return "is not a number", allowed
    return "is out of range", allowed


def _extra(info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra
    assert isinstance(extra, dict)  # every field is made by _setting
    return extra


def _shown(field: str, value: object) -> str:
    if value is None:
        return ""
    if field in Settings.secrets:
        return "***"
    if isinstance(value, bool):
        return str(value).lower()
    return redact(value) if isinstance(value, str) and "://" in value else str(value)
