"""The simulated agent on a real socket, driven through the client machine as the worker drives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bridge_shared.protocol import deepgram as dg
from bridge_shared.protocol.media import Media, media
from bridge_sim import pcm, speech
from bridge_sim.agent import AgentConnection, AgentScript, Faults, SimulatedAgent, serve_forever

MULAW = media("raw/mulaw")
QUICK = AgentScript(think_s=0.01, speed=50.0)
FUNCTIONS = [{"name": "track_parcel", "parameters": {"type": "object", "properties": {"number": {"type": "string"}}}}]


def agent_settings(fmt: Media = MULAW, **agent: Any) -> dict[str, Any]:
    return {
        "audio": {
            "input": {"encoding": fmt.encoding, "sample_rate": fmt.rate},
            "output": {"encoding": fmt.encoding, "sample_rate": fmt.rate, "container": "none"},
        },
        "agent": {"think": {"provider": {"type": "open_ai", "model": "gpt-4o-mini"}, "functions": FUNCTIONS}, **agent},
        "tags": ["call:1"],
    }


class Client:
    """A client of the agent: the pure machine on a real socket, keeping what it is told."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.machine = dg.AgentClient()
        self.events: list[dg.AgentEvent] = []

    async def until(self, wanted: Callable[[dg.AgentEvent], bool]) -> dg.AgentEvent:
        """Read up to the first event that is wanted."""
        async for data in self.socket:
            found = self.machine.receive(data)
            self.events += found
            for event in found:
                if wanted(event):
                    return event
        raise AssertionError(f"the socket was closed with {self.socket.close_code} after {self.events[-5:]}")

    async def until_a(self, kind: type[dg.AgentEvent]) -> Any:
        return await self.until(lambda event: isinstance(event, kind))

    async def until_text(self, role: str, content: str) -> None:
        await self.until(
            lambda event: isinstance(event, dg.ConversationText) and (event.role, event.content) == (role, content)
        )

    async def until_closed(self) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            async for data in self.socket:
                self.events += self.machine.receive(data)
        return self.socket.close_code

    async def send(self, message: bytes) -> None:
        await self.socket.send(message, text=True)

    async def open(self, settings: dict[str, Any]) -> Self:
        await self.until_a(dg.Welcome)
        await self.send(self.machine.settings(settings))
        await self.until_a(dg.SettingsApplied)
        return self

    async def speak(self, name: str, fmt: Media = MULAW) -> None:
        """A recorded sentence and the silence after it, at once."""
        line = fmt.silence(300) + speech.render(speech.prompt(name), fmt) + fmt.silence(800)
        for at in range(0, len(line), fmt.nbytes(160)):
            await self.socket.send(line[at : at + fmt.nbytes(160)])

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(event.role, event.content) for event in self.events if isinstance(event, dg.ConversationText)]

    @property
    def audio(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, dg.Audio))


@contextlib.asynccontextmanager
async def talking_to(
    agent: SimulatedAgent, settings: dict[str, Any] | None = None, **headers: str
) -> AsyncIterator[tuple[Client, AgentConnection]]:
    async with connect(agent.url, additional_headers=headers, compression=None, proxy=None) as socket:
        client = await Client(socket).open(settings or agent_settings())
        yield client, agent.connections[-1]


def text_of(*names: str) -> list[tuple[str, str]]:
    """The (role, content) with which these recorded sentences are announced."""
    prompts = [speech.prompt(name) for name in names]
    return [("user" if prompt.role == "caller" else "assistant", prompt.text) for prompt in prompts]


