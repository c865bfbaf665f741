"""The agent half of the public types: the agent's configuration and the events it causes.

Names, keys, literals and field order are a promise to applications written for the original SDK
(sdk-public-api §5, §8.2, §8.3); what is marked "ours" are keys and values that the Voice Agent knows
and the original's types do not (§12.2 D13). An open literal (`… | str`) takes any string: its members
only help editors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NotRequired, TypeAlias, TypedDict

__all__ = [
    "AgentAudioDoneEvent",
    "AgentThinkingEvent",
    "AwsCredentials",
    "AwsPollySpeakEngine",
    "AwsPollySpeakVoice",
    "CartesiaSpeakModelId",
    "CartesiaSpeakVoice",
    "ConversationTextEvent",
    "CustomEndpoint",
    "DeepgramAgent",
    "DeepgramAgentConfig",
    "DeepgramAudio",
    "DeepgramAudioInput",
    "DeepgramAudioOutput",
    "DeepgramConfig",
    "DeepgramFunction",
    "DeepgramFunctionParameterProperty",
    "DeepgramFunctionParameters",
    "DeepgramListen",
    "DeepgramSpeak",
    "DeepgramSpeakModel",
    "DeepgramSpeakProvider",
    "DeepgramSpeakProviderAwsPolly",
    "DeepgramSpeakProviderCartesia",
    "DeepgramSpeakProviderDeepgram",
    "DeepgramSpeakProviderElevenLabs",
    "DeepgramSpeakProviderOpenAI",
    "DeepgramThink",
    "DeepgramThinkAnthropicModel",
    "DeepgramThinkBedrockModel",
    "DeepgramThinkGoogleModel",
    "DeepgramThinkGroqModel",
    "DeepgramThinkOpenAIModel",
    "DeepgramThinkProvider",
    "DeepgramThinkProviderAnthropic",
    "DeepgramThinkProviderAwsBedrock",
    "DeepgramThinkProviderGoogle",
    "DeepgramThinkProviderGroq",
    "DeepgramThinkProviderOpenAI",
    "ElevenLabsSpeakModelId",
    "FunctionCall",
    "FunctionCallRequestEvent",
    "OpenAISpeakModel",
    "OpenAISpeakVoice",
    "PromptUpdatedEvent",
    "SpeakUpdatedEvent",
    "ThinkUpdatedEvent",
    "UserStartedSpeakingEvent",
    "WarningEvent",
]

# Models and voices ------------------------------------------------------------------------------

DeepgramThinkOpenAIModel: TypeAlias = (
    Literal[
        "gpt-5.4",
        "gpt-5.4-mini",
        "gpt-5.4-nano",
        "gpt-5.3-chat-latest",
        "gpt-5.2",
        "gpt-5.2-chat-latest",
        "gpt-5.1",
        "gpt-5.1-chat-latest",
        "gpt-5",
        "gpt-5-mini",
        "gpt-5-nano",
        "gpt-4.1",
        "gpt-4.1-mini",
        "gpt-4.1-nano",
        "gpt-4o",
        "gpt-4o-mini",
    ]
    | str
)

DeepgramThinkAnthropicModel: TypeAlias = (
    Literal[
        "claude-4-5-haiku-latest",
        "claude-sonnet-4-6",
        "claude-sonnet-4-5",
        "claude-3-5-haiku-latest",
        "claude-sonnet-4-20250514",
    ]
    | str
)

DeepgramThinkGoogleModel: TypeAlias = (
    Literal[
        "gemini-3.1-flash-lite-preview",
        "gemini-3-pro-preview",
        "gemini-3-flash-preview",
        "gemini-2.5-flash",
        "gemini-2.5-flash-lite",
        "gemini-2.0-flash",
    ]
    | str
)

DeepgramThinkGroqModel: TypeAlias = Literal["openai/gpt-oss-20b"] | str

DeepgramThinkBedrockModel: TypeAlias = (
    Literal[
        "anthropic/claude-3-5-sonnet-20240620-v1:0",
        "anthropic/claude-3-5-haiku-20240307-v1:0",
    ]
    | str
)

DeepgramSpeakModel: TypeAlias = (
    Literal[
        "aura-angus-en",
        "aura-arcas-en",
        "aura-asteria-en",
        "aura-athena-en",
        "aura-helios-en",
        "aura-hera-en",
        "aura-luna-en",
        "aura-orion-en",
        "aura-orpheus-en",
        "aura-perseus-en",
        "aura-stella-en",
        "aura-zeus-en",
        "aura-2-amalthea-en",
        "aura-2-andromeda-en",
        "aura-2-apollo-en",
        "aura-2-arcas-en",
        "aura-2-aries-en",
        "aura-2-asteria-en",
        "aura-2-athena-en",
        "aura-2-atlas-en",
        "aura-2-aurora-en",
        "aura-2-callista-en",
        "aura-2-cora-en",
        "aura-2-cordelia-en",
        "aura-2-delia-en",
        "aura-2-draco-en",
        "aura-2-electra-en",
        "aura-2-harmonia-en",
        "aura-2-helena-en",
        "aura-2-hera-en",
        "aura-2-hermes-en",
        "aura-2-hyperion-en",
        "aura-2-iris-en",
        "aura-2-janus-en",
        "aura-2-juno-en",
        "aura-2-jupiter-en",
        "aura-2-luna-en",
        "aura-2-mars-en",
        "aura-2-minerva-en",
        "aura-2-neptune-en",
        "aura-2-odysseus-en",
        "aura-2-ophelia-en",
        "aura-2-orion-en",
        "aura-2-orpheus-en",
        "aura-2-pandora-en",
        "aura-2-phoebe-en",
        "aura-2-pluto-en",
        "aura-2-saturn-en",
        "aura-2-selene-en",
        "aura-2-thalia-en",
        "aura-2-theia-en",
        "aura-2-vesta-en",
        "aura-2-zeus-en",
        "aura-2-alvaro-es",
        "aura-2-aquila-es",
        "aura-2-carina-es",
        "aura-2-celeste-es",
        "aura-2-diana-es",
        "aura-2-estrella-es",
        "aura-2-javier-es",
        "aura-2-nestor-es",
        "aura-2-selena-es",
        "aura-2-sirio-es",
        "flux-kit-en",  # ours: the default voice of version v2
    ]
    | str
)

ElevenLabsSpeakModelId: TypeAlias = (
    Literal["eleven_turbo_v2_5", "eleven_monolingual_v1", "eleven_multilingual_v2"] | str
)
CartesiaSpeakModelId: TypeAlias = Literal["sonic-2", "sonic-multilingual"] | str
OpenAISpeakModel: TypeAlias = Literal["tts-1", "tts-1-hd"] | str
OpenAISpeakVoice: TypeAlias = Literal["alloy", "echo", "fable", "onyx", "nova", "shimmer"] | str
AwsPollySpeakVoice: TypeAlias = Literal["Matthew", "Joanna", "Amy", "Emma", "Brian", "Arthur", "Aria", "Ayanda"] | str
AwsPollySpeakEngine: TypeAlias = Literal["generative", "long-form", "standard", "neural"] | str

# Endpoints and functions ------------------------------------------------------------------------


class CustomEndpoint(TypedDict, total=False):
    """An HTTP(S) or WebSocket endpoint of your own that Deepgram calls."""

    url: str
    headers: dict[str, str]
    method: str  # ours: for functions that Deepgram calls


class AwsCredentials(TypedDict):
    """`session_token` belongs to `sts` only."""

    type: Literal["sts", "iam"]
    region: str
    access_key_id: str
    secret_access_key: str
    session_token: NotRequired[str]


class DeepgramFunctionParameterProperty(TypedDict, total=False):
    """One argument of a function, in JSON Schema words."""

    type: str
    description: str
    enum: list[str]


class DeepgramFunctionParameters(TypedDict, total=False):
    """The arguments of a function, in JSON Schema words."""

    type: Literal["object"]
    properties: dict[str, DeepgramFunctionParameterProperty]
    required: list[str]


class DeepgramFunction(TypedDict):
    """A function the agent may call: here if it has no `endpoint`, otherwise by Deepgram itself.

    `defer_until_eot` holds the call back until the caller's turn is certain. Set it on whatever cannot
    be undone: without it the agent calls while it still guesses, and may call again.
    """

    name: str
    description: str
    parameters: NotRequired[DeepgramFunctionParameters]
    endpoint: NotRequired[CustomEndpoint]
    defer_until_eot: NotRequired[bool]  # ours


# Thinking ---------------------------------------------------------------------------------------


class DeepgramThinkProviderOpenAI(TypedDict):
    """`temperature` 0–2. Also any gateway that speaks the same protocol, by `DeepgramThink.endpoint`."""

    type: Literal["open_ai"]
    model: DeepgramThinkOpenAIModel
    version: NotRequired[Literal["v1"]]
    temperature: NotRequired[float]
    reasoning_mode: NotRequired[Literal["none", "minimal", "low", "medium", "high"]]  # ours


class DeepgramThinkProviderAnthropic(TypedDict):
    """`temperature` 0–1."""

    type: Literal["anthropic"]
    model: DeepgramThinkAnthropicModel
    version: NotRequired[Literal["v1"]]
    temperature: NotRequired[float]


class DeepgramThinkProviderGoogle(TypedDict):
    """`temperature` 0–2."""

    type: Literal["google"]
    model: DeepgramThinkGoogleModel
    version: NotRequired[Literal["v1beta", "ai-studio-v1beta", "gemini-enterprise-agent-v1"]]  # the last two: ours
    temperature: NotRequired[float]


class DeepgramThinkProviderGroq(TypedDict):
    """`temperature` 0–2. Needs `DeepgramThink.endpoint`."""

    type: Literal["groq"]
    model: DeepgramThinkGroqModel
    version: NotRequired[Literal["v1"]]
    temperature: NotRequired[float]
    reasoning_mode: NotRequired[Literal["none", "minimal", "low", "medium", "high"]]  # ours


class DeepgramThinkProviderAwsBedrock(TypedDict):
    """`temperature` 0–2. Needs `DeepgramThink.endpoint`."""

    type: Literal["aws_bedrock"]
    model: DeepgramThinkBedrockModel
    credentials: AwsCredentials
    temperature: NotRequired[float]


DeepgramThinkProvider: TypeAlias = (
    DeepgramThinkProviderOpenAI
    | DeepgramThinkProviderAnthropic
    | DeepgramThinkProviderGoogle
    | DeepgramThinkProviderGroq
    | DeepgramThinkProviderAwsBedrock
)


class DeepgramThink(TypedDict, total=False):
    """The language model. `context_length` is in characters and only for an `endpoint` of your own."""

    provider: DeepgramThinkProvider
    prompt: str
    context_length: int | Literal["max"]
    endpoint: CustomEndpoint
    functions: list[DeepgramFunction]


# Speaking ---------------------------------------------------------------------------------------


class CartesiaSpeakVoice(TypedDict):
    """`mode` is `id`, and `id` the voice's own."""

    mode: str
    id: str


