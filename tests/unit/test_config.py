"""bridge_shared.config: a bad value is named with its variable and its mend; secrets stay secret."""

from __future__ import annotations

import os
from typing import get_args

import pytest
from pydantic import ValidationError

from bridge_shared import config
from bridge_shared.errors import ConfigError

CONTRACT = [
    "REDIS_URL",
    "BRIDGE_MEDIA_REDIS_URL",
    "DEEPGRAM_API_KEY",
    "DEEPGRAM_URL",
    "AC_TOKEN",
    "BRIDGE_OIDC_ISSUER",
    "BRIDGE_OIDC_AUDIENCE",
    "BRIDGE_OPEN_DOOR",
    "BRIDGE_HOST",
    "BRIDGE_PORT",
    "BRIDGE_ADMIN_PORT",
    "BRIDGE_ADMIN_TOKEN",
    "BRIDGE_FLEET",
    "BRIDGE_WORKER_CALLS",
    "BRIDGE_EDGE_CALLS",
    "BRIDGE_AGENT_LIMIT",
    "BRIDGE_DRAIN_SECONDS",
    "BRIDGE_ACCEPT_TIMEOUT",
    "BRIDGE_FAILOVER_TARGET",
    "BRIDGE_TRANSCRIPT_TTL",
    "BRIDGE_ROLE",
    "BRIDGE_LOG_LEVEL",
    "BRIDGE_LOG_FORMAT",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {config.env_name(field) for field in config.Settings.model_fields}
    for name in [n for n in os.environ if n in names or n.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> ConfigError:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        config.load()
    return caught.value


def row(settings: config.Settings, name: str) -> config.SettingRow:
    return next(row for row in config.describe(settings) if row.name == name)


def test_the_variables_of_the_contract_are_all_there():
    assert set(CONTRACT) <= {row.name for row in config.describe(config.load())}


def test_defaults_are_within_their_own_bounds():
    """pydantic does not validate defaults; given as arguments they must pass."""
    defaults = {name: info.default for name, info in config.Settings.model_fields.items()}
    assert config.load(**defaults).model_dump() == config.load().model_dump()


def test_every_number_is_bounded_and_has_a_unit_or_says_what_it_is():
    for name, info in config.Settings.model_fields.items():
        kinds = {info.annotation, *get_args(info.annotation)} & {int, float}
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        if kinds:
            assert extra["low"] is not None and extra["high"] is not None, name
            assert extra["unit"] or "port" in name, name


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("BRIDGE_PORT", "abc", "'abc' is not a whole number. Set it to 1-65535 or leave it unset"),
        ("BRIDGE_PORT", "70000", "'70000' is out of range. Set it to 1-65535 or leave it unset"),
        ("BRIDGE_PORT", "0", "'0' is out of range. Set it to 1-65535 or leave it unset"),
        ("BRIDGE_WORKER_CALLS", "1.5", "'1.5' is not a whole number. Set it to 1-100000 or leave it unset"),
        ("BRIDGE_DRAIN_SECONDS", "soon", "'soon' is not a number. Set it to 0-7200 or leave it unset"),
        ("BRIDGE_DRAIN_SECONDS", "nan", "'nan' is not a number. Set it to 0-7200 or leave it unset"),
        ("BRIDGE_DRAIN_SECONDS", "-1", "'-1' is out of range. Set it to 0-7200 or leave it unset"),
        ("BRIDGE_OPEN_DOOR", "maybe", "'maybe' is neither true nor false. Set it to true or false or leave it unset"),
        ("BRIDGE_ROLE", "boss", "'boss' is not one of edge, worker. Set it to edge or worker or leave it unset"),
        (
            "BRIDGE_LOG_FORMAT",
            "xml",
            "'xml' is not one of auto, text, json. Set it to auto, text or json or leave it unset",
        ),
        (
            "DEEPGRAM_URL",
            "https://x",
            "'https://x' does not begin with wss:// or ws://. "
            "Set it like wss://agent.deepgram.com/v1/agent/converse or leave it unset",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_variable_and_its_mend(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
):
    error = refusal(monkeypatch, **{name: value})
    assert error.setting == name
    assert str(error) == f"{name}: {sentence}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "http://localhost"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://h:99999"),
        ("REDIS_URL", "redis://h h"),
        ("REDIS_URL", "redis+sentinel://a:1,:2/m"),
        ("DEEPGRAM_URL", "wss://"),
        ("BRIDGE_FLEET", "a b"),
        ("BRIDGE_FLEET", "{fleet}"),
        ("BRIDGE_FLEET", "fleet\n"),
        ("BRIDGE_FLEET", "x" * 41),
        ("BRIDGE_HOST", " "),
        ("BRIDGE_FAILOVER_TARGET", "tel: 1"),
        ("DEEPGRAM_API_KEY", "a\x01b"),
        ("AC_TOKEN", "a,,b"),
        ("AC_TOKEN", ","),
        ("AC_TOKEN", " "),
    ],
)
def test_what_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    assert refusal(monkeypatch, **{name: value}).setting == name


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:secret@localhost:6379/0",
        "rediss://user:secret@redis.example:6380/2?ssl_cert_reqs=required",
        "redis://[::1]:6379",
        "redis+sentinel://h1:26379,h2:26379/mymaster/0",
        "redis+cluster://h:7000",
    ],
)
def test_every_promised_kind_of_redis_url_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("REDIS_URL", url)
    assert config.load().redis_url == url