# ── hearing and answering ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", ["raw/mulaw", "raw/lpcm16", "raw/lpcm16_8", "raw/lpcm16_24"])
async def test_the_greeting_is_announced_and_spoken_in_the_declared_format_faster_than_real_time(token: str):
    fmt, hello = media(token), speech.prompt("agent_hello")
    settings = agent_settings(fmt, greeting=hello.text)
    async with SimulatedAgent(QUICK) as agent, talking_to(agent, settings) as (client, _):
        await client.until_a(dg.AgentAudioDone)
        assert client.texts == [("assistant", hello.text)]
        assert client.audio == speech.render(hello, fmt)
        kinds = [type(event) for event in client.events]
        assert kinds[2:5] == [dg.ConversationText, dg.History, dg.Audio]
        sizes = {len(event.data) for event in client.events if isinstance(event, dg.Audio)}
        assert len(sizes) > 2
        assert any(size % 2 for size in sizes)


async def test_a_spoken_turn_is_recognised_and_answered_sentence_by_sentence():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, connection):
        await client.speak("where_is_my_parcel")
        await client.until_a(dg.AgentAudioDone)
        expected = text_of("where_is_my_parcel", "agent_found", "agent_in_transit")
        assert client.texts == expected
        assert connection.texts == expected
        history = [event.raw for event in client.events if isinstance(event, dg.History)]
        assert [(item["role"], item["content"]) for item in history] == expected
        assert client.audio == bytes(connection.spoken)
        assert client.audio == speech.prompt("agent_found").ulaw + speech.prompt("agent_in_transit").ulaw
        order = [type(event) for event in client.events if not isinstance(event, dg.Audio)]
        assert order[2:] == [
            dg.UserStartedSpeaking,
            *[dg.ConversationText, dg.History] * 3,
            dg.AgentAudioDone,
        ]


@pytest.mark.parametrize("name", speech.names("caller"))
async def test_every_sentence_of_the_caller_has_its_answer(name: str):
    async with SimulatedAgent(QUICK) as agent:
        settings = agent_settings(think={"provider": {"type": "open_ai", "model": "m"}})
        async with talking_to(agent, settings) as (client, _):
            await client.speak(name)
            await client.until_a(dg.AgentAudioDone)
            assert client.texts[0] == text_of(name)[0]
            assert len(client.texts) > 1
            assert text_of("agent_sorry")[0] not in client.texts


async def test_what_cannot_be_recognised_becomes_a_text_with_its_length():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, _):
        await client.socket.send(speech.render_text("Nobody recorded that.", MULAW) + MULAW.silence(800))
        await client.until_a(dg.AgentAudioDone)
        (role, said), answer = client.texts
        assert role == "user"
        assert said.startswith("(speech of 1.")
        assert answer == text_of("agent_sorry")[0]


async def test_the_agent_knows_what_was_said_before_from_the_context_it_was_given():
    messages = [
        {"type": "History", "role": "user", "content": "My name is Ada."},
        {"type": "History", "role": "assistant", "content": "Hello Ada."},
    ]
    async with SimulatedAgent(QUICK) as agent:
        async with talking_to(agent, agent_settings(context={"messages": messages})) as (client, connection):
            assert connection.context == messages
            assert connection.tags == ["call:1"]
            await client.send(client.machine.inject_user("What did I say first?"))
            await client.until_text("assistant", "You first said: My name is Ada.")
        async with talking_to(agent) as (client, _):
            await client.send(client.machine.inject_user("What did I say first?"))
            await client.until_text("assistant", "You have said nothing yet.")


async def test_history_is_not_sent_when_the_settings_say_so():
    settings = {**agent_settings(greeting="Hi."), "flags": {"history": False}}
    async with SimulatedAgent(QUICK) as agent, talking_to(agent, settings) as (client, _):
        await client.until_a(dg.AgentAudioDone)
        assert not [event for event in client.events if isinstance(event, dg.History)]


# ── being interrupted ────────────────────────────────────────────────────────────────────────────────────────────────


async def interrupted(client: Client, connection: AgentConnection) -> int:
    """Have the agent begin its long answer and interrupt it; how many events there were before UserStartedSpeaking."""
    connection.say("agent_long_answer")
    await client.until_a(dg.Audio)
    await client.speak("goodbye")
    await client.until_a(dg.UserStartedSpeaking)
    return len(client.events)