class DeepgramSpeakProviderDeepgram(TypedDict):
    """`speed` 0.7–1.5. `version` is `v1` for `aura-*` and `v2` for `flux-*` voices."""

    type: Literal["deepgram"]
    model: DeepgramSpeakModel
    version: NotRequired[Literal["v1", "v2"]]  # v2: ours
    speed: NotRequired[float]
    expressivity: NotRequired[int]  # ours: -2 to 2, v2 only


class DeepgramSpeakProviderElevenLabs(TypedDict):
    """Needs `DeepgramSpeak.endpoint`. `language_code` is the old name of `language`."""

    type: Literal["eleven_labs"]
    model_id: ElevenLabsSpeakModelId
    version: NotRequired[Literal["v1"]]
    language: NotRequired[str]
    language_code: NotRequired[str]


class DeepgramSpeakProviderCartesia(TypedDict):
    """`volume` 0.5–2.0."""

    type: Literal["cartesia"]
    model_id: CartesiaSpeakModelId
    voice: CartesiaSpeakVoice
    version: NotRequired[Literal["2025-03-17"]]
    language: NotRequired[str]
    volume: NotRequired[float]
    speed: NotRequired[float]  # ours


class DeepgramSpeakProviderOpenAI(TypedDict):
    """Needs `DeepgramSpeak.endpoint`."""

    type: Literal["open_ai"]
    model: OpenAISpeakModel
    voice: OpenAISpeakVoice
    version: NotRequired[Literal["v1"]]


