"""The shape of a `Settings` message (Voice Agent reference §3), key by key, as strict as the live service's parser.

Optional fields have defaults that are not None, so that an explicit null never passes; whether a field was given is
what `model_fields_set` says. Where sources disagree (§8.2) the wider variant is allowed. What may be combined with what
is in deepgram_settings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag


class Strict(BaseModel):
    """No unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


# ── audio (§3.2) ─────────────────────────────────────────────────────────────────────────────────────────────────────


class AudioInput(Strict):
    encoding: Literal[
        "linear16",
        "linear32",
        "flac",
        "alaw",
        "mulaw",
        "amr-nb",
        "amr-wb",
        "opus",
        "ogg-opus",
        "speex",
        "g729",
    ]
    sample_rate: Annotated[int, Field(ge=1)]


class AudioOutput(Strict):
    encoding: Literal["linear16", "mulaw", "alaw", "mp3", "opus", "flac", "aac"] = "linear16"
    sample_rate: Annotated[int, Field(ge=1)] = 0
    bitrate: Annotated[int, Field(ge=1)] = 0
    container: Literal["none", "wav", "ogg"] = "none"


class Audio(Strict):
    input: AudioInput = AudioInput(encoding="linear16", sample_rate=24000)
    output: AudioOutput = AudioOutput()


# ── listen (§3.4) ────────────────────────────────────────────────────────────────────────────────────────────────────


class NovaListen(Strict):
    type: Literal["deepgram"]
    version: Literal["v1"] = "v1"
    model: str = ""
    language: str = ""
    keyterms: list[str] = []
    smart_format: bool = False


class FluxListenChange(Strict):
    """In `UpdateListen` what is left out keeps its value (§4.1), so only the provider must be named."""

    type: Literal["deepgram"]
    version: Literal["v2"]
    model: str = ""
    language_hints: list[str] = []
    language_hint: list[str] | str = ""
    keyterms: list[str] = []
    eot_threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.7
    eager_eot_threshold: Annotated[float, Field(ge=0.3, le=0.9)] = 0.3
    eot_timeout_ms: Annotated[int, Field(ge=1)] = 5000


class FluxListen(FluxListenChange):
    model: str


def _version(provider: object) -> str:
    found = provider.get("version", "v1") if isinstance(provider, dict) else getattr(provider, "version", "v1")
    return found if isinstance(found, str) else ""


class Listen(Strict):
    provider: Annotated[
        Annotated[NovaListen, Tag("v1")] | Annotated[FluxListen, Tag("v2")], Discriminator(_version)
    ] = NovaListen(type="deepgram")


class ListenChange(Strict):
    provider: Annotated[
        Annotated[NovaListen, Tag("v1")] | Annotated[FluxListenChange, Tag("v2")], Discriminator(_version)
    ]


# ── think (§3.5) ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Endpoint(Strict):
    url: str
    headers: dict[str, str] = {}


class FunctionEndpoint(Endpoint):
    method: str = "POST"


class Function(Strict):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    endpoint: FunctionEndpoint = FunctionEndpoint(url="")
    defer_until_eot: bool = False
    initial_agent_filler: bool = False
    agent_filler_max_count: int = 0
    agent_filler_interval_ms: int = 0


Temperature = Annotated[float, Field(ge=0, le=2)]
Reasoning = Literal["none", "minimal", "low", "medium", "high"]


class OpenAiThink(Strict):
    type: Literal["open_ai"]
    model: str
    version: Literal["v1"] = "v1"
    temperature: Temperature = 1
    reasoning_mode: Reasoning = "none"


class AnthropicThink(Strict):
    type: Literal["anthropic"]
    model: str
    version: Literal["v1"] = "v1"
    temperature: Annotated[float, Field(ge=0, le=1)] = 1


class GoogleThink(Strict):
    type: Literal["google"]
    model: str = ""
    version: Literal["ai-studio-v1beta", "gemini-enterprise-agent-v1", "v1beta"] = "v1beta"
    temperature: Temperature = 1


class NvidiaThink(Strict):
    type: Literal["nvidia"]
    model: str
    temperature: Temperature = 1


class GroqThink(Strict):
    type: Literal["groq"]
    model: str
    version: Literal["v1"] = "v1"
    temperature: Temperature = 1
    reasoning_mode: Reasoning = "none"