async def test_a_caller_who_speaks_cuts_the_agent_off_and_is_answered():
    async with SimulatedAgent(AgentScript(think_s=0.01)) as agent, talking_to(agent) as (client, connection):
        before = await interrupted(client, connection)
        await client.until_text("assistant", speech.prompt("agent_goodbye").text)
        kinds = [type(event) for event in client.events[before:]]
        assert kinds[0] is dg.AgentAudioDone
        assert dg.Audio not in kinds
        assert len(client.audio) < len(speech.prompt("agent_long_answer").ulaw) / 2


async def test_an_interruption_can_come_without_the_final_mark_and_with_late_audio():
    script = AgentScript(think_s=0.01, faults=Faults(no_audio_done=True, late_audio_frames=3))
    async with SimulatedAgent(script) as agent, talking_to(agent) as (client, connection):
        before = await interrupted(client, connection)
        await client.until_text("user", speech.prompt("goodbye").text)
        kinds = [type(event) for event in client.events[before:]]
        assert kinds == [dg.Audio] * 3 + [dg.ConversationText]


async def test_an_interruption_while_the_agent_is_silent_is_announced_too():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, connection):
        await connection.barge()
        await client.until_a(dg.UserStartedSpeaking)
        await client.send(client.machine.inject_user("Goodbye, have a nice day."))
        await client.until_a(dg.AgentAudioDone)
        assert dg.AgentAudioDone not in [type(event) for event in client.events[:-1]]


# ── function calls ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_function_is_requested_and_its_response_is_recorded_and_spoken():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, connection):
        await client.speak("parcel_number")
        (call,) = (await client.until_a(dg.FunctionCallRequest)).functions
        assert (call["name"], call["client_side"]) == ("track_parcel", True)
        assert json.loads(call["arguments"]) == {"number": "Z1"}
        await client.send(client.machine.function_response(call["id"], call["name"], "It is in Lyon."))
        await client.until_a(dg.AgentAudioDone)
        item = next(event.raw for event in client.events if isinstance(event, dg.History) and "role" not in event.raw)
        assert item["function_calls"] == [{**call, "response": "It is in Lyon."}]
        assert client.texts == [*text_of("parcel_number"), ("assistant", "It is in Lyon.")]
        assert [response.expected for response in connection.responses] == [True]


async def test_a_call_can_come_before_the_text_be_cancelled_and_come_again_under_another_id():
    script = AgentScript(think_s=0.01, speculative=True, reissue_cancelled=True)
    async with SimulatedAgent(script) as agent, talking_to(agent) as (client, connection):
        await client.speak("parcel_number")
        (first,) = (await client.until_a(dg.FunctionCallRequest)).functions
        assert client.texts == []
        await client.until_text(*text_of("parcel_number")[0])
        late = client.machine.function_response(first["id"], first["name"], "too late")
        await client.speak("thank_you")
        (cancelled,) = (await client.until_a(dg.FunctionCallCancelled)).functions
        assert cancelled == {"id": first["id"], "name": first["name"]}
        await client.send(late)
        (again,) = (await client.until_a(dg.FunctionCallRequest)).functions
        assert (again["name"], again["arguments"]) == (first["name"], first["arguments"])
        assert again["id"] != first["id"]
        (response,) = await connection.wait_for(lambda c: c.responses)
        assert (response.id, response.expected) == (first["id"], False)
        await client.send(client.machine.function_response(again["id"], again["name"], "At last."))
        await client.until_text("assistant", "At last.")
        await client.speak("goodbye")
        await client.until_text("assistant", speech.prompt("agent_goodbye").text)