def test_a_misspelt_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch):
    error = refusal(monkeypatch, BRIDGE_PROT="1")
    assert str(error).startswith("BRIDGE_PROT: there is no such setting. Did you mean BRIDGE_PORT?")


def test_a_prefix_too_much_is_pointed_out(monkeypatch: pytest.MonkeyPatch):
    assert "Did you mean REDIS_URL?" in str(refusal(monkeypatch, BRIDGE_REDIS_URL="redis://h"))


def test_an_unknown_variable_with_no_near_name_is_refused_without_a_guess(monkeypatch: pytest.MonkeyPatch):
    assert "Did you mean" not in str(refusal(monkeypatch, BRIDGE_XYZZY="1"))


def test_what_kubernetes_sets_for_services_is_not_ours(monkeypatch: pytest.MonkeyPatch):
    """Service links of Services called bridge, bridge-edge and bridge-worker."""
    for name, value in {
        "BRIDGE_PORT": "tcp://10.0.0.1:80",
        "BRIDGE_SERVICE_HOST": "10.0.0.1",
        "BRIDGE_SERVICE_PORT": "80",
        "BRIDGE_EDGE_PORT": "tcp://10.0.0.2:8080",
        "BRIDGE_EDGE_SERVICE_HOST": "10.0.0.2",
        "BRIDGE_EDGE_SERVICE_PORT_HTTP": "8080",
        "BRIDGE_EDGE_PORT_8080_TCP": "tcp://10.0.0.2:8080",
        "BRIDGE_WORKER_PORT_9090_TCP_ADDR": "10.0.0.3",
        "BRIDGE_WORKER_PORT_9090_TCP_PROTO": "tcp",
        "BRIDGE_WORKER_PORT_53_UDP_PORT": "53",
    }.items():
        monkeypatch.setenv(name, value)
    settings = config.load()
    assert settings.port is None
    assert row(settings, "BRIDGE_PORT").origin == "default"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BRIDGE_PORT", "")
    monkeypatch.setenv("AC_TOKEN", "")
    settings = config.load()
    assert (settings.port, settings.ac_tokens) == (None, ())
    assert row(settings, "BRIDGE_PORT").origin == "default"


