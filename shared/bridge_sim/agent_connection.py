"""One session of a simulated agent: it listens to the caller, thinks, answers, and lets itself be interrupted.

Three tasks, all owned by `serve`: the reader (the only one that takes what arrives), the mouth (one turn after the
other) and the watch (idle timeout, session length, scripted faults: one timer).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import orjson
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from bridge_shared.protocol import deepgram as dg
from bridge_shared.protocol.media import FORMATS, Media, media
from bridge_sim import pcm, speech
from bridge_sim.agent_line import Line
from bridge_sim.agent_mouth import Mouth, Turn
from bridge_sim.agent_record import MOST_NOTES, Record
from bridge_sim.agent_script import NO_FAULTS, AgentScript, Call, Say, number, reply_to, say
from bridge_sim.changes import Changes
from bridge_sim.vad import Ear, Ended, Started

_T = TypeVar("_T")
_Deed: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_LONGEST_PROMPT = 25_000
"""Characters of a managed model's prompt (§3.5)."""


class AgentConnection:
    """One socket of a client.

    Attributes:
        number: 0 for the agent's first connection.
        request_id: as in `Welcome`.
        settings: the Settings message; empty before it came.
        context: `agent.context.messages` of it.
        tags: of the Settings.
        updates: (kind, value) of each Update message.
        injections: (role, text) of each Inject message.
        responses: each FunctionCallResponse, also those that were dropped.
        record: audio, texts and problems.
        closed: the socket is gone; `close_code` is the code it closed with.
    """

    def __init__(
        self, socket: ServerConnection, script: AgentScript, number: int, *, keep: bool, changed: Callable[[], None]
    ) -> None:
        self.number = number
        self.request_id = str(socket.id)
        self.settings: dict[str, Any] = {}
        self.context: list[dict[str, Any]] = []
        self.tags: list[str] = []
        self.updates: list[tuple[str, Any]] = []
        self.injections: list[tuple[str, str]] = []
        self.responses: list[dg.FunctionResponse] = []
        self.record = Record(keep=keep)
        self.closed = False
        self.close_code: int | None = None
        self._socket, self._script, self._tell_agent = socket, script, changed
        befallen = script.faults.connections is None or number < script.faults.connections
        self._faults = script.faults if befallen else NO_FAULTS
        self._changes = Changes()
        self._server = dg.AgentServer(strict=script.strict)
        self._line = Line(socket, self._server, self.record, self._faults)
        self._mouth = Mouth(self._line, script, self._faults, self._changed)
        self._media_in = media("raw/mulaw")
        self._ear = Ear(self._media_in)
        self._flux = False
        self._clock = asyncio.get_running_loop().time
        self._last_message = self._clock()
        self._agenda: list[tuple[float, _Deed]] = []
        self._rescheduled = asyncio.Event()

    @property
    def heard(self) -> bytearray:
        return self.record.heard

    @property
    def spoken(self) -> bytearray:
        return self.record.spoken

    @property
    def texts(self) -> list[tuple[str, str]]:
        return self.record.texts

    @property
    def said_at(self) -> list[float]:
        return self.record.said_at

    @property
    def frames(self) -> list[tuple[float, int]]:
        return self.record.frames

    @property
    def problems(self) -> list[str]:
        return self.record.problems

    @property
    def ready(self) -> bool:
        """SettingsApplied was sent, and no Error."""
        return self._server.state == "ready"

    @property
    def error(self) -> str | None:
        """The code of the Error that was sent, if any."""
        return self._line.error_code

    @property
    def busy(self) -> bool:
        """The agent is in mid-turn: thinking, sending, or what it sent would still be playing."""
        return self._mouth.busy

    async def wait_for(self, predicate: Callable[[AgentConnection], _T], timeout: float = 5.0) -> _T:
        """Wait until the predicate gives something true about this connection, and return that. Safe to cancel.

        Raises:
            TimeoutError: it did not within `timeout` seconds; the message has the state of the connection.
        """
        return await self._changes.wait_for(lambda: predicate(self), timeout, self.__repr__)

    def __repr__(self) -> str:
        return (
            f"<AgentConnection {self.number} {'closed' if self.closed else self._server.state} error={self.error} "
            f"heard={self.record.heard_bytes} spoken={self.record.spoken_bytes} texts={self.texts[-4:]} "
            f"problems={self.problems[-2:]}>"
        )

    def _changed(self) -> None:
        self._changes.notify()
        self._tell_agent()

    # ── what a test makes the agent do ───────────────────────────────────────────────────────────────────────────────

    def say(self, text: str) -> None:
        """Say this (a text or the name of a recorded sentence) after what is being said."""
        self._mouth.put(Turn(say(text)))

    def call(self, *functions: tuple[str, str]) -> None:
        """Call these functions (name, arguments) in one request, and then say what they returned."""
        self._mouth.put(Turn(Call(functions)))

    async def barge(self) -> None:
        """Behave as if the caller had begun to speak. Cancelling leaves the interruption half done."""
        await self._line.send(self._server.user_started())
        await self._mouth.interrupt()
        self._changed()

    async def send_json(self, message: Any) -> None:
        """Send any JSON, right or wrong."""
        await self._line.send(orjson.dumps(message))

    async def close(self, code: int = 1000) -> None:
        """Close the socket; see `Line.close`. Cancelling stops only the wait for the client's answer."""
        await self._line.close(code)

    def drop(self) -> None:
        """Break TCP off without a close frame."""
        self._line.silent = True
        self._socket.transport.abort()

    def stall(self) -> None:
        """Say nothing more, and go on answering pings."""
        self._line.silent = True

    def freeze(self) -> None:
        """Say nothing more and read nothing more, as a stopped process does."""
        self._line.freeze()

    # ── the session ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def serve(self) -> None:
        """Live until the socket is closed, by whichever side. Cancelling ends the session without a word."""
        try:
            async with asyncio.TaskGroup() as tasks:
                mouth = tasks.create_task(self._mouth.run())
                watch = tasks.create_task(self._watch())
                try:
                    await self._read()
                finally:
                    mouth.cancel()
                    watch.cancel()
        finally:
            self.closed, self.close_code = True, self._socket.close_code
            self._changed()

    async def _read(self) -> None:
        await self._line.send(self._server.welcome(self.request_id))
        try:
            async for data in self._socket:
                now = self._clock()
                if not self._script.idle_audio_only or isinstance(data, bytes):
                    self._last_message = now
                if isinstance(data, bytes) and self._server.state == "ready":
                    if self._script.echo:
                        await self._echo(data, now)
                    else:
                        await self._listen(data, now)
                else:
                    for event in self._server.receive(data):
                        await self._act(event)
                self._changed()
        except ConnectionClosed:
            return  # broken off; the close code says how

    async def _echo(self, data: bytes, now: float) -> None:
        self.record.hear(data, self._media_in, now)
        source, target = self._media_in, self._mouth.media
        if target is not None and (source.encoding, source.rate) != (target.encoding, target.rate):
            whole = data[: len(data) // source.sample_bytes * source.sample_bytes]
            data = pcm.convert(whole, (source.encoding, source.rate), (target.encoding, target.rate))
        if data:
            await self._line.send_audio(data)

    async def _listen(self, data: bytes, now: float) -> None:
        self.record.hear(data, self._media_in, now)
        for change in self._ear.hear(data):
            if isinstance(change, Started):
                await self.barge()
            else:
                await self._understand(change)

    async def _understand(self, utterance: Ended) -> None:
        known = speech.recognise(utterance.ulaw)
        text = known.text if known else f"(speech of {utterance.spoken_ms / 1000:.1f} s)"
        await self._user_said(text, self._script.think_s)

    async def _user_said(self, text: str, think_s: float) -> None:
        reply = reply_to(self._script, text, self._line.conversation, self._mouth.functions)
        if self._script.numbered and isinstance(reply, Say):
            reply = number(reply)
        if self._mouth.cancelled and self._script.reissue_cancelled:
            reply = Call(self._mouth.cancelled)
        self._mouth.cancelled = ()
        turn = Turn(reply, think_s)
        if isinstance(reply, Call) and self._script.speculative:
            await self._mouth.request(turn, reply.functions)
        await self._line.text("user", text)
        self._mouth.put(turn)

    async def _act(self, event: dg.ServerEvent) -> None:
        """A message of the client, already found valid (§4.1)."""
        match event:
            case dg.Refused(code, description):
                await self._end(code, description)
            case dg.SettingsReceived():
                await self._configure(event)
            case dg.AudioReceived():
                pass  # between Settings and SettingsApplied, which only a lenient script lets through
            case dg.PromptUpdate(prompt):
                if len(prompt) > _LONGEST_PROMPT:
                    await self._line.send(self._server.warning("PROMPT_TOO_LONG", "The prompt was cut."))
                await self._update("prompt", prompt)
            case dg.ThinkUpdate(think):
                self._use_think(think)
                await self._update("think", think)
            case dg.SpeakUpdate(speak):
                await self._update("speak", speak)
            case dg.ListenUpdate(listen):
                self._flux = listen["provider"].get("version") == "v2"
                await self._update("listen", listen)
            case dg.InjectUser(content):
                self._note(self.injections, ("user", content))
                await self._user_said(content, self._script.think_s)
            case dg.InjectAgent(message, behavior):
                self._note(self.injections, ("assistant", message))
                await self._inject(message, behavior)
            case dg.FunctionResponse():
                self._note(self.responses, event)
                if event.expected:
                    self._mouth.answered(event)
            case dg.ForceEndTurn():
                await self._force_end_turn()
            case dg.KeepAlive():
                pass  # it has reset the idle timer, which is all it does

    async def _configure(self, event: dg.SettingsReceived) -> None:
        self.settings, self.context, self.tags = event.settings, event.context, event.settings.get("tags", [])
        self._line.conversation.extend(event.context)
        audio = event.settings["audio"]
        source = _format(audio.get("input", {"encoding": "linear16", "sample_rate": 24000}))
        target = _format(audio.get("output", {}))
        if source is None or target is None:
            await self._end("INVALID_SETTINGS", "The simulated agent knows mulaw 8000 and linear16 8000, 16000, 24000.")
            return
        self._media_in, self._ear, self._mouth.media = source, Ear(source), target
        self._mouth.announce = event.settings.get("experimental", False)
        agent = event.settings["agent"]
        if isinstance(agent, dict):
            self._use_think(agent.get("think", []))
            self._flux = agent.get("listen", {}).get("provider", {}).get("version") == "v2"
        if self._faults.slow_settings_s:
            self._at(self._faults.slow_settings_s, self._apply)
        else:
            await self._apply()

    async def _apply(self) -> None:
        if code := self._faults.warning_code:
            await self._line.send(self._server.warning(code, "As the script has it."))
        await self._line.send(self._server.applied())
        self._schedule()
        agent = self.settings["agent"]
        greeting = agent.get("greeting") if isinstance(agent, dict) else None
        if greeting and not self._script.echo:
            self._mouth.put(Turn(Say((greeting,))))
        self._changed()

    def _use_think(self, think: Any) -> None:
        first = think[0] if isinstance(think, list) and think else think
        self._mouth.functions = {f["name"]: f for f in first.get("functions", [])} if isinstance(first, dict) else {}

    async def _update(self, kind: dg.UpdateKind, value: Any) -> None:
        self._note(self.updates, (kind, value))
        await self._line.send(self._server.updated(kind))

    def _note(self, notes: list[_T], note: _T) -> None:
        notes.append(note)
        del notes[:-MOST_NOTES]

    async def _inject(self, message: str, behavior: str) -> None:
        """The table of §4.1."""
        if self._ear.hears_speech and behavior != "interrupt":
            await self._line.send(self._server.injection_refused("The user is speaking."))
        elif self._mouth.busy and behavior == "default":
            await self._line.send(self._server.injection_refused("The agent is speaking."))
        else:
            if behavior == "interrupt":
                await self._mouth.interrupt()
            # In one piece, as it was injected, so that a client can know it again.
            self._mouth.put(Turn(Say((message,))))

    async def _force_end_turn(self) -> None:
        if not self._flux:
            await self._line.send(self._server.warning("FORCE_END_TURN_UNSUPPORTED", "The listener is not Flux."))
            return
        utterance = self._ear.end_turn()
        if utterance is not None:
            await self._understand(utterance)

    async def _end(self, code: str, description: str) -> None:
        """An Error, and the socket closed without a code, as observed of the live service (§2)."""
        await self._line.error(code, description)
        self._changed()
        await self._line.close(1005)

    # ── the watch ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _at(self, seconds: float, deed: _Deed) -> None:
        self._agenda.append((self._clock() + seconds, deed))
        self._rescheduled.set()

    def _schedule(self) -> None:
        """From SettingsApplied on: the length of the session (§5.3) and the faults."""
        faults, length = self._faults, self._script.session_s
        self._at(length * 23 / 24, self._warn_of_the_end)
        self._at(length, lambda: self._end("MAXIMUM_SESSION_LENGTH_REACHED", "The session has reached its limit."))
        if faults.error_code or faults.close_code or faults.stall or faults.freeze:
            self._at(faults.after_s, self._fail)
        if faults.drop_after_s is not None:
            self._at(faults.drop_after_s, lambda: self._line.close(1006))

    async def _warn_of_the_end(self) -> None:
        await self._line.send(
            self._server.warning("MAXIMUM_SESSION_LENGTH_APPROACHING", "The session will end soon; reconnect.")
        )

    async def _fail(self) -> None:
        faults = self._faults
        if faults.error_code:
            await self._line.error(faults.error_code, "As the script has it.")
            self._changed()
        if faults.freeze:
            self._line.freeze()
        elif faults.stall:
            self._line.silent = True
        elif faults.close_code:
            await self._line.close(faults.close_code)

    async def _watch(self) -> None:
        """Do what is due, for ever; one timer whatever is on the agenda."""
        while True:
            limit = self._script.idle_timeout_s
            due = min([self._last_message + limit, *(when for when, _ in self._agenda)])
            try:
                async with asyncio.timeout_at(due):
                    await self._rescheduled.wait()
            except TimeoutError:
                now = self._clock()
                deeds = [deed for when, deed in self._agenda if when <= now]
                self._agenda = [(when, deed) for when, deed in self._agenda if when > now]
                for deed in deeds:
                    await deed()
                if self._last_message + limit <= now:
                    await self._idle_out()
                    return
            self._rescheduled.clear()

    async def _idle_out(self) -> None:
        self.record.problem(f"no message for {self._script.idle_timeout_s} s")
        if not self._line.silent:
            await self._end("CLIENT_MESSAGE_TIMEOUT", _TIMEOUT if self.settings else _NO_SETTINGS)


_TIMEOUT = "We did not receive audio or a message within the timeout."
_NO_SETTINGS = "We did not receive a Settings message within the timeout."


def _format(audio: dict[str, Any]) -> Media | None:
    """The format of `audio.input` or `audio.output`, if the simulator speaks it; defaults as in §3.2."""
    encoding = audio.get("encoding", "linear16")
    rate = audio.get("sample_rate", 24000 if encoding == "linear16" else 8000)
    if audio.get("container", "none") != "none":
        return None
    known = (media(token) for token in FORMATS if token.startswith("raw/"))
    return next((found for found in known if (found.encoding, found.rate) == (encoding, rate)), None)