async def test_a_call_requested_while_the_agent_still_speaks_is_answered_or_cancelled_like_any_other():
    script = AgentScript(think_s=0.01, speed=20, speculative=True)
    async with SimulatedAgent(script) as agent, talking_to(agent) as (client, connection):
        wish = client.machine.inject_user(speech.prompt("parcel_number").text)
        connection.say("agent_long_answer")
        await client.until_a(dg.Audio)
        await client.send(wish)
        (call,) = (await client.until_a(dg.FunctionCallRequest)).functions
        await client.send(client.machine.function_response(call["id"], call["name"], "Here."))
        await client.until_text("assistant", "Here.")
        connection.say("agent_long_answer")
        await client.send(wish)
        (call,) = (await client.until_a(dg.FunctionCallRequest)).functions
        await connection.barge()
        (cancelled,) = (await client.until_a(dg.FunctionCallCancelled)).functions
        assert cancelled["id"] == call["id"]


async def test_several_calls_can_come_at_once_and_are_answered_in_any_order():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, connection):
        connection.call(("a", "{}"), ("b", ""))
        one, other = (await client.until_a(dg.FunctionCallRequest)).functions
        await client.send(client.machine.function_response(other["id"], "b", "Second."))
        await client.send(client.machine.function_response(one["id"], "a", "First."))
        await client.until_text("assistant", "First.")
        await client.until_text("assistant", "Second.")


async def test_a_function_with_an_endpoint_is_run_by_the_agent_itself():
    functions = [{"name": "track_parcel", "endpoint": {"url": "https://f.example", "method": "post"}}]
    think = {"provider": {"type": "open_ai", "model": "m"}, "functions": functions}
    async with SimulatedAgent(QUICK) as agent, talking_to(agent, agent_settings(think=think)) as (client, _):
        await client.send(client.machine.inject_user(speech.prompt("parcel_number").text))
        (call,) = (await client.until_a(dg.FunctionCallRequest)).functions
        assert call["client_side"] is False
        done = await client.until_a(dg.FunctionCallDone)
        assert done.id == call["id"]
        await client.until_a(dg.AgentAudioDone)


# ── the other messages ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_updates_are_acknowledged_and_noted_and_change_the_functions():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, connection):
        think = {"provider": {"type": "open_ai", "model": "m"}}
        speak = {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}}
        listen = {"provider": {"type": "deepgram", "version": "v2", "model": "flux-general-en"}}
        for message in (
            client.machine.update_prompt("x" * 25_001),
            client.machine.update_think(think),
            client.machine.update_speak(speak),
            client.machine.update_listen(listen),
        ):
            await client.send(message)
        await client.until(lambda event: isinstance(event, dg.Updated) and event.kind == "listen")
        assert connection.updates == [("prompt", "x" * 25_001), ("think", think), ("speak", speak), ("listen", listen)]
        assert [event.code for event in client.events if isinstance(event, dg.Warned)] == ["PROMPT_TOO_LONG"]
        await client.send(client.machine.inject_user(speech.prompt("parcel_number").text))
        await client.until_text("assistant", speech.prompt("agent_moment").text)


async def test_an_injection_is_spoken_queued_refused_or_interrupts_as_its_behavior_says():
    async with SimulatedAgent(AgentScript(think_s=0.01)) as agent, talking_to(agent) as (client, connection):
        machine = client.machine
        await client.send(machine.inject_agent("When idle, any behavior speaks."))
        await client.until_a(dg.Audio)
        await client.send(machine.inject_agent("Refused."))
        await client.until_a(dg.InjectionRefused)
        await client.send(machine.inject_agent("Dropped by the next one.", "queue"))
        await client.send(machine.inject_agent("Now. In one piece.", "interrupt"))
        await client.until_text("assistant", "Now. In one piece.")
        await client.until_a(dg.AgentAudioDone)
        await client.socket.send(speech.prompt("long_story").ulaw[:8000])
        await connection.wait_for(lambda c: c.heard)
        await client.send(machine.inject_agent("Refused.", "queue"))
        await client.until_a(dg.InjectionRefused)
        assert [content for _, content in client.texts] == ["When idle, any behavior speaks.", "Now. In one piece."]


