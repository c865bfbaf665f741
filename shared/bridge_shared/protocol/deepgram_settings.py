"""What a `Settings` message may say (Voice Agent reference §3), refused as strictly as the live service does.

Two verdicts, as there: what does not parse (an unknown key, a null, a wrong type) is `UNPARSABLE_CLIENT_MESSAGE`,
naming the field; what parses and is not allowed (a range, a combination) is `INVALID_SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from bridge_shared.errors import BridgeError
from bridge_shared.protocol.deepgram_schema import (
    AudioOutput,
    AwsCredentials,
    BedrockThink,
    DeepgramSpeak,
    ElevenLabsSpeak,
    FluxListenChange,
    GoogleThink,
    GroqThink,
    ListenChange,
    NovaListen,
    OneOrMoreSpeak,
    OneOrMoreThink,
    OpenAiSpeak,
    PollySpeak,
    Settings,
    Speak,
    Think,
)


class SettingsInvalid(BridgeError):
    """The server refuses this configuration. `code` and `description` are what its `Error` says."""

    def __init__(self, code: str, description: str) -> None:
        self.code, self.description = code, description
        super().__init__(f"{code}: {description}")


_THINK: TypeAdapter[Think | list[Think]] = TypeAdapter(OneOrMoreThink)
_SPEAK: TypeAdapter[Speak | list[Speak]] = TypeAdapter(OneOrMoreSpeak)
_SETTINGS = TypeAdapter(Settings)
_LISTEN_CHANGE = TypeAdapter(ListenChange)

# A value that parses and is out of its range is not allowed, rather than unparsable (§2, failures).
_RANGE_ERRORS = frozenset({"greater_than", "greater_than_equal", "less_than_equal"})

_RATES = {
    "v1": {
        "linear16": {0, 8000, 16000, 24000, 32000, 48000},
        "mulaw": {0, 8000, 16000},
        "alaw": {0, 8000, 16000},
        "mp3": {0, 22050},
        "opus": {0, 48000},
        "flac": {0, 8000, 16000, 22050, 32000, 48000},
        "aac": {0, 22050},
    },
    "v2": {
        "linear16": {0, 8000, 16000, 24000, 32000, 44100, 48000},
        "mulaw": {0, 8000, 16000},
        "alaw": {0, 8000, 16000},
    },
}
"""Output sample rates by speak version and encoding; 0 stands for a rate that was left out (§3.2)."""


def validate_settings(settings: object) -> None:
    """Check a whole `Settings` message.

    Raises:
        SettingsInvalid: with the code and description of the `Error` the service would send.
    """
    message = _parse(_SETTINGS, settings, "")
    if message.audio.input.encoding in _AMR and message.audio.input.sample_rate != _AMR[message.audio.input.encoding]:
        raise _refused("audio.input.sample_rate", "does not fit the encoding")
    if isinstance(message.agent, str):
        _check_stored(message.agent)
        return
    agent = message.agent
    _check_listen(agent.listen.provider, complete=True)
    _check_think(_several(agent.think))
    _check_speak(_several(agent.speak))
    _check_output(message.audio.output, _several(agent.speak))


def validate_think(think: object) -> None:
    """Check the `think` of an `UpdateThink`, like `validate_settings`."""
    _check_think(_several(_parse(_THINK, think, "think")))


def validate_speak(speak: object) -> None:
    """Check the `speak` of an `UpdateSpeak`, like `validate_settings`."""
    _check_speak(_several(_parse(_SPEAK, speak, "speak")))


def validate_listen(listen: object) -> None:
    """Check the `listen` of an `UpdateListen`, like `validate_settings`; what is left out keeps its value."""
    _check_listen(_parse(_LISTEN_CHANGE, listen, "listen").provider, complete=False)


_AMR = {"amr-nb": 8000, "amr-wb": 16000}
_T = TypeVar("_T")


def _several(value: _T | list[_T]) -> Sequence[_T]:
    return value if isinstance(value, list) else [value]


def _parse(adapter: TypeAdapter[_T], value: object, root: str) -> _T:
    try:
        return adapter.validate_python(value)
    except ValidationError as wrong:
        error = wrong.errors(include_url=False, include_context=False)[0]
        path = ".".join(filter(None, [root, *_path(value, error["loc"])])) or "type"
        if error["type"] in _RANGE_ERRORS:
            raise _refused(path, "is out of range") from None
        # The wording of the live service (§2); the input is not repeated, it may be a credential.
        raise SettingsInvalid(
            "UNPARSABLE_CLIENT_MESSAGE",
            f"Error parsing client message. Check the {path} field against the API spec.",
        ) from None


def _path(value: Any, location: Iterable[str | int]) -> list[str]:
    """The way to the field in the message itself: pydantic's location without the tags of the unions."""
    *way, last = tuple(location) or ("",)
    path: list[str] = []
    for step in way:
        if _holds(value, step):
            value = value[step]
            path.append(str(step))
    # The last step may be a missing key, or once more only a tag.
    named = isinstance(value, dict) or _holds(value, last)
    return [*path, str(last)] if named and last != "" else path


