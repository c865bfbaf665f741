"""What an application has written and cannot work is told when its bridge begins to run."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from typing import Any

import pytest

from bridge_shared.errors import ConfigError
from bridge_shared.types import audiocodes, deepgram, extra
from deepgram_audiocodes_bridge import BridgeConfig, DeepgramBridge, checks


def config(**fields: Any) -> BridgeConfig:
    return BridgeConfig(deepgram_api_key="key", deepgram_config={}, **fields)


@pytest.mark.parametrize("port", ["abc", "", -1, 65536, "65536", 80.5, "8000 "])
def test_a_port_that_is_no_port_is_refused(port: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"BridgeConfig.port: {port!r} is not the number of a port. Set")):
        checks.check_door(config(port=port))


@pytest.mark.parametrize("port", [0, 8000, 65535, "8000"])
def test_a_port_that_the_original_takes_is_taken(port: Any) -> None:
    assert checks.port_number(config(port=port)) == int(port)


def test_a_token_that_is_no_text_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="of type int") as refusal:
        checks.check_door(config(ac_token=271828, name="desk"))
    assert str(refusal.value).startswith("BridgeConfig.ac_token (bridge desk): ")
    assert "271828" not in str(refusal.value)


def test_a_token_that_nobody_is_asked_for_is_not_looked_at() -> None:
    async def everybody(connection: object, request: object) -> None: ...

    checks.check_door(config(ac_token=5, authenticate=everybody))
    checks.check_door(config(ac_token=None))


@pytest.mark.parametrize("play", ["raw/lpcm", 16, ""])
def test_an_unknown_format_to_speak_in_is_refused_with_the_eight(play: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{play!r} is not a media format. ")) as refusal:
        checks.check_call(config(play_media_format=play))
    assert str(refusal.value).count("lpcm16") == 6 and str(refusal.value).count("/mulaw") == 2


def test_formats_that_are_preferred_need_not_be_known() -> None:
    checks.check_call(config(preferred_media_formats=("raw/opus", "raw/mulaw"), play_media_format="wav/mulaw"))


@pytest.mark.parametrize("name", ["a/b c", "a/b", "Büro", "a?b", "a%20b", "..", "desk\n", 5])
def test_a_name_that_no_path_can_say_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"BridgeConfig.name: {name!r} cannot be")):
        checks.check_call(config(name=name))


@pytest.mark.parametrize("name", [None, "", "parcel-desk", "desk.2_b", "support@night", "8000"])
def test_a_name_that_a_path_can_say_is_taken(name: str | None) -> None:
    checks.check_call(config(name=name))


def test_every_event_that_has_a_type_is_known() -> None:
    documented = {
        found[1]
        for module in (audiocodes, deepgram, extra)
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind) and (found := re.match(r"`([a-z_]+)`: ", kind.__doc__ or ""))
    }
    assert documented == checks.EVENTS


def warnings(caplog: pytest.LogCaptureFixture, bridge: DeepgramBridge) -> list[tuple[str, str | None]]:
    bridge._check_handlers()
    return [
        (vars(record)["event_name"], vars(record).get("did_you_mean") or vars(record).get("takes"))
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]


def test_an_event_that_never_fires_is_warned_of_once_with_the_nearest_name(caplog: pytest.LogCaptureFixture) -> None:
    bridge = DeepgramBridge(config())
    for event in ("session_ended", "session_ended", "invoice", "session_end"):
        bridge.on(event)(lambda session, event: None)
    assert warnings(caplog, bridge) == [("session_ended", "session_end"), ("invoice", None)]
    assert warnings(caplog, bridge) == [("session_ended", "session_end"), ("invoice", None)]


def test_what_is_registered_while_the_bridge_runs_is_warned_of_at_once(caplog: pytest.LogCaptureFixture) -> None:
    bridge = DeepgramBridge(config())
    bridge._check_handlers()
    bridge.on("session_ended")(lambda session: None)
    assert warnings(caplog, bridge) == [("session_ended", "session_end"), ("session_ended", "(session)")]


def test_a_handler_that_cannot_take_session_and_event_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    bridge = DeepgramBridge(config())

    @bridge.on("session_end")
    async def ended(event: object) -> None: ...

    @bridge.on("session_end")
    def kept(session: object, event: object, *, crm: object) -> None: ...

    bridge.on("session_start")(None)  # type: ignore[arg-type]
    assert warnings(caplog, bridge) == [
        ("session_end", "(event: 'object') -> 'None'"),
        ("session_end", "(session: 'object', event: 'object', *, crm: 'object') -> 'None'"),
        ("session_start", None),
    ]


def test_whatever_can_take_session_and_event_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Desk:
        def bound(self, session: object, event: object) -> None: ...

        def __call__(self, session: object, event: object, more: int = 1) -> None: ...

    def partly(crm: object, session: object, event: object) -> None: ...

    bridge = DeepgramBridge(config())
    for handler in (Desk().bound, Desk(), functools.partial(partly, 1), lambda *all: None, print):
        bridge.on("session_end")(handler)
    assert warnings(caplog, bridge) == []