class DeepgramSpeakProviderAwsPolly(TypedDict):
    """Needs `DeepgramSpeak.endpoint`. `language_code` is the old name of `language`."""

    type: Literal["aws_polly"]
    voice: AwsPollySpeakVoice
    language: str
    engine: AwsPollySpeakEngine
    credentials: AwsCredentials
    language_code: NotRequired[str]


DeepgramSpeakProvider: TypeAlias = (
    DeepgramSpeakProviderDeepgram
    | DeepgramSpeakProviderElevenLabs
    | DeepgramSpeakProviderCartesia
    | DeepgramSpeakProviderOpenAI
    | DeepgramSpeakProviderAwsPolly
)


class DeepgramSpeak(TypedDict):
    """The agent's voice."""

    provider: DeepgramSpeakProvider
    endpoint: NotRequired[CustomEndpoint]


# The whole configuration ------------------------------------------------------------------------


class DeepgramListen(TypedDict, total=False):
    """Speech recognition: `{"type": "deepgram", "model": …}`; a `flux-*` model gets `version: "v2"` from us."""

    provider: dict[str, object]


class DeepgramAgent(TypedDict, total=False):
    """What the agent hears with, thinks with and speaks with. A list of providers is tried in its order."""

    language: str
    context: dict[str, object]
    listen: DeepgramListen
    think: DeepgramThink | list[DeepgramThink]
    speak: DeepgramSpeak | list[DeepgramSpeak]
    greeting: str