class AwsCredentials(Strict):
    type: Literal["iam", "sts"]
    region: str
    access_key_id: str
    secret_access_key: str
    session_token: str = ""


class BedrockThink(Strict):
    type: Literal["aws_bedrock"]
    model: str
    temperature: Temperature = 1
    credentials: AwsCredentials


class Think(Strict):
    provider: Annotated[
        OpenAiThink | AnthropicThink | GoogleThink | NvidiaThink | GroqThink | BedrockThink, Discriminator("type")
    ]
    endpoint: Endpoint = Endpoint(url="")
    prompt: str = ""
    functions: list[Function] = []
    context_length: Annotated[float, Field(gt=0)] | Literal["max"] = "max"


# ── speak (§3.6) ─────────────────────────────────────────────────────────────────────────────────────────────────────


class DeepgramSpeak(Strict):
    type: Literal["deepgram"]
    model: str
    version: Literal["v1", "v2"] = "v1"
    speed: float = 1.0
    expressivity: Annotated[int, Field(ge=-2, le=2)] = 0


class ElevenLabsSpeak(Strict):
    type: Literal["eleven_labs"]
    model_id: str
    version: str = ""
    language: str = ""
    language_code: str = ""


class CartesiaVoice(Strict):
    mode: str
    id: str


class CartesiaSpeak(Strict):
    type: Literal["cartesia"]
    model_id: str
    voice: CartesiaVoice
    version: str = ""
    language: str = ""
    volume: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    speed: float | str = 1.0


class OpenAiSpeak(Strict):
    type: Literal["open_ai"]
    model: str
    voice: str
    version: str = ""


class PollySpeak(Strict):
    type: Literal["aws_polly"]
    voice: str
    language: str = ""
    language_code: str = ""
    engine: str
    credentials: AwsCredentials


class Speak(Strict):
    provider: Annotated[
        DeepgramSpeak | ElevenLabsSpeak | CartesiaSpeak | OpenAiSpeak | PollySpeak, Discriminator("type")
    ]
    endpoint: Endpoint = Endpoint(url="")


# ── context (§3.7) and the whole ─────────────────────────────────────────────────────────────────────────────────────


class TurnItem(Strict):
    type: Literal["History"]
    role: Literal["user", "assistant"]
    content: str


class CallRecord(Strict):
    id: str
    name: str
    client_side: bool
    arguments: str
    response: str
    thought_signature: str = ""


class CallsItem(Strict):
    type: Literal["History"]
    function_calls: list[CallRecord]


def _item_shape(item: object) -> str:
    calls = "function_calls" in item if isinstance(item, dict) else isinstance(item, CallsItem)
    return "calls" if calls else "turn"


class Context(Strict):
    messages: list[
        Annotated[Annotated[TurnItem, Tag("turn")] | Annotated[CallsItem, Tag("calls")], Discriminator(_item_shape)]
    ]


def _shape(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


def _is_text(value: object) -> str:
    return "stored" if isinstance(value, str) else "inline"


OneOrMoreThink = Annotated[
    Annotated[Think, Tag("one")] | Annotated[list[Think], Tag("several"), Field(min_length=1)], Discriminator(_shape)
]
OneOrMoreSpeak = Annotated[
    Annotated[Speak, Tag("one")] | Annotated[list[Speak], Tag("several"), Field(min_length=1)], Discriminator(_shape)
]

# Flux TTS when `speak` is left out (§3.3), so only raw output formats.
_DEFAULT_SPEAK = Speak(provider=DeepgramSpeak(type="deepgram", version="v2", model="flux-kit-en"))


class Agent(Strict):
    """`think_live` (§3.8) is not a field: a project that is not enrolled gets UNPARSABLE_CLIENT_MESSAGE."""

    listen: Listen = Listen()
    think: OneOrMoreThink = []
    speak: OneOrMoreSpeak = _DEFAULT_SPEAK
    greeting: str = ""
    context: Context = Context(messages=[])
    language: str = ""


class Flags(Strict):
    history: bool = True


class Settings(Strict):
    type: Literal["Settings"]
    audio: Audio
    agent: Annotated[Annotated[Agent, Tag("inline")] | Annotated[str, Tag("stored")], Discriminator(_is_text)]
    tags: list[str] = []
    flags: Flags = Flags()
    mip_opt_out: bool = False
    experimental: bool = False
