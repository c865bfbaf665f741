"""bridge_worker.agent_settings: the customer's configuration as Deepgram gets it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bridge_shared.protocol.media import media
from bridge_worker.agent_settings import build

MULAW = media("raw/mulaw")
HISTORY = [
    {"type": "History", "role": "user", "content": "Where is my parcel?"},
    {"type": "History", "role": "assistant", "content": "Let me look."},
]


def config(**agent: Any) -> dict[str, Any]:
    return {
        "tags": ["a"],
        "experimental": True,
        "agent": {
            "language": "en",
            "greeting": "Hello!",
            "listen": {"provider": {"type": "deepgram", "model": "nova-3"}},
            "think": {"provider": {"type": "open_ai", "model": "gpt-4o-mini"}, "prompt": "Be kind."},
            "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
            **agent,
        },
    }


@pytest.mark.parametrize(
    ("token", "encoding", "rate"),
    [
        ("raw/mulaw", "mulaw", 8000),
        ("wav/mulaw", "mulaw", 8000),
        ("raw/lpcm16_8", "linear16", 8000),
        ("wav/lpcm16_8", "linear16", 8000),
        ("raw/lpcm16", "linear16", 16000),
        ("wav/lpcm16", "linear16", 16000),
        ("raw/lpcm16_24", "linear16", 24000),
        ("wav/lpcm16_24", "linear16", 24000),
    ],
)
def test_the_audio_follows_the_format_of_the_call_both_ways(token: str, encoding: str, rate: int):
    assert build(config(), media(token))["audio"] == {
        "input": {"encoding": encoding, "sample_rate": rate},
        "output": {"encoding": encoding, "sample_rate": rate, "container": "none"},
    }


def test_the_agent_may_speak_in_another_format_than_the_caller():
    assert build(config(), MULAW, media("raw/lpcm16_24"))["audio"] == {
        "input": {"encoding": "mulaw", "sample_rate": 8000},
        "output": {"encoding": "linear16", "sample_rate": 24000, "container": "none"},
    }


def test_type_and_audio_of_the_customer_are_replaced_whole():
    mine = {**config(), "type": "Other", "audio": {"input": {"encoding": "opus"}, "extra": 1}}
    settings = build(mine, MULAW)
    assert settings["type"] == "Settings"
    assert set(settings["audio"]) == {"input", "output"}


def test_everything_else_goes_out_as_it_is():
    mine = config()
    settings = build(mine, MULAW)
    assert {key: value for key, value in settings.items() if key not in ("type", "audio")} == mine


def test_the_customers_configuration_is_never_changed():
    mine = config(
        listen={"provider": {"model": "flux-general-en"}},
        think=[{"prompt": "p", "functions": [{"name": "f"}]}, {"provider": {}}],
        context={"messages": [{"type": "History", "role": "user", "content": "before"}]},
    )
    before = copy.deepcopy(mine)
    settings = build(mine, MULAW, history=HISTORY)
    settings["agent"]["think"][0]["functions"][0]["name"] = "changed"
    settings["agent"]["context"]["messages"][0]["content"] = "changed"
    settings["tags"].append("changed")
    assert mine == before


def test_an_empty_configuration_and_a_stored_agent_are_sent_as_they_are():
    assert set(build({}, MULAW)) == {"type", "audio"}
    for history in (None, HISTORY):
        assert build({"agent": "0f2d-uuid"}, MULAW, history=history)["agent"] == "0f2d-uuid"


# ── D10: flux needs version v2 ─────────────────────────────────────────────────────────────────────────────


def test_a_flux_listener_or_voice_without_a_version_gets_v2():
    flux = {"provider": {"type": "deepgram", "model": "flux-general-en"}}
    settings = build(config(listen=flux, speak=[flux, {"provider": {"model": "aura-2"}}]), MULAW)
    agent = settings["agent"]
    assert agent["listen"]["provider"] == {"type": "deepgram", "model": "flux-general-en", "version": "v2"}
    assert agent["speak"][0]["provider"]["version"] == "v2"
    assert "version" not in agent["speak"][1]["provider"]
    assert build(config(speak=flux), MULAW)["agent"]["speak"]["provider"]["version"] == "v2"


def test_a_version_that_is_there_stays_and_other_models_get_none():
    settings = build(config(listen={"provider": {"model": "flux-general-en", "version": "v9"}}), MULAW)
    assert settings["agent"]["listen"]["provider"]["version"] == "v9"
    assert "version" not in build(config(), MULAW)["agent"]["listen"]["provider"]
    assert "version" not in build(config(), MULAW)["agent"]["speak"]["provider"]


# ── D11: a fallback thinks like the first ──────────────────────────────────────────────────────────────────


def test_a_fallback_without_prompt_or_functions_gets_those_of_the_first():
    functions = [{"name": "look_up"}]
    think = [
        {"provider": {"model": "a"}, "prompt": "Be kind.", "functions": functions},
        {"provider": {"model": "b"}},
        {"provider": {"model": "c"}, "prompt": "Be short.", "functions": []},
    ]
    first, second, third = build(config(think=think), MULAW)["agent"]["think"]
    assert first == think[0]
    assert second == {"provider": {"model": "b"}, "prompt": "Be kind.", "functions": functions}
    assert third == think[2]


def test_a_fallback_gets_nothing_that_the_first_has_not():
    think = [{"provider": {"model": "a"}, "prompt": "p"}, {"provider": {"model": "b"}}]
    assert "functions" not in build(config(think=think), MULAW)["agent"]["think"][1]


# ── a connection that continues a conversation ─────────────────────────────────────────────────────────────


def test_a_new_conversation_greets():
    agent = build(config(), MULAW)["agent"]
    assert agent["greeting"] == "Hello!"
    assert "context" not in agent


def test_a_continued_conversation_brings_its_history_and_does_not_greet():
    agent = build(config(), MULAW, history=HISTORY)["agent"]
    assert agent["context"] == {"messages": HISTORY}
    assert "greeting" not in agent


def test_a_conversation_that_was_lost_before_a_word_does_not_greet_again():
    agent = build(config(), MULAW, history=[])["agent"]
    assert "greeting" not in agent
    assert "context" not in agent


@pytest.mark.parametrize("context", [None, {}, {"messages": None}, {"messages": []}])
def test_an_empty_context_of_the_customer_is_no_hindrance(context: dict[str, Any] | None):
    agent = build(config(context=context), MULAW, history=HISTORY)["agent"]
    assert agent["context"]["messages"] == HISTORY


def test_messages_that_the_customer_gave_come_before_the_history_and_other_keys_stay():
    before = {"type": "History", "role": "user", "content": "last week"}
    agent = build(config(context={"messages": [before], "more": 1}), MULAW, history=HISTORY)["agent"]
    assert agent["context"] == {"messages": [before, *HISTORY], "more": 1}