async def test_a_turn_can_be_forced_to_end_with_flux_and_only_with_flux():
    flux = {"provider": {"type": "deepgram", "version": "v2", "model": "flux-general-en"}}
    async with SimulatedAgent(QUICK) as agent:
        async with talking_to(agent, agent_settings(listen=flux)) as (client, _):
            await client.socket.send(speech.prompt("thank_you").ulaw)
            await client.send(b'{"type":"ForceEndTurn"}')
            await client.until_text(*text_of("thank_you")[0])
        async with talking_to(agent) as (client, _):
            await client.send(b'{"type":"ForceEndTurn"}')
            assert (await client.until_a(dg.Warned)).code == "FORCE_END_TURN_UNSUPPORTED"


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type":"KeepAlive"}', "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS"),
        (b"\xff" * 160, "NON_SETTINGS_MESSAGE_BEFORE_SETTINGS"),
        ('{"type":"Settings"}', "UNPARSABLE_CLIENT_MESSAGE"),
        (json.dumps({"type": "Settings", **agent_settings(), "note": 1}), "UNPARSABLE_CLIENT_MESSAGE"),
        (json.dumps({"type": "Settings", "audio": {"output": {"encoding": "alaw"}}, "agent": {}}), "INVALID_SETTINGS"),
    ],
)
async def test_a_client_that_breaks_the_rules_gets_the_error_and_the_socket_is_closed(first: str | bytes, code: str):
    async with SimulatedAgent() as agent, connect(agent.url, proxy=None) as socket:
        client = Client(socket)
        await client.until_a(dg.Welcome)
        await socket.send(first)
        assert await client.until_closed() == 1005
        assert client.machine.error == code
        await agent.connections[0].wait_for(lambda c: c.closed)
        assert agent.connections[0].error == code


async def test_credentials_are_compared_and_the_scheme_is_not_case_sensitive():
    async with SimulatedAgent(AgentScript(require_token="secret")) as agent:
        for header in ("Token secret", "token secret", "bearer secret"):
            async with talking_to(agent, Authorization=header) as (client, connection):
                assert client.machine.request_id == connection.request_id
                assert client.socket.response is not None
                assert client.socket.response.headers["dg-request-id"] == connection.request_id
        for headers in ({}, {"Authorization": "Token wrong"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus) as caught:
                async with talking_to(agent, **headers):
                    pass
            response = caught.value.response
            assert response.status_code == 401
            assert json.loads(response.body or b"")["err_code"] == "INVALID_AUTH"
            assert response.headers["dg-error"]


async def test_so_many_handshakes_are_refused_as_scripted_and_then_no_more():
    async with SimulatedAgent(AgentScript(faults=Faults(refuse_handshakes=2, refuse_status=429))) as agent:
        for _ in range(2):
            with pytest.raises(InvalidStatus) as caught:
                async with talking_to(agent):
                    pass
            assert caught.value.response.status_code == 429
        async with talking_to(agent):
            assert agent.refused == 2


async def test_another_path_does_not_exist():
    async with SimulatedAgent() as agent:
        with pytest.raises(InvalidStatus, match="404"):
            await connect(agent.url + "/x", proxy=None)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def faulty(faults: Faults) -> tuple[Client, AgentConnection, int | None]:
    """A session with these faults, read to its end."""
    async with SimulatedAgent(AgentScript(faults=faults)) as agent, talking_to(agent) as (client, connection):
        code = await client.until_closed()
        await connection.wait_for(lambda c: c.closed)
        return client, connection, code


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1011])
async def test_a_session_can_be_closed_with_any_code_and_without_an_error(code: int):
    client, _, closed = await faulty(Faults(close_code=code))
    assert closed == code
    assert client.machine.error is None


async def test_an_error_can_come_with_a_close_or_the_socket_be_dropped_at_a_time():
    client, connection, closed = await faulty(Faults(error_code="SERVER_GOING_AWAY", close_code=1011, after_s=0.01))
    assert (client.machine.error, connection.error, closed) == ("SERVER_GOING_AWAY", "SERVER_GOING_AWAY", 1011)
    client, _, closed = await faulty(Faults(drop_after_s=0.01))
    assert (client.machine.error, closed) == (None, 1006)