def test_an_argument_wins_over_the_environment_and_none_is_no_argument(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BRIDGE_PORT", "8001")
    monkeypatch.setenv("BRIDGE_FLEET", "blue")
    settings = config.load(port=8002, fleet=None)
    assert (settings.port, settings.fleet) == (8002, "blue")
    assert row(settings, "BRIDGE_PORT").origin == "argument"
    assert row(settings, "BRIDGE_FLEET").origin == "environment"
    assert row(settings, "BRIDGE_HOST").origin == "default"


def test_a_bad_argument_is_named_by_its_variable_too():
    with pytest.raises(ConfigError, match=r"BRIDGE_PORT: '0' is out of range"):
        config.load(port=0)


def test_an_override_that_is_no_field_is_our_bug():
    with pytest.raises(TypeError, match="prot"):
        config.load(prot=1)


def test_settings_are_frozen():
    settings = config.load()
    with pytest.raises(ValidationError):
        settings.port = 1


def test_tokens_are_split_for_rotation_and_bared_of_a_files_line_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AC_TOKEN", "new, old\n")
    assert config.load().ac_tokens == ("new", "old")


def test_log_level_may_be_written_small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BRIDGE_LOG_LEVEL", "debug")
    assert config.load().log_level == "DEBUG"


@pytest.mark.parametrize(
    ("have", "missing"),
    [("BRIDGE_OIDC_ISSUER", "BRIDGE_OIDC_AUDIENCE"), ("BRIDGE_OIDC_AUDIENCE", "BRIDGE_OIDC_ISSUER")],
)
def test_an_issuer_without_an_audience_or_the_other_way_round_is_refused(
    monkeypatch: pytest.MonkeyPatch, have: str, missing: str
):
    assert refusal(monkeypatch, **{have: "https://login.example"}).setting == missing


def test_keys_are_not_fetched_over_an_open_line(monkeypatch: pytest.MonkeyPatch):
    error = refusal(monkeypatch, BRIDGE_OIDC_ISSUER="http://login.example", BRIDGE_OIDC_AUDIENCE="bridge")
    assert error.setting == "BRIDGE_OIDC_ISSUER"


def test_a_chunk_longer_than_the_lead_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert refusal(monkeypatch, BRIDGE_PLAY_CHUNK_MS="301").setting == "BRIDGE_PLAY_CHUNK_MS"


SECRETS = {
    "DEEPGRAM_API_KEY": "hunter2",
    "AC_TOKEN": "hunter2,hunter22",
    "BRIDGE_ADMIN_TOKEN": "hunter2",
    "REDIS_URL": "redis://user:hunter2@host:6379/0",
    "BRIDGE_MEDIA_REDIS_URL": "redis://host?password=hunter2",
}


def test_no_secret_shows_in_a_description_or_a_repr(monkeypatch: pytest.MonkeyPatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = config.load()
    assert "hunter2" not in str(config.describe(settings)) + repr(settings) + str(settings)
    assert row(settings, "REDIS_URL").value == "redis://user:***@host:6379/0"
    assert row(settings, "AC_TOKEN").value == "***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEEPGRAM_API_KEY", "hunter2\x00"),
        ("AC_TOKEN", "hunter2,,x"),
        ("REDIS_URL", "http://u:hunter2@h"),
        ("REDIS_URL", "redis://:hunter2@h:99999"),
        ("REDIS_URL", "redis://:hunter2@"),
    ],
)
def test_no_secret_shows_in_a_refusal(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    if "\x00" in value:
        with pytest.raises(ConfigError) as caught:
            config.load(deepgram_api_key=value)
        error = caught.value
    else:
        error = refusal(monkeypatch, **{name: value})
    assert "hunter2" not in str(error) + repr(error) + repr(error.__cause__)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:p@h:1/0", "redis://u:***@h:1/0"),
        ("redis://:p@h", "redis://:***@h"),
        ("redis://:p@q@h", "redis://:***@h"),
        ("redis://:p/q@h/0", "redis://***@h/0"),
        ("redis://h?db=1&password=p&x=y", "redis://h?db=1&password=***&x=y"),
        ("u:p@h", "u:***@h"),
    ],
)
def test_redact_masks_passwords_and_nothing_else(url: str, masked: str):
    assert config.redact(url) == masked
