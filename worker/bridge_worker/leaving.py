"""How a call is to be left: by a hang-up or a transfer. Pure.

It is written into the call's record as soon as it is asked for, before the last words are heard, so that the next owner
does it should this one die meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge_worker.caller_side import sendable

CALL_HEADER = "X-Conversation-Id"
"""The SIP header that tells whoever gets a transferred call which one it is."""


@dataclass(slots=True, eq=False)
class Leave:
    """One way to leave a call.

    Attributes:
        activity: what VAIC is told.
        reason, detail: of the end of the call then; the detail of a transfer is whom it goes to.
        summary: of a transfer, what the next one should know.
        told: the application's `before_transfer` handlers have run.
        otherwise: what was asked for meanwhile, should the transfer fail.
    """

    activity: dict[str, Any]
    reason: str
    detail: str
    summary: str = ""
    told: bool = False
    otherwise: Leave | None = None

    @classmethod
    def hang_up(cls, reason: str | None) -> Leave:
        """Raises ValueError for what cannot be sent."""
        parameters = {"activityParams": {"hangupReason": reason}} if reason else {}
        return _checked(cls({"type": "event", "name": "hangup", **parameters}, "ended", reason or ""))

    @classmethod
    def transfer(cls, cid: str, parameters: Mapping[str, Any], summary: str = "") -> Leave:
        """`parameters`: `activityParams`; the header with the call's id is added. Raises ValueError for what cannot be
        sent."""
        headers = list(parameters.get("transferSipHeaders") or ())
        if not all(isinstance(header, dict) for header in headers):
            raise ValueError("a SIP header of a transfer is a dictionary with `name` and `value`")
        if all(str(header.get("name", "")).lower() != CALL_HEADER.lower() for header in headers):
            headers.append({"name": CALL_HEADER, "value": cid})
        activity = {
            "type": "event",
            "name": "transfer",
            "activityParams": {**parameters, "transferSipHeaders": headers},
        }
        return _checked(cls(activity, "transfer", str(parameters.get("transferTarget", "")), str(summary)))

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Leave | None:
        """As a former owner wrote it; None if it did not, or in a way that nobody knows."""
        stored = stored or {}
        match stored:
            case {"activity": dict(activity), "reason": str(reason), "detail": str(detail)}:
                summary, told = stored.get("summary", ""), bool(stored.get("told"))
                return cls(activity, reason, detail, str(summary), told, cls.of(stored.get("otherwise")))
        return None

    @property
    def transfers(self) -> bool:
        """It is a transfer."""
        return self.reason == "transfer"

    @property
    def why(self) -> str:
        """The reason that a transfer gives to VAIC."""
        return str(self.activity.get("activityParams", {}).get("handoverReason") or "")

    def stored(self) -> dict[str, Any]:
        """For the call's record; see `of`."""
        fields = ("activity", "reason", "detail", "summary", "told")
        otherwise = self.otherwise.stored() if self.otherwise is not None else None
        return {**{name: getattr(self, name) for name in fields}, "otherwise": otherwise}


def _checked(leave: Leave) -> Leave:
    sendable([leave.stored()])
    return leave