async def test_an_error_can_leave_the_socket_open_and_silent():
    script = AgentScript(faults=Faults(error_code="FAILED_TO_THINK"))
    async with SimulatedAgent(script) as agent, talking_to(agent) as (client, connection):
        assert (await client.until_a(dg.AgentError)).code == "FAILED_TO_THINK"
        connection.say("Not to be heard.")
        await (await client.socket.ping())
        assert not connection.closed
        assert connection.record.spoken_bytes == 0


async def test_a_stalled_agent_answers_pings_and_nothing_else_and_a_frozen_one_not_even_pings():
    async with SimulatedAgent(QUICK) as agent:
        async with talking_to(agent) as (client, connection):
            connection.stall()
            await client.send(client.machine.update_prompt("x"))
            await (await client.socket.ping())
            assert connection.updates == [("prompt", "x")]
            assert not [event for event in client.events if isinstance(event, dg.Updated)]
        async with talking_to(agent) as (client, connection):
            connection.freeze()
            pong = await client.socket.ping()
            await client.send(client.machine.update_prompt("x"))
            async with talking_to(agent):  # a whole opening on another socket, in which a pong would have come
                assert not pong.done()
                assert connection.updates == []
            client.socket.transport.abort()
            connection.drop()


async def test_settings_can_take_long_to_apply_while_the_socket_lives_on():
    agent = SimulatedAgent(AgentScript(faults=Faults(slow_settings_s=0.3)))
    async with agent, connect(agent.url, proxy=None) as socket:
        client = Client(socket)
        await client.until_a(dg.Welcome)
        await client.send(client.machine.settings(agent_settings()))
        await (await socket.ping())
        assert not agent.connections[0].ready
        await client.until_a(dg.SettingsApplied)
        assert agent.connections[0].ready


async def test_faults_can_be_limited_to_the_first_connections():
    async with SimulatedAgent(AgentScript(faults=Faults(close_code=1011, connections=1))) as agent:
        async with talking_to(agent) as (client, _):
            assert await client.until_closed() == 1011
        async with talking_to(agent) as (client, connection):
            await (await client.socket.ping())
            connection.say("Fine.")
            await client.until_text("assistant", "Fine.")


async def test_floods_and_unknown_messages_do_not_disturb_a_client():
    script = AgentScript(think_s=0.01, speed=50, faults=Faults(latency_flood=200, unknown_messages=True))
    async with SimulatedAgent(script) as agent, talking_to(agent, agent_settings(greeting="Hi.")) as (client, _):
        await client.until_a(dg.AgentAudioDone)
        kinds = [type(event) for event in client.events]
        assert kinds.count(dg.LatencyReport) == 200
        assert dg.Unknown("AgentDaydreaming") in client.events
        assert client.texts == [("assistant", "Hi.")]
        assert client.machine.state == "ready"


async def test_a_silent_client_is_timed_out_and_keep_alive_prevents_that_unless_only_audio_counts():
    async with SimulatedAgent(AgentScript(idle_timeout_s=0.2)) as agent:
        async with talking_to(agent) as (client, connection):
            assert (await client.until_a(dg.AgentError)).code == "CLIENT_MESSAGE_TIMEOUT"
            await connection.wait_for(lambda c: c.closed)
            assert connection.problems == ["no message for 0.2 s"]
        agent.script = AgentScript(idle_timeout_s=0.3, idle_audio_only=True)
        async with talking_to(agent) as (client, _):

            async def keep_alive() -> None:
                with contextlib.suppress(dg.LocalProtocolError, ConnectionClosed):
                    while True:
                        await client.send(client.machine.keep_alive())
                        await asyncio.sleep(0.02)

            keeping = asyncio.create_task(keep_alive())
            assert (await client.until_a(dg.AgentError)).code == "CLIENT_MESSAGE_TIMEOUT"
            await keeping