def _holds(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def _refused(path: str, problem: str) -> SettingsInvalid:
    return SettingsInvalid("INVALID_SETTINGS", f"The value of {path} {problem}.")


def _check_stored(agent_id: str) -> None:
    try:
        UUID(agent_id)
    except ValueError:
        raise SettingsInvalid("INVALID_AGENT_ID", "There is no agent with this id.") from None


def _check_listen(provider: NovaListen | FluxListenChange, *, complete: bool) -> None:
    if isinstance(provider, NovaListen):
        if provider.model.startswith("flux-"):
            raise _refused("agent.listen.provider.model", 'is a v2 model; send version "v2" with it')
        return
    if (complete or provider.model) and not provider.model.startswith("flux-"):
        raise _refused("agent.listen.provider.model", "is not a v2 model")
    hints = provider.language_hints or provider.language_hint
    if hints and provider.model and provider.model != "flux-general-multi":
        raise _refused("agent.listen.provider.language_hints", "is only for flux-general-multi")
    given = provider.model_fields_set
    if "eager_eot_threshold" in given and provider.eager_eot_threshold > provider.eot_threshold:
        raise _refused("agent.listen.provider.eager_eot_threshold", "is above eot_threshold")


def _check_think(elements: Sequence[Think]) -> None:
    for think in elements:
        own_endpoint = "endpoint" in think.model_fields_set
        provider = think.provider
        if isinstance(provider, GroqThink | BedrockThink) and not own_endpoint:
            raise _refused("agent.think.endpoint", f"is required for {provider.type}")
        if isinstance(provider, GoogleThink) and not provider.model and not own_endpoint:
            raise _refused("agent.think.provider.model", "is required without a custom endpoint")
        if isinstance(provider, BedrockThink):
            _check_credentials("agent.think.provider.credentials", provider.credentials)
        if "context_length" in think.model_fields_set and not own_endpoint:
            raise _refused("agent.think.context_length", "is only for a custom endpoint")
        for function in think.functions:
            if any("filler" in name for name in function.model_fields_set):
                raise _refused("agent.think.functions", "has fillers, which need Think Live")


def _check_speak(elements: Sequence[Speak]) -> None:
    for speak in elements:
        provider = speak.provider
        if isinstance(provider, ElevenLabsSpeak | OpenAiSpeak) and "endpoint" not in speak.model_fields_set:
            raise _refused("agent.speak.endpoint", f"is required for {provider.type}")
        if isinstance(provider, DeepgramSpeak):
            if "endpoint" in speak.model_fields_set:
                raise _refused("agent.speak.endpoint", "is not for deepgram voices")
            flux = provider.model.startswith("flux-")
            if flux != (provider.version == "v2"):
                raise _refused("agent.speak.provider.model", f"is not a {provider.version} voice")
            if "expressivity" in provider.model_fields_set and not flux:
                raise _refused("agent.speak.provider.expressivity", "is only for flux voices")
        if isinstance(provider, PollySpeak):
            _check_credentials("agent.speak.provider.credentials", provider.credentials)
            if not (provider.language or provider.language_code):
                raise _refused("agent.speak.provider.language", "is required for aws_polly")


def _check_credentials(path: str, credentials: AwsCredentials) -> None:
    if ("session_token" in credentials.model_fields_set) != (credentials.type == "sts"):
        raise _refused(f"{path}.session_token", "goes with type sts, and only with it")


def _check_output(output: AudioOutput, voices: Sequence[Speak]) -> None:
    """The table of §3.2, for each Deepgram voice that may come to speak. Other vendors' voices are not tabled."""
    for voice in voices:
        if not isinstance(voice.provider, DeepgramSpeak):
            continue
        version = voice.provider.version
        rates = _RATES[version].get(output.encoding)
        if rates is None:
            raise _refused("audio.output.encoding", f"is not available with {voice.provider.model}")
        if output.sample_rate not in rates:
            raise _refused("audio.output.sample_rate", f"is not available for {output.encoding} with this voice")
        raw = output.encoding in ("linear16", "mulaw", "alaw")
        if output.bitrate and (raw or version == "v2"):
            raise _refused("audio.output.bitrate", "is only for compressed encodings")
        if output.encoding == "opus" and output.container not in ("ogg",):
            raise _refused("audio.output.container", "must be ogg for opus")
        if version == "v2" and output.container != "none":
            raise _refused("audio.output.container", "must be none with a flux voice")
        if raw and output.container == "ogg":
            raise _refused("audio.output.container", f"cannot hold {output.encoding}")
