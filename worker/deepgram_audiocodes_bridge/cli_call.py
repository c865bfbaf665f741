"""The engine of `bridgectl call`: places simulated calls, shows them, adds up how they went."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bridge_shared.errors import ConfigError
from bridge_shared.lifecycle import new_event_loop
from bridge_shared.protocol.media import FORMATS
from bridge_sim import speech
from bridge_sim.caller import CallEvent, CallPlan, CallReport, SimulatedCall

KEYS: Final = "0123456789*#ABCD"
WHOSE_TOKEN: Final = "give --token or AC_TOKEN"

SHOWN_PROBLEMS: Final = 5
"""So many different problems are listed; the rest is a number."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to place. `rate` is new calls per second; `concurrency` None sets no limit.

    Raises:
        ConfigError: an option names a sentence or format that there is not, or does not go with another.
    """

    url: str
    token: str | None = None
    calls: int = 1
    rate: float = 10.0
    concurrency: int | None = None
    say: tuple[str, ...] = ()
    keys: str = ""
    barge_in: bool = False
    formats: tuple[str, ...] = FORMATS
    wav_out: Path | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://")):
            raise ConfigError("--url", f"{self.url!r} does not begin with ws:// or wss://", "Give the URL of the bot")
        _known("--say", self.say, speech.names("caller"))
        _known("--format", self.formats, FORMATS)
        if not set(self.keys) <= set(KEYS):
            raise ConfigError("--keys", f"{self.keys!r} has what no keypad has", f"Give keys of {KEYS}")
        if self.wav_out is not None and self.calls > 1:
            raise ConfigError("--wav-out", "is for one call", "Leave it out, or place one call")

    def plan(self) -> CallPlan:
        interrupts = self.barge_in and len(self.say) > 1
        return CallPlan(
            say=self.say,
            keys=self.keys,
            barge_in=self.barge_in,
            formats=self.formats,
            barge=0 if interrupts else None,
        )


@dataclass(slots=True)
class Totals:
    """How the calls went, milliseconds; audio is not kept."""

    calls: int = 0
    conversation_ids: list[str] = field(default_factory=list)
    failed: int = 0
    turns: int = 0
    setup_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)
    cut_ms: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    violations: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, report: CallReport) -> None:
        self.calls += 1
        self.conversation_ids.append(report.conversation_id)
        self.turns += report.turns
        if report.problem is not None:
            self.failed += 1
            refused = report.status == HTTPStatus.UNAUTHORIZED
            self.problems[f"{report.problem}: {WHOSE_TOKEN}" if refused else report.problem] += 1
        if report.setup_ms is not None:
            self.setup_ms.append(report.setup_ms)
        self.answer_ms += report.answer_ms
        self.cut_ms += report.cut_ms
        self.gaps += report.gaps
        self.violations.update(violation.rule for violation in report.violations)

    def figures(self) -> dict[str, Any]:
        """The summary as plain values; times are milliseconds, null where nothing was measured."""
        return {
            "calls": self.calls,
            "conversation_ids": self.conversation_ids,
            "failed": self.failed,
            "turns": self.turns,
            "setup_ms": _spread(self.setup_ms),
            "answer_ms": _spread(self.answer_ms),
            "interruption_ms": _spread(self.cut_ms),
            "underruns": len(self.gaps),
            "gaps_ms": {"total": round(sum(self.gaps), 1), "max": round(max(self.gaps, default=0.0), 1)},
            "violations": dict(self.violations.most_common()),
            "problems": dict(self.problems.most_common()),
        }


def run(options: Options, *, as_json: bool) -> Totals:
    """Place the calls, show how they go, print the figures. Ctrl-C hangs up, and prints those of the calls so far."""
    totals, out = Totals(), Console(highlight=False, emoji=False)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            if as_json:
                runner.run(place(options, totals.add))
            elif options.calls == 1:
                runner.run(place(options, totals.add, on_event=_Transcript(out)))
            else:
                runner.run(_with_progress(options, totals))
    finally:
        if as_json:
            print(json.dumps(totals.figures(), indent=2))
        else:
            _show(totals, out)
    return totals


async def place(
    options: Options, done: Callable[[CallReport], None], *, on_event: Callable[[CallEvent], None] | None = None
) -> None:
    """Place the calls and hand each report to `done`. Cancelling drops the connections of the calls under way."""
    free = asyncio.Semaphore(options.concurrency or options.calls)
    plan, clock = options.plan(), asyncio.get_running_loop()

    async def one() -> None:
        try:
            report = await SimulatedCall(options.url, plan, token=options.token, on_event=on_event).run()
        finally:
            free.release()
        if options.wav_out is not None:
            await asyncio.to_thread(_write_wav, report, options.wav_out)
        done(report)

    async with asyncio.TaskGroup() as tasks:
        start = clock.time()
        for number in range(options.calls):
            # From the start and not from the last call, so that the rate holds although starting takes time.
            await asyncio.sleep(start + number / options.rate - clock.time())
            await free.acquire()
            tasks.create_task(one())


async def _with_progress(options: Options, totals: Totals) -> None:
    columns = (TextColumn("calls"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"))
    # On standard error: what goes into a file or a pipe is the result.
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("calls", total=options.calls, failed="")

        def done(report: CallReport) -> None:
            totals.add(report)
            failed = f"[red]{totals.failed} failed" if totals.failed else ""
            progress.update(bar, advance=1, failed=failed)

        await place(options, done)


class _Transcript:
    """Shows one call as it goes: seconds since the first event, who, what."""

    _SHOWN: Final = {
        "connected": ("", "connected to {}", "dim"),
        "accepted": ("", "accepted, {}, conversation {conversation_id}", "dim"),
        "refused": ("", "refused: {}", "red"),
        "says": ("caller", "{}", "cyan"),
        "presses": ("caller", "presses {}", "cyan"),
        "recognised": ("", "understood: {}", "dim"),
        "plays": ("agent", "{}", "green"),
        "interrupted": ("", "the agent was interrupted", "yellow"),
        "activity": ("bot", "{}", "magenta"),
        "dropped": ("", "connection lost: {}", "red"),
        "resumed": ("", "resumed, {}", "yellow"),
        "violation": ("", "violation: {}", "red"),
        "ended": ("", "ended: {}", "dim"),
    }

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began: float | None = None

    def __call__(self, event: CallEvent) -> None:
        now = asyncio.get_running_loop().time()
        self._began = now if self._began is None else self._began
        if event.kind not in self._SHOWN:
            return
        who, words, style = self._SHOWN[event.kind]
        text = escape(words.format(event.text or "...", **event.data))
        self._console.print(
            f"[dim]{now - self._began:6.1f} s[/dim]  [{style}]{who:6}  {text}[/{style}]", soft_wrap=True
        )


def _show(totals: Totals, out: Console) -> None:
    figures = totals.figures()
    table = Table(box=None, header_style="bold")
    table.add_column("")
    for column in ("p50", "p99", "max"):
        table.add_column(column, justify="right")
    for name, key in (("set-up, ms", "setup_ms"), ("answer, ms", "answer_ms"), ("interruption, ms", "interruption_ms")):
        if (spread := figures[key]) is not None:
            table.add_row(name, *(f"{spread[column]:.0f}" for column in ("p50", "p99", "max")))
    out.print()
    if table.rows:
        out.print(table)
    gaps, colour = figures["gaps_ms"], "red" if totals.failed else "green"
    out.print(
        f"{_count(totals.calls, 'call')}, [{colour}]{totals.failed} failed[/], {_count(totals.turns, 'turn')}, "
        f"{_count(len(totals.gaps), 'underrun')} (gaps {gaps['total']:.0f} ms, longest {gaps['max']:.0f} ms), "
        f"{_count(totals.violations.total(), 'violation')}",
        soft_wrap=True,
    )
    for label, counted in (("failed", totals.problems), ("violation", totals.violations)):
        for text, times in counted.most_common(SHOWN_PROBLEMS):
            out.print(f"  [red]{label}[/] {times} x {escape(text)}", soft_wrap=True)
        if len(counted) > SHOWN_PROBLEMS:
            out.print(f"  and {len(counted) - SHOWN_PROBLEMS} other kinds")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"p50": percentile(values, 50), "p99": percentile(values, 99), "max": round(max(values), 1)}


def percentile(values: Sequence[float], percent: int) -> float:
    """Nearest rank: a value that was measured, such that `percent` of them are not greater. Rounded to 0.1."""
    ranked = sorted(values)
    return round(ranked[max(0, -(-len(ranked) * percent // 100) - 1)], 1)


def _write_wav(report: CallReport, path: Path) -> None:
    try:
        report.wav(path)
    except OSError as error:
        raise ConfigError("--wav-out", f"{path} cannot be written: {error.strerror}", "Give another file") from None


def _known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(option, f"there is no {name!r}", f"Choose of {', '.join(known)}")