async def test_a_session_that_lasts_too_long_is_warned_and_ended():
    async with SimulatedAgent(AgentScript(session_s=0.1)) as agent, talking_to(agent) as (client, _):
        assert (await client.until_a(dg.Warned)).code == "MAXIMUM_SESSION_LENGTH_APPROACHING"
        assert (await client.until_a(dg.AgentError)).code == "MAXIMUM_SESSION_LENGTH_REACHED"


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_heard_is_recorded_and_bad_frames_are_noted():
    fmt = media("raw/lpcm16_8")
    async with SimulatedAgent(QUICK) as agent, talking_to(agent, agent_settings(fmt)) as (client, connection):
        await client.socket.send(b"\x00" * 320)
        await client.socket.send(b"\x00" * 321)
        await client.socket.send(b"")
        await client.socket.send(fmt.silence(2100))
        await connection.wait_for(lambda c: len(c.frames) == 4)
        assert len(connection.heard) == 641 + fmt.nbytes(2100)
        assert connection.problems[:2] == [
            "an audio frame of 321 bytes, not whole samples",
            "a zero-length audio frame",
        ]
        assert connection.problems[2].startswith("audio came faster than 1.25 times real time")


async def test_echo_sends_every_frame_back_and_says_nothing():
    agent = SimulatedAgent(AgentScript(echo=True), record=False)
    async with agent, talking_to(agent, agent_settings(greeting="Hello.")) as (client, connection):
        frames = [bytes([number]) * 160 for number in range(100)]
        for frame in frames:
            await client.socket.send(frame)
        await client.until(lambda event: event == dg.Audio(frames[-1]))
        assert client.audio == b"".join(frames)
        assert client.texts == []
        assert (bytes(connection.heard), connection.frames) == (b"", [])
        assert connection.record.heard_bytes == connection.record.spoken_bytes == 16_000


async def test_echo_comes_back_in_the_format_of_the_output():
    settings = agent_settings()
    settings["audio"]["output"] = {"encoding": "linear16", "sample_rate": 16000}
    said = bytes(range(160))
    async with SimulatedAgent(AgentScript(echo=True)) as agent, talking_to(agent, settings) as (client, _):
        await client.socket.send(said)
        await client.until_a(dg.Audio)
        assert client.audio == pcm.convert(said, ("mulaw", 8000), ("linear16", 16000))
        assert len(client.audio) == 640


async def test_only_the_last_connections_are_remembered():
    async with SimulatedAgent(QUICK) as agent:
        for _ in range(55):
            async with talking_to(agent) as (_, connection):
                pass
            await connection.wait_for(lambda c: c.closed)
        assert agent.total == 55
        assert [connection.number for connection in agent.connections] == list(range(5, 55))


async def test_waiting_in_vain_tells_the_state_of_the_connection():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (_, connection):
        with pytest.raises(TimeoutError, match="AgentConnection 0 ready"):
            await connection.wait_for(lambda c: c.closed, timeout=0.01)
        with pytest.raises(TimeoutError, match="0 refused"):
            await agent.wait_for(lambda a: a.refused, timeout=0.01)


async def test_stopping_closes_every_connection_and_serving_for_ever_ends_when_cancelled():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, _):
        await agent.stop()
        assert await client.until_closed() == 1001
    serving = asyncio.create_task(serve_forever(agent.port, script=QUICK))
    async with asyncio.timeout(5):
        while True:
            try:
                async with connect(agent.url, proxy=None) as socket:
                    serving.cancel()
                    assert await Client(socket).until_closed() == 1001
                break
            except OSError:
                await asyncio.sleep(0)  # it is not listening yet
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_the_recorded_sentences_reach_the_agent_bit_for_bit():
    async with SimulatedAgent(QUICK) as agent, talking_to(agent) as (client, connection):
        await client.speak("long_story")
        await connection.wait_for(lambda c: c.texts)
        assert speech.prompt("long_story").ulaw in bytes(connection.heard)
        assert max(pcm.levels(bytes(connection.heard), "mulaw", speech.RATE)) > 5
