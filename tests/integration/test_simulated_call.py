"""The simulated caller on real sockets, against a small bot made of the `Bot` machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from bridge_shared.protocol.audiocodes import (
    ActivityReceived,
    Bot,
    Initiate,
    Resume,
    SessionEnd,
    UserAudio,
    UserStreamStarted,
    UserStreamStopped,
    Validate,
)
from bridge_shared.protocol.media import Media, media
from bridge_sim import pcm, speech
from bridge_sim.caller import CallEvent, CallPlan, CallProblem, SimulatedCall

TONE = b"\x2a\x2a\xaa\xaa"
QUIET_CHUNKS = 3


class SmallBot:
    """Greets, answers each utterance when the caller falls silent, and stops when interrupted.

    It listens for loudness: three quiet chunks after a loud one are the end of an utterance.
    """

    def __init__(self, greeting_ms: int = 300, answer_ms: int = 400) -> None:
        self.greeting_ms, self.answer_ms = greeting_ms, answer_ms
        self.url = ""
        self.token: str | None = None
        self.heard = bytearray()
        self.activities: list[dict] = []
        self.ends: list[str | None] = []
        self.resumed: list[str] = []
        self.calls: dict[str, str] = {}
        self.sockets: list[ServerConnection] = []
        self.plays = 0
        self.misbehave: list[bytes] = []
        self.hang_up_after_answers: int | None = None
        self.answers = 0
        self.refuse = ""
        self.close_after_end = True

    async def serve(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        with contextlib.suppress(ConnectionClosed):
            await Conversation(self, socket).run()

    def check(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return connection.respond(401, "no\n")
        return None


class Conversation:
    def __init__(self, owner: SmallBot, socket: ServerConnection) -> None:
        self.owner, self.socket, self.bot = owner, socket, Bot()
        self.fmt: Media = media("raw/mulaw")
        self.loud = False
        self.quiet = 0
        self.talking: asyncio.Task | None = None

    async def send(self, *frames: bytes) -> None:
        for frame in frames:
            await self.socket.send(frame, text=True)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self.group:
            try:
                async for frame in self.socket:
                    for event in self.bot.receive(frame):
                        await self.react(event)
                        if isinstance(event, SessionEnd) and self.owner.close_after_end:
                            return
            finally:
                if self.talking:
                    self.talking.cancel()

    async def react(self, event: object) -> None:
        owner, bot = self.owner, self.bot
        match event:
            case Validate():
                await self.send(bot.validated())
            case Initiate(conversation_id=cid) if owner.refuse:
                await self.send(bot.error(owner.refuse, cid))
            case Initiate(conversation_id=cid, formats=formats):
                assert formats
                owner.calls[cid] = "raw/mulaw" if "raw/mulaw" in formats else formats[0]
                self.fmt = media(owner.calls[cid])
                await self.send(bot.accepted(owner.calls[cid]))
            case Resume(cid) if cid in owner.calls:
                owner.resumed.append(cid)
                self.fmt = media(owner.calls[cid])
                await self.send(bot.accepted(owner.calls[cid]))
                for old in owner.sockets[:-1]:
                    old.transport.abort()
            case Resume(cid):
                await self.send(bot.error("conversation not found", cid))
            case ActivityReceived(activity):
                owner.activities.append(activity)
                if activity.get("name") == "start":
                    await self.send(*owner.misbehave)
                    if owner.greeting_ms:
                        self.talk(owner.greeting_ms)
            case UserStreamStarted():
                await self.send(bot.stream_started())
            case UserStreamStopped():
                await self.send(bot.stream_stopped())
            case UserAudio(data):
                owner.heard += data
                await self.listen(data)
            case SessionEnd(code):
                owner.ends.append(code)

    async def listen(self, data: bytes) -> None:
        if pcm.level(data, self.fmt.encoding) > 2:
            if not self.loud:
                self.loud = True
                await self.send(self.bot.speech_started())
                if self.talking and not self.talking.done():
                    self.talking.cancel()
            self.quiet = 0
        elif self.loud:
            self.quiet += 1
            if self.quiet == QUIET_CHUNKS:
                self.loud = False
                await self.send(self.bot.speech_stopped(), self.bot.recognition("something"))
                self.talk(self.owner.answer_ms)

    def talk(self, ms: int) -> None:
        self.talking = self.group.create_task(self._talk(ms))

    async def _talk(self, ms: int) -> None:
        """Say a tone, 100 ms at a time with 300 ms of lead."""
        owner, bot = self.owner, self.bot
        owner.plays += 1
        await self.send(bot.play_start(f"p{owner.plays}", self.fmt.token, alt_text=f"tone {owner.plays}"))
        try:
            for sent in range(0, ms, 100):
                if sent >= 300:
                    await asyncio.sleep(0.1)
                await self.send(bot.play_chunk(TONE * (self.fmt.nbytes(min(100, ms - sent)) // 4)))
        finally:
            if bot.play_open and bot.state == "accepted":
                with contextlib.suppress(ConnectionClosed):
                    await self.send(bot.play_stop())
        owner.answers += 1
        if owner.answers == owner.hang_up_after_answers:
            await asyncio.sleep(0.4)  # let the goodbye be heard
            await self.send(bot.activities([{"type": "event", "name": "hangup"}]))


@contextlib.asynccontextmanager
async def running(bot: SmallBot) -> AsyncIterator[SmallBot]:
    async with serve(bot.serve, "127.0.0.1", 0, process_request=bot.check, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        bot.url = f"ws://127.0.0.1:{port}/vaic?x=1"
        yield bot


async def test_a_whole_call_without_barge_in() -> None:
    """Greeting, a spoken turn, its answer, goodbye: the bot hears the words, the caller hears the tones."""
    name = shortest()
    shown: list[CallEvent] = []
    async with running(SmallBot()) as bot:
        call = SimulatedCall(bot.url, CallPlan(say=(name,), formats=("raw/mulaw",)), on_event=shown.append)
        report = await call.run()
    assert report.problem is None and report.violations == []
    assert (report.end, report.turns, report.media_format) == ("client-disconnected", 1, "raw/mulaw")
    assert [(heard.status, len(heard.data)) for heard in report.heard] == [("finished", 2400), ("finished", 3200)]
    assert len(report.answer_ms) == 1 and report.setup_ms is not None
    assert speech.prompt(name).ulaw in report.sent_audio
    assert bytes(bot.heard) == report.sent_audio
    assert report.transcript == [("assistant", "tone 1"), ("user", "something"), ("assistant", "tone 2")]
    assert bot.ends == ["client-disconnected"]
    assert [event["name"] for event in bot.activities] == ["start", "playFinished", "playFinished"]
    assert [event["value"] for event in bot.activities[1:]] == [
        {"playedDurationMS": 300, "status": "finished"},
        {"playedDurationMS": 400, "status": "finished"},
    ]
    kinds = ["connected", "accepted", "plays", "played", "says", "recognised", "plays", "played", "ended"]
    assert [event.kind for event in shown if event.kind in kinds] == kinds


async def test_a_whole_call_with_barge_in_and_an_interruption() -> None:
    """The second prompt cuts the first answer: the queue is discarded, and what was heard is reported to the bot."""
    name = shortest()
    async with running(SmallBot(answer_ms=2500)) as bot:
        plan = CallPlan(say=(name, name), barge_in=True, barge=0, formats=("raw/mulaw",))
        report = await SimulatedCall(bot.url, plan).run()
    assert report.problem is None and report.violations == []
    assert report.turns == 2 and len(report.cut_ms) == 1
    assert [heard.status for heard in report.heard] == ["finished", "interrupted", "finished"]
    statuses = [event["value"]["status"] for event in bot.activities if event["name"] == "playFinished"]
    assert statuses == ["finished", "interrupted", "finished"]
    assert 8000 <= len(report.heard[1].data) < 20000


async def test_linear_audio_goes_both_ways() -> None:
    async with running(SmallBot()) as bot:
        plan = CallPlan(say=(shortest(),), formats=("raw/lpcm16",), barge_in=True)
        report = await SimulatedCall(bot.url, plan).run()
    assert report.problem is None and report.violations == []
    assert report.media_format == "raw/lpcm16"
    assert [len(heard.data) for heard in report.heard] == [9600, 12800]


async def test_a_lost_socket_is_resumed_and_the_call_goes_on() -> None:
    async with running(SmallBot(greeting_ms=0)) as bot:
        async with SimulatedCall(bot.url, CallPlan(barge_in=True)) as call:
            await call.connect()
            await call.initiate()
            await call.say(TONE * 800)
            await call.wait_answer()
            await call.drop()
            await call.resume(bot.url, stream="continue")
            await call.say(TONE * 800)
            await call.wait_answer()
            await call.drop()
            await call.resume()
            await call.say(TONE * 800)
            await call.wait_answer()
            await call.hang_up()
        report = call.report()
    assert bot.resumed == [call.conversation_id] * 2
    assert len(report.resume_ms) == 2 and len(report.answer_ms) == 3
    assert report.violations == [] and bot.ends == ["client-disconnected"]


async def test_two_sockets_overlap_and_the_bot_has_to_close_the_old_one() -> None:
    async with running(SmallBot(greeting_ms=0)) as bot, SimulatedCall(bot.url, CallPlan(barge_in=True)) as call:
        await call.connect()
        await call.initiate()
        await call.resume()
        assert len(bot.sockets) == 2
        await call.hang_up()
        assert call.report().violations == []


async def test_an_unknown_conversation_is_not_resumed() -> None:
    async with running(SmallBot()) as bot, SimulatedCall(bot.url, CallPlan()) as call:
        with pytest.raises(CallProblem, match="conversation not found"):
            await call.resume()
        assert call.report().end == "refused"


async def test_a_planned_call_comes_back_by_itself_when_the_bot_drops_it() -> None:
    async with running(SmallBot(greeting_ms=200)) as bot:
        plan = CallPlan(say=(shortest(),), resume_after_s=0.1, resume_url="ws://127.0.0.1:1/nobody")

        def drop(event: CallEvent) -> None:
            if event.kind == "played" and not bot.resumed:
                bot.sockets[0].transport.abort()

        report = await SimulatedCall(bot.url, plan, on_event=drop).run()
    assert report.problem is None and report.turns == 1
    assert len(bot.resumed) == 1 and len(report.resume_ms) == 1


async def test_a_lost_socket_without_resume_is_the_end_and_says_so() -> None:
    async with running(SmallBot()) as bot:

        def drop(event: CallEvent) -> None:
            if event.kind == "plays":
                bot.sockets[0].transport.abort()

        report = await SimulatedCall(bot.url, CallPlan(say=(shortest(),)), on_event=drop).run()
    assert report.end == "lost" and not report.ok
    assert report.problem is not None and "socket was lost" in report.problem


async def test_the_bot_may_end_the_call() -> None:
    async with running(SmallBot()) as bot:
        bot.hang_up_after_answers = 2
        report = await SimulatedCall(bot.url, CallPlan(say=(shortest(),), hang_up_after=None)).run()
    assert report.problem is None and report.end == "bot-disconnected"
    assert bot.ends == ["bot-disconnected"]
    assert [activity["name"] for activity in report.activities] == ["hangup"]


async def test_a_bot_that_hangs_up_too_early_is_a_problem() -> None:
    async with running(SmallBot()) as bot:
        bot.hang_up_after_answers = 1
        report = await SimulatedCall(bot.url, CallPlan(say=(shortest(),))).run()
    assert report.problem is not None and "bot-disconnected" in report.problem


async def test_misbehaviour_of_the_bot_is_reported_and_the_call_goes_on() -> None:
    async with running(SmallBot(greeting_ms=100)) as bot:
        bot.misbehave = [
            b'{"type":"playStream.chunk","streamId":"x","audioChunk":"/w=="}',
            b'{"type":"userStream.started"}',
            b'{"type":"session.resumed"}',
            b"nonsense",
        ]
        report = await SimulatedCall(bot.url, CallPlan()).run()
    rules = [violation.rule for violation in report.violations]
    assert rules == ["chunk_outside_stream", "unrequested", "unknown_type", "bad_json"]
    assert report.problem is None and report.end == "client-disconnected"


async def test_a_bot_that_leaves_the_socket_open_after_the_end_is_reported() -> None:
    async with running(SmallBot(greeting_ms=100)) as bot:
        bot.close_after_end = False
        report = await SimulatedCall(bot.url, CallPlan()).run()
    assert [violation.rule for violation in report.violations] == ["socket_left_open"]


async def test_a_silent_bot_is_a_problem_and_is_hung_up_on() -> None:
    async with running(SmallBot(greeting_ms=100)) as bot:
        bot.answer_ms = 0
        report = await SimulatedCall(bot.url, CallPlan(say=(shortest(),), turn_timeout_s=2)).run()
    assert report.problem == "at the beginning: waited 2 s for an answer"
    assert bot.ends == ["client-disconnected"]


async def test_a_refused_call_carries_the_reason() -> None:
    async with running(SmallBot()) as bot:
        bot.refuse = "no agent can be reached"
        report = await SimulatedCall(bot.url, CallPlan()).run()
    assert report.end == "refused"
    assert report.problem == "the bot sent session.error: no agent can be reached"


async def test_a_wrong_token_is_refused_at_the_door() -> None:
    async with running(SmallBot(greeting_ms=100)) as bot:
        bot.token = "right"
        async with SimulatedCall(bot.url, CallPlan(), token="wrong") as call:
            with pytest.raises(CallProblem) as caught:
                await call.connect()
        assert caught.value.status == 401
        assert (await SimulatedCall(bot.url, CallPlan(), token="wrong").run()).status == 401
        assert (await SimulatedCall(bot.url, CallPlan(), token="right").run()).ok


async def test_an_address_where_nobody_listens_is_named() -> None:
    report = await SimulatedCall("ws://127.0.0.1:1/x", CallPlan()).run()
    assert report.problem is not None and "ws://127.0.0.1:1/x cannot be reached" in report.problem


async def test_the_validation_of_an_administrator() -> None:
    async with running(SmallBot()) as bot, SimulatedCall(bot.url, CallPlan()) as call:
        assert await call.validate()


async def test_keys_and_activities_and_raw_frames_arrive() -> None:
    async with running(SmallBot(greeting_ms=0)) as bot, SimulatedCall(bot.url, CallPlan()) as call:
        await call.connect()
        await call.initiate()
        await call.send_dtmf("42#")
        await call.send_activity({"type": "event", "name": "noUserInput", "value": 1})
        await call.send_raw(json.dumps({"type": "activities", "activities": [{"type": "message", "text": "raw"}]}))
        await call.hang_up()
        events = [activity for activity in bot.activities if activity.get("name") != "start"]
        assert [event.get("value", event.get("text")) for event in events] == ["42#", 1, "raw"]
        assert events[0]["id"] and events[0]["timestamp"].endswith("Z")


async def test_what_the_caller_heard_can_be_written_down(tmp_path: Path) -> None:
    async with running(SmallBot(greeting_ms=500)) as bot:
        report = await SimulatedCall(bot.url, CallPlan()).run()
    report.wav(tmp_path / "heard.wav")
    with wave.open(str(tmp_path / "heard.wav")) as file:
        samples = file.readframes(file.getnframes())
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
    assert len(samples) == 2 * int(report.seconds * 8000)
    assert samples.count(pcm.mulaw_to_linear16(TONE)) == 1000
    assert report.heard[0].runs[0][0] * 16000 == pytest.approx(samples.index(pcm.mulaw_to_linear16(TONE)), abs=2)


async def test_an_error_in_the_block_arrives_as_itself() -> None:
    async with running(SmallBot()) as bot:
        with pytest.raises(ZeroDivisionError):
            async with SimulatedCall(bot.url, CallPlan()) as call:
                await call.connect()
                _ = 1 // 0


async def test_a_callback_that_raises_ends_the_call() -> None:
    def broken(event: CallEvent) -> None:
        if event.kind == "accepted":
            raise LookupError("in the callback")

    async with running(SmallBot()) as bot:
        with pytest.raises(ExceptionGroup) as caught:
            await SimulatedCall(bot.url, CallPlan(), on_event=broken).run()
    assert caught.group_contains(LookupError, match="in the callback")


async def test_a_cancelled_call_leaves_no_task_behind() -> None:
    async with running(SmallBot()) as bot:
        accepted = asyncio.Event()

        def seen(event: CallEvent) -> None:
            if event.kind == "accepted":
                accepted.set()

        task = asyncio.create_task(SimulatedCall(bot.url, CallPlan(say=(shortest(),)), on_event=seen).run())
        await accepted.wait()
        assert len(tasks_of_the_caller()) >= 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tasks_of_the_caller() == []


def tasks_of_the_caller() -> list[str]:
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("SimulatedCall.", "Wire."))]


def shortest() -> str:
    """The name of the shortest thing a caller can say."""
    return min(speech.names("caller"), key=lambda name: len(speech.prompt(name).ulaw))
