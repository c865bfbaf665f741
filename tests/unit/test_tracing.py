"""Which trace a call has, what a detail gives away, and that a span without a recording does nothing."""

from __future__ import annotations

import pytest

from bridge_shared import tracing
from bridge_shared.tracing import NOTHING, Tracing


def test_every_pod_gives_a_call_the_same_trace() -> None:
    # written down, so that pods of two versions side by side in a rolling deploy agree as well
    assert tracing.ids("fleet", "8f2c1f62-call") == (0x631F3D2E8339037632F831AD7B6CD14B, 0x5380E0A05E254184)


def test_calls_and_fleets_have_traces_of_their_own() -> None:
    seen = {tracing.ids(fleet, cid) for fleet in ("a", "ab") for cid in ("bc", "c", "call-1", "call-2")}
    assert len(seen) == 8
    assert all(0 < trace < 2**128 and 0 < span < 2**64 for trace, span in seen)


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("lost", "lost"),
        ("client-disconnected", "client-disconnected"),
        ("agent_stalled: The agent did not answer +4930123456", "agent_stalled"),
        ("tel:+4930123456", ""),
        ("+4930123456", ""),
        ("sip:anna@example.com", ""),
        ("The caller said goodbye", ""),
        ("", ""),
    ],
)
def test_of_a_detail_only_a_code_is_shown(detail: str, shown: str) -> None:
    assert tracing.word(detail) == shown


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_wanted_if_the_environment_says_where_they_go(
    variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*tracing.ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() is wanted


async def test_what_is_not_traced_leaves_nothing_behind() -> None:
    untraced = Tracing()
    call = untraced.call("call-1", 0, media_format="raw/mulaw")
    part = untraced.part("ownership", "call-1")
    assert call is part is call.child("turn") is NOTHING
    call.set(epoch=1)
    call.end(error="lost")
    await untraced.close()
