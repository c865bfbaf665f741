"""The `Settings` message for one call: the customer's configuration, made right for Deepgram.

All keys of the customer's dict go out as they are, except (SDK reference §2, 8.4, 12.2):

- `type` and the whole `audio` block, which follow the telephony formats;
- `version: "v2"` is added to a `flux-*` listen model or voice that has none (D10);
- a fallback `think` element without `prompt` or `functions` gets those of the first element (D11);
- for a connection that continues a conversation: `context.messages`, and no `greeting` (Voice Agent reference §7.2).

What the application changes in mid-call (`amended`) is in the settings of every later connection of the call.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge_shared.protocol.media import Media


def build(
    config: Mapping[str, Any],
    media: Media,
    play: Media | None = None,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Make the `Settings` message.

    Args:
        config: the customer's `deepgram_config`; never changed.
        media: format of the caller's audio.
        play: format of the agent's; None: the same.
        history: `History` items, oldest first, for a connection that goes on where another one ended;
            None for a new conversation, which greets.
    """
    settings = copy.deepcopy(dict(config))
    settings["type"] = "Settings"
    settings["audio"] = {"input": _sound(media), "output": {**_sound(play or media), "container": "none"}}
    agent = settings.get("agent")
    if isinstance(agent, dict):
        _complete(agent)
        if history is not None:
            agent.pop("greeting", None)
            if history:
                context = agent.get("context") or {}
                agent["context"] = {**context, "messages": [*(context.get("messages") or ()), *history]}
    return settings


def _sound(media: Media) -> dict[str, Any]:
    return {"encoding": media.encoding, "sample_rate": media.rate}


def secret(value: Any) -> bool:
    """Whether an amendment has something in it that must not be stored: credentials, or headers of an endpoint."""
    if isinstance(value, dict):
        return any(key in ("headers", "credentials") or secret(part) for key, part in value.items())
    return isinstance(value, list) and any(map(secret, value))


def amended(config: Mapping[str, Any], kind: str, value: Any) -> dict[str, Any]:
    """The configuration with an update in it; the one given stays as it is.

    Args:
        kind: `prompt` adds to the prompt (SDK reference §4.3); `speak` and `think` replace their block.
        value: what `Update…` sent.
    """
    settings = copy.deepcopy(dict(config))
    agent = settings.get("agent")
    if not isinstance(agent, dict):  # a stored configuration leaves no room for it (Voice Agent reference §3.9)
        return settings
    if kind != "prompt":
        agent[kind] = copy.deepcopy(value)
        return settings
    _complete(agent)  # a fallback without a prompt of its own has the first one's, and gets the addition too
    think = agent.setdefault("think", {})
    for element in think if isinstance(think, list) else [think]:
        if isinstance(element, dict):
            element["prompt"] = "\n\n".join(filter(None, (element.get("prompt"), value)))
    return settings


def _complete(agent: dict[str, Any]) -> None:
    listen = agent.get("listen")
    if isinstance(listen, dict):
        _flux_version(listen.get("provider"))
    speak = agent.get("speak")
    for element in speak if isinstance(speak, list) else [speak]:
        if isinstance(element, dict):
            _flux_version(element.get("provider"))
    think = agent.get("think")
    if isinstance(think, list) and think and isinstance(think[0], dict):
        for element in think[1:]:
            for key in ("prompt", "functions"):
                if isinstance(element, dict) and key not in element and key in think[0]:
                    element[key] = copy.deepcopy(think[0][key])


def _flux_version(provider: object) -> None:
    if isinstance(provider, dict) and str(provider.get("model", "")).startswith("flux-"):
        provider.setdefault("version", "v2")


class Amendments:
    """What the application changes of one call's settings, for every later connection of the call.

    Args:
        config: the customer's `deepgram_config`.
        kept: (kind, value) of the amendments that former owners kept.

    Attributes:
        settings: the configuration as amended.
        waiting: amendments that the agent was sent and has not confirmed, oldest first. They go again if its
            connection breaks.
    """

    def __init__(self, config: Mapping[str, Any], kept: Iterable[tuple[str, Any]] = ()) -> None:
        self.settings = config
        self.waiting: deque[tuple[str, Any]] = deque()
        self._confirmed: list[tuple[str, Any]] = []
        for kind, value in kept:
            self._apply(kind, value)

    def asked(self, kind: str, value: Any) -> None:
        """The agent was sent this."""
        self.waiting.append((kind, value))

    def confirmed(self, kind: str) -> bool:
        """The agent confirms the oldest of this kind; whether there was one."""
        for asked in self.waiting:
            if asked[0] == kind:
                self.waiting.remove(asked)
                self._apply(*asked)
                return True
        return False

    def to_keep(self) -> list[tuple[str, Any]]:
        """What the next owner needs, all but those with a secret in them: keys never enter Redis."""
        return [amendment for amendment in self._confirmed if not secret(amendment[1])]

    def _apply(self, kind: str, value: Any) -> None:
        self.settings = amended(self.settings, kind, value)
        self._confirmed.append((kind, value))