class DeepgramAudioInput(TypedDict, total=False):
    """`sample_rate` in Hz."""

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
    sample_rate: int


class DeepgramAudioOutput(TypedDict, total=False):
    """`sample_rate` in Hz, `bitrate` in bits per second."""

    encoding: Literal["linear16", "mulaw", "alaw", "mp3", "opus", "flac", "aac"]  # from mp3 on: ours
    sample_rate: int
    container: Literal["none", "wav", "ogg"]
    bitrate: int


class DeepgramAudio(TypedDict, total=False):
    """Whatever stands here is replaced by what the call's media formats need (§2, §8.4);
    `BridgeConfig.play_media_format` says what the agent speaks in."""

    input: DeepgramAudioInput
    output: DeepgramAudioOutput


class DeepgramAgentConfig(TypedDict, total=False):
    """The `Settings` message without its `type`. Everything but `audio` goes out as it is."""

    tags: list[str]
    experimental: bool
    mip_opt_out: bool
    flags: dict[str, object]
    audio: DeepgramAudio
    agent: DeepgramAgent


DeepgramConfig: TypeAlias = DeepgramAgentConfig

# Events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConversationTextEvent:
    """`conversation_text`: what the caller said, or a sentence the agent is about to say."""

    session_id: str
    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class UserStartedSpeakingEvent:
    """`user_started_speaking`: the caller speaks, so the agent has been silenced."""

    session_id: str


@dataclass(frozen=True, slots=True)
class AgentThinkingEvent:
    """`agent_thinking`: reasoning that is not spoken."""

    session_id: str
    content: str


@dataclass(frozen=True, slots=True)
class AgentAudioDoneEvent:
    """`agent_audio_done`: the agent's speech has been played out, or was interrupted."""

    session_id: str


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One function the agent wants run. `arguments` is JSON text; answer only where `client_side` is true."""

    id: str
    name: str
    arguments: str
    client_side: bool


@dataclass(frozen=True, slots=True)
class FunctionCallRequestEvent:
    """`function_call_request`: each client-side call wants its own `respond_to_function_call`."""

    session_id: str
    functions: tuple[FunctionCall, ...]


@dataclass(frozen=True, slots=True)
class PromptUpdatedEvent:
    """`prompt_updated`: the agent confirms `update_prompt`."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SpeakUpdatedEvent:
    """`speak_updated`: the agent confirms `update_speak`."""

    session_id: str


@dataclass(frozen=True, slots=True)
class ThinkUpdatedEvent:
    """`think_updated`: the agent confirms `update_think`."""

    session_id: str


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """`warning`: something is amiss and the call goes on."""

    session_id: str
    code: str
    description: str
