"""Every metric a pod serves on ``/metrics``. One registry of our own, so an application's metrics never mix with them.

| name here | Prometheus name | counts |
|---|---|---|
| `calls_live` (role) | `bridge_calls_live` | calls whose caller (edge) or agent (worker) this pod holds now |
| `calls_total` (outcome) | `bridge_calls_total` | ended calls, by the reason given to `session_end` |
| `calls_refused` (reason) | `bridge_calls_refused_total` | answered with an error, or broken off by the edge |
| `setup_seconds` | `bridge_setup_seconds` | from `session.initiate` to `session.accepted` |
| `turn_seconds` (until) | `bridge_turn_seconds` | what the agent understood, to its answer's `text`, `audio`, `heard` |
| `calls_by_state` (state) | `bridge_calls_by_state` | calls at this worker: `offered`, `active`, `ending` |
| `playout_seconds` | `bridge_playout_seconds` | from a turn's first audio at the edge to its first chunk for VAIC |
| `takeovers` | `bridge_takeovers_total` | calls of a dead pod that this one adopted |
| `takeover_seconds` (why) | `bridge_takeover_seconds` | claim to listening agent: `worker_lost` or `handover` |
| `handovers` (result) | `bridge_handovers_total` | calls given away: `taken`, or `left` when a drain ended |
| `handover_seconds` | `bridge_handover_seconds` | from the wish to give a call away to another worker's having it |
| `resumes` | `bridge_resumes_total` | callers who came back with `session.resume` |
| `frames_skipped` | `bridge_frames_skipped_total` | frames of another version or of an unknown kind |
| `frames_fenced` | `bridge_frames_fenced_total` | frames of an older epoch, dropped |
| `frames_resent` | `bridge_frames_resent_total` | frames sent again because no receipt came |
| `audio_dropped_ms` (where) | `bridge_audio_dropped_ms_total` | audio lost that nobody asked to drop, milliseconds |
| `underruns` | `bridge_underruns_total` | times a turn had nothing to play before its end |
| `gap_seconds` | `bridge_gap_seconds` | how long the caller heard nothing in each of those |
| `cuts` | `bridge_cuts_total` | turns cut off because the caller spoke |
| `transcript_lines` | `bridge_transcript_lines_total` | utterances stored |
| `handler_errors` (event) | `bridge_handler_errors_total` | handlers of the application that raised or took too long |
| `function_calls` (outcome) | `bridge_function_calls_total` | by `reissued` agents, `resumed` by owners, `failed` |
| `agent_errors` (code) | `bridge_agent_errors_total` | Deepgram refusals and broken agent connections |
| `agent_reconnects` | `bridge_agent_reconnects_total` | agent connections replaced in mid-call |
| `bad_input` (code) | `bridge_bad_input_total` | messages skipped because they broke the protocol |
| `finishes` (result) | `bridge_finishes_total` | finish jobs run: `done`, `failed` (tried again later) |
| `unfinished_calls` (state) | `bridge_unfinished_calls` | calls whose finish is `owed` or `given_up`, in the fleet |
| `redis_errors` (kind) | `bridge_redis_errors_total` | `unavailable` or `refused` answers of Redis |
| `redis_round_trip_seconds` | `bridge_redis_round_trip_seconds` | Redis's answer to a heartbeat, four a second |
| `redis_memory_used_ratio` | `bridge_redis_memory_used_ratio` | of `maxmemory`, the fullest primary; 0: not known |
| `inbox_lag_seconds` | `bridge_inbox_lag_seconds` | age of the frames read from this pod's inbox |
| `loop_lag_seconds` | `bridge_loop_lag_seconds` | by how much a timer of the media loop came late |
| `loop_stalls` (loop) | `bridge_loop_stalls_total` | stalls of the `media` loop, the `application`'s, or `all` |

Labels are words of ours or Deepgram's error codes, never an id, a number or anything a caller said.

This is the one door to prometheus-client. Everything here may be called from any thread.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

registry: Final = CollectorRegistry()
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

# A loop or an inbox is prompt below 5 ms, worth a look above 100 ms (a chunk), and at 2.5 s a pod counts as dead.
_LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# A set-up is the agent's handshake, 0.2-0.5 s as a rule; 8 s is where BRIDGE_ACCEPT_TIMEOUT gives up by default.
_SETUP_BUCKETS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0)
# A drain waits 20 s for a pause in the conversation and lasts 30 s by default.
_DRAIN_BUCKETS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 60.0, 120.0)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"bridge_{name}", text, labels, registry=registry)


calls_live: Final = Gauge("bridge_calls_live", "Calls held by this pod now", ["role"], registry=registry)
calls_total: Final = _counter("calls", "Calls ended", "outcome")
calls_refused: Final = _counter("calls_refused", "Calls refused", "reason")
setup_seconds: Final = Histogram(
    "bridge_setup_seconds", "session.initiate to session.accepted", buckets=_SETUP_BUCKETS, registry=registry
)
turn_seconds: Final = Histogram(
    "bridge_turn_seconds",
    "From what the agent understood to its answer",
    ["until"],
    buckets=_SETUP_BUCKETS,
    registry=registry,
)
playout_seconds: Final = Histogram(
    "bridge_playout_seconds", "First audio of a turn to its first chunk", buckets=_LAG_BUCKETS, registry=registry
)
takeovers: Final = _counter("takeovers", "Calls adopted from a dead pod")
takeover_seconds: Final = Histogram(
    "bridge_takeover_seconds",
    "Claim of a call that another worker had to an agent that listens",
    ["why"],
    buckets=_SETUP_BUCKETS,
    registry=registry,
)
calls_by_state: Final = Gauge(
    "bridge_calls_by_state", "Calls at this worker by what is done for them", ["state"], registry=registry
)
handovers: Final = _counter("handovers", "Calls given to another worker", "result")
handover_seconds: Final = Histogram(
    "bridge_handover_seconds",
    "The wish to give a call away to another worker's having it",
    buckets=_DRAIN_BUCKETS,
    registry=registry,
)
resumes: Final = _counter("resumes", "Callers who came back with session.resume")
frames_skipped: Final = _counter("frames_skipped", "Frames of another version or of an unknown kind")
frames_fenced: Final = _counter("frames_fenced", "Frames of an older epoch, dropped")
frames_resent: Final = _counter("frames_resent", "Frames sent again")
audio_dropped_ms: Final = _counter("audio_dropped_ms", "Audio dropped, milliseconds", "where")
underruns: Final = _counter("underruns", "Times a turn had nothing to play before its end")
gap_seconds: Final = Histogram(
    "bridge_gap_seconds", "How long a turn had nothing to play before its end", buckets=_LAG_BUCKETS, registry=registry
)
cuts: Final = _counter("cuts", "Turns cut off because the caller spoke")
transcript_lines: Final = _counter("transcript_lines", "Utterances stored")
handler_errors: Final = _counter("handler_errors", "Handlers that raised or took too long", "event")
function_calls: Final = _counter("function_calls", "Function calls that did not go their usual way", "outcome")
agent_errors: Final = _counter("agent_errors", "Deepgram refusals and broken agent connections", "code")
agent_reconnects: Final = _counter("agent_reconnects", "Agent connections replaced in mid-call")
bad_input: Final = _counter("bad_input", "Messages skipped because they broke the protocol", "code")
finishes: Final = _counter("finishes", "Finish jobs run", "result")
unfinished_calls: Final = Gauge(
    "bridge_unfinished_calls", "Calls of the fleet whose finish is owed or given up", ["state"], registry=registry
)
redis_errors: Final = _counter("redis_errors", "Answers of Redis that were errors", "kind")
redis_round_trip_seconds: Final = Histogram(
    "bridge_redis_round_trip_seconds", "Redis's answer to a heartbeat", buckets=_LAG_BUCKETS, registry=registry
)
inbox_lag_seconds: Final = Histogram(
    "bridge_inbox_lag_seconds", "Age of the frames read from the inbox", buckets=_LAG_BUCKETS, registry=registry
)
loop_lag_seconds: Final = Histogram(
    "bridge_loop_lag_seconds", "Lateness of a timer of the media loop", buckets=_LAG_BUCKETS, registry=registry
)
redis_memory_used_ratio: Final = Gauge(
    "bridge_redis_memory_used_ratio", "Used share of the memory that Redis may take", registry=registry
)
loop_stalls: Final = _counter("loop_stalls", "Times an event loop stood still", "loop")

# From 0 on, or Prometheus would not see the first one.
for _counted, _words in (
    (loop_stalls, ("media", "application", "all")),
    (calls_total, ("hangup", "transfer", "ended", "error")),
    (
        calls_refused,
        (
            *("edge_full", "no_room", "no_worker", "orphaned", "redis", "format", "agent", "agent_slow"),
            *("token", "no_keys", "authenticate", "authenticate_failed", "path"),
        ),
    ),
    (finishes, ("done", "failed")),
    (handovers, ("taken", "left")),
    (redis_errors, ("unavailable", "refused")),
):
    for _word in _words:
        _counted.labels(_word)

# Memory, CPU, descriptors, garbage collections: python_* and process_*, as everywhere.
ProcessCollector(registry=registry)
PlatformCollector(registry=registry)
GCCollector(registry=registry)


def render() -> bytes:
    """All metrics in Prometheus' text format; served with `CONTENT_TYPE`."""
    return generate_latest(registry)
