"""Both sides of the Bot API, back to back: one test per rule."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_shared.protocol.audiocodes import (
    Accepted,
    ActivityReceived,
    Bot,
    BotActivity,
    Initiate,
    LocalProtocolError,
    PlayChunk,
    PlayStarted,
    PlayStopped,
    Refused,
    Resume,
    SessionEnd,
    Skipped,
    Speech,
    UserAudio,
    UserStreamAck,
    UserStreamStarted,
    UserStreamStopped,
    Vaic,
    Validate,
    Validated,
    Violation,
)
from bridge_shared.protocol.media import FORMATS, media, wav_header

CID = "0f2d6f0a-7a52-4f0e-9f2a-1d0a5f6f3b11"


def call(media_format: str = "raw/mulaw") -> tuple[Bot, Vaic]:
    """A bot and a VAIC that have just agreed on a call."""
    bot, vaic = Bot(), Vaic()
    bot.receive(vaic.initiate(CID, "+4930123456", "support"))
    vaic.receive(bot.accepted(media_format))
    return bot, vaic


def listening(participant: str | None = None) -> tuple[Bot, Vaic]:
    """A call whose caller can be heard."""
    bot, vaic = call()
    bot.receive(vaic.user_stream_start(participant))
    vaic.receive(bot.stream_started())
    return bot, vaic


def says(kind: str, **fields: Any) -> bytes:
    """A frame from VAIC that no machine of ours would write."""
    return json.dumps({"type": kind, "conversationId": CID, **fields}).encode()


def skipped(bot: Bot, frame: str | bytes) -> str:
    """The code with which the bot skips this frame, which must be all that it does."""
    (event,) = bot.receive(frame)
    assert isinstance(event, Skipped)
    return event.code


def violated(vaic: Vaic, **message: Any) -> list[str]:
    """The rules that this message breaks."""
    events = vaic.receive(json.dumps(message))
    return [event.rule for event in events if isinstance(event, Violation)]


# ---- the beginning --------------------------------------------------------------------------------------------------


def test_a_call_is_initiated_and_accepted() -> None:
    bot, vaic = Bot(), Vaic()
    frame = vaic.initiate(CID, "+4930123456", "support")
    assert bot.receive(frame) == [
        Initiate(CID, "+4930123456", "support", True, FORMATS, json.loads(frame), valid_id=True)
    ]
    assert bot.state == "initiated"
    assert vaic.receive(bot.accepted("raw/mulaw")) == [Accepted("raw/mulaw")]
    assert bot.state == vaic.state == "accepted"
    assert bot.media_format == "raw/mulaw"


def test_validation_may_be_repeated_before_a_call_and_is_no_call() -> None:
    bot, vaic = Bot(), Vaic()
    for _ in range(3):
        assert bot.receive(vaic.validate()) == [Validate()]
        assert vaic.receive(bot.validated()) == [Validated(True)]
    assert bot.state == "new"


def test_validation_during_a_call_is_out_of_order() -> None:
    bot, vaic = call()
    assert skipped(bot, vaic.validate()) == "out_of_order"


def test_the_official_capture_of_validation_has_no_other_field() -> None:
    assert json.loads(Vaic().validate()) == {"type": "connection.validate"}
    assert json.loads(Bot().validated()) == {"type": "connection.validated", "success": True}


@pytest.mark.parametrize("caller", [None, 49301, True, ["+49"], {"n": 1}, "anonymous", "", "x" * 10_000])
def test_whatever_the_caller_field_is_the_call_begins(caller: object) -> None:
    bot = Bot()
    (event,) = bot.receive(says("session.initiate", caller=caller, supportedMediaFormats=["raw/mulaw"]))
    assert isinstance(event, Initiate) and event.valid_id
    assert event.caller is None or len(event.caller) <= 256


def test_a_number_as_caller_is_taken_as_text() -> None:
    (event,) = Bot().receive(says("session.initiate", caller=49301))
    assert isinstance(event, Initiate) and event.caller == "49301"


@pytest.mark.parametrize(
    "cid", [None, "", "a" * 129, "a b", "{evil}", "a/b", "a\nb", "a\n", 7, ["x"], "\u0130", "call:1"]
)
def test_an_id_that_cannot_be_a_key_is_reported_so_that_the_shell_can_refuse(cid: object) -> None:
    for kind in ("session.initiate", "session.resume"):
        bot = Bot()
        (event,) = bot.receive(json.dumps({"type": kind, "conversationId": cid}))
        assert isinstance(event, Initiate | Resume) and not event.valid_id
        assert bot.conversation_id == ""
        bot.error("this conversation id cannot be used")
        assert bot.state == "ended"


def test_formats_may_be_missing_or_malformed() -> None:
    def formats(value: object) -> object:
        (event,) = Bot().receive(says("session.initiate", supportedMediaFormats=value))
        assert isinstance(event, Initiate)
        return event.formats

    assert formats(None) is None
    assert formats("raw/mulaw") is None
    assert formats(["raw/mulaw", 7, None, "x/y"]) == ("raw/mulaw", "x/y")


def test_only_a_plain_false_means_that_audio_is_not_expected() -> None:
    def expected(**fields: Any) -> bool:
        (event,) = Bot().receive(says("session.initiate", **fields))
        assert isinstance(event, Initiate)
        return event.expect_audio

    assert expected() and expected(expectAudioMessages="no") and expected(expectAudioMessages=None)
    assert not expected(expectAudioMessages=False)


def test_a_second_initiate_on_the_same_socket_is_out_of_order() -> None:
    bot, _ = call()
    assert skipped(bot, says("session.initiate")) == "out_of_order"
    assert bot.state == "accepted"


def test_a_call_can_be_refused_with_a_reason() -> None:
    bot, vaic = Bot(), Vaic()
    bot.receive(vaic.initiate(CID, None, None, ["raw/opus"]))
    assert vaic.receive(bot.error("No common media format", CID)) == [Refused("No common media format")]
    assert bot.state == vaic.state == "ended"


def test_accepting_a_format_that_was_not_offered_is_our_mistake() -> None:
    bot, vaic = Bot(), Vaic()
    bot.receive(vaic.initiate(CID, None, None, ["raw/lpcm16"]))
    with pytest.raises(LocalProtocolError, match="raw/mulaw was not offered"):
        bot.accepted("raw/mulaw")
    with pytest.raises(LocalProtocolError, match="not a media format"):
        bot.accepted("audio/wav")
    bot.accepted("raw/lpcm16")


# ---- the caller's audio ---------------------------------------------------------------------------------------------


def test_caller_audio_flows_between_start_and_stop() -> None:
    bot, vaic = call()
    assert bot.receive(vaic.user_stream_start()) == [UserStreamStarted(None)]
    assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, None)]
    assert bot.receive(vaic.user_chunk(b"\xff" * 1280)) == [UserAudio(b"\xff" * 1280, None)]
    assert bot.receive(vaic.user_stream_stop()) == [UserStreamStopped(None)]
    assert vaic.receive(bot.stream_stopped()) == [UserStreamAck(False, None)]


def test_vaic_never_sends_audio_before_the_acknowledgement() -> None:
    bot, vaic = call()
    bot.receive(vaic.user_stream_start())
    with pytest.raises(LocalProtocolError):
        vaic.user_chunk(b"x")


def test_audio_that_comes_before_our_acknowledgement_is_taken_all_the_same() -> None:
    bot, vaic = call()
    bot.receive(vaic.user_stream_start())
    assert bot.receive(says("userStream.chunk", audioChunk="/w==")) == [UserAudio(b"\xff", None)]


def test_a_late_chunk_of_a_stopped_stream_is_skipped() -> None:
    bot, vaic = listening()
    bot.receive(vaic.user_stream_stop())
    assert skipped(bot, says("userStream.chunk", audioChunk="/w==")) == "out_of_order"


def test_a_chunk_before_any_stream_is_skipped() -> None:
    bot, _ = call()
    assert skipped(bot, says("userStream.chunk", audioChunk="/w==")) == "out_of_order"


def test_a_duplicate_start_and_a_stop_without_start_are_answered() -> None:
    bot, vaic = listening()
    assert bot.receive(vaic.user_stream_start()) == [UserStreamStarted(None)]
    assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, None)]
    for _ in range(2):
        assert bot.receive(vaic.user_stream_stop()) == [UserStreamStopped(None)]
        assert vaic.receive(bot.stream_stopped()) == [UserStreamAck(False, None)]


def test_acknowledging_what_nobody_asked_for_is_our_mistake() -> None:
    bot, _ = listening()
    with pytest.raises(LocalProtocolError, match="nothing waits"):
        bot.stream_started()
    with pytest.raises(LocalProtocolError, match="nothing waits"):
        bot.stream_stopped()


@pytest.mark.parametrize("data", [b"a", b"ab", b"abc", b"abcd"])
def test_base64_is_understood_with_and_without_padding(data: bytes) -> None:
    bot, _ = listening()
    padded = base64.b64encode(data).decode()
    for text in (padded, padded.rstrip("=")):
        assert bot.receive(says("userStream.chunk", audioChunk=text)) == [UserAudio(data, None)]


@pytest.mark.parametrize("text", ["f", "f/9/\n", "f===", "====", "A=A=", "-_--", "äää=", "not base64!", "f/", "=f/9"])
def test_bad_base64_costs_one_chunk_and_nothing_else(text: str) -> None:
    bot, vaic = listening()
    if text == "f/":
        assert bot.receive(says("userStream.chunk", audioChunk=text)) == [UserAudio(b"\x7f", None)]
    else:
        assert skipped(bot, says("userStream.chunk", audioChunk=text)) == "bad_base64"
    assert bot.receive(vaic.user_chunk(b"ok")) == [UserAudio(b"ok", None)]


@pytest.mark.parametrize("value", [None, 7, 1.5, True, [], {}, ["/w=="]])
def test_an_audio_chunk_that_is_no_string_is_skipped(value: object) -> None:
    bot, _ = listening()
    assert skipped(bot, says("userStream.chunk", audioChunk=value)) == "bad_field"


def test_an_empty_chunk_is_no_event() -> None:
    bot, _ = listening()
    assert bot.receive(says("userStream.chunk", audioChunk="")) == []


def test_a_long_first_chunk_and_odd_sizes_are_taken_as_they_are() -> None:
    bot, vaic = listening()
    for size in (1, 7_681, 61_440):
        assert bot.receive(vaic.user_chunk(b"\x01" * size)) == [UserAudio(b"\x01" * size, None)]


# ---- agent assist ---------------------------------------------------------------------------------------------------


def test_the_participant_is_echoed_in_acknowledgements_and_speech_events() -> None:
    bot, vaic = call()
    bot.receive(vaic.user_stream_start("caller"))
    assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, "caller")]
    assert bot.receive(vaic.user_chunk(b"x", "caller")) == [UserAudio(b"x", "caller")]
    assert vaic.receive(bot.speech_started()) == [Speech("started", "", None, "caller")]
    assert vaic.receive(bot.recognition("hello", 0.5)) == [Speech("recognition", "hello", 0.5, "caller")]
    bot.receive(vaic.user_stream_stop("caller"))
    assert vaic.receive(bot.stream_stopped()) == [UserStreamAck(False, "caller")]


def test_two_participants_get_their_answers_in_order() -> None:
    bot, vaic = call()
    bot.receive(vaic.user_stream_start("caller"))
    bot.receive(vaic.user_stream_start("callee"))
    assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, "caller")]
    assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, "callee")]
    bot.receive(vaic.user_stream_stop("caller"))
    assert bot.receive(vaic_chunk("callee")) == [UserAudio(b"\xff", "callee")]


def test_of_two_participants_the_first_is_the_caller_for_the_whole_call() -> None:
    bot, vaic = call()
    for participant in ("caller", "callee", "callee", "caller"):
        bot.receive(vaic.user_stream_start(participant))
        assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, participant)]
        assert bot.is_caller("caller") and not bot.is_caller("callee")
        assert vaic.receive(bot.hypothesis("hello")) == [Speech("hypothesis", "hello", None, "caller")]
        bot.receive(vaic.user_stream_stop(participant))
        vaic.receive(bot.stream_stopped())


@pytest.mark.parametrize("opened, speaks", [("caller", None), (None, "caller"), (None, None), ("caller", "caller")])
def test_a_message_that_names_no_participant_is_the_callers(opened: str | None, speaks: str | None) -> None:
    bot, vaic = call()
    bot.receive(vaic.user_stream_start(opened))
    audio = {} if speaks is None else {"participant": speaks}
    bot.receive(says("userStream.chunk", audioChunk="/w==", **audio))
    assert bot.is_caller(opened) and bot.is_caller(speaks)
    assert bot.is_caller("callee") is (opened is None and speaks is None)


def test_after_a_resume_the_first_participant_who_is_heard_is_the_caller() -> None:
    bot = Bot()
    bot.receive(json.dumps({"type": "session.resume", "conversationId": CID}))
    bot.accepted("raw/mulaw")
    bot.receive(vaic_chunk("callee"))
    bot.receive(says("userStream.start", participant="caller"))
    assert bot.is_caller("callee") and not bot.is_caller("caller")


def vaic_chunk(participant: str) -> bytes:
    return says("userStream.chunk", audioChunk="/w==", participant=participant)


@pytest.mark.parametrize("kind", ["userStream.start", "userStream.stop", "userStream.chunk"])
def test_a_participant_that_is_no_string_is_skipped(kind: str) -> None:
    bot, _ = listening()
    assert skipped(bot, says(kind, participant={"a": 1}, audioChunk="/w==")) == "bad_field"


def test_a_bot_that_does_not_echo_the_participant_breaks_a_rule() -> None:
    _, vaic = call()
    vaic.user_stream_start("caller")
    assert violated(vaic, type="userStream.started") == ["not_echoed"]
    assert violated(vaic, type="userStream.speech.started") == ["not_echoed"]


# ---- speech events --------------------------------------------------------------------------------------------------


def test_speech_events_have_the_official_shape() -> None:
    bot, vaic = listening()
    frames = [
        bot.speech_started(),
        bot.hypothesis("i would"),
        bot.speech_stopped(),
        bot.recognition("I would"),
        bot.committed(),
    ]
    assert json.loads(frames[1])["alternatives"] == [{"text": "i would"}]
    assert json.loads(frames[3])["alternatives"] == [{"text": "I would", "confidence": 1.0}]
    assert [vaic.receive(frame) for frame in frames] == [
        [Speech("started", "", None, None)],
        [Speech("hypothesis", "i would", None, None)],
        [Speech("stopped", "", None, None)],
        [Speech("recognition", "I would", 1.0, None)],
        [Speech("committed", "", None, None)],
    ]


def test_a_transcript_at_the_top_level_breaks_a_rule() -> None:
    _, vaic = listening()
    assert violated(vaic, type="userStream.speech.recognition", text="hello", confidence=1.0) == ["bad_field"]


def test_confidence_has_to_be_a_number() -> None:
    _, vaic = listening()
    wrong = [{"text": "hello", "confidence": "0.9"}]
    assert violated(vaic, type="userStream.speech.recognition", alternatives=wrong) == ["bad_field"]


def test_speech_started_twice_and_stopped_without_start_break_a_rule() -> None:
    bot, vaic = listening()
    assert vaic.receive(bot.speech_stopped())[0] == Violation("unpaired_speech", "speech.stopped twice in a row")
    vaic.receive(bot.speech_started())
    assert isinstance(vaic.receive(bot.speech_started())[0], Violation)


def test_half_an_emoji_in_recognised_text_is_sent_as_a_replacement_character() -> None:
    bot, vaic = listening()
    assert vaic.receive(bot.recognition("ok \ud83d")) == [Speech("recognition", "ok \ufffd", 1.0, None)]
    assert vaic.receive(bot.hypothesis("\ud83d\ude00")) == [Speech("hypothesis", "\U0001f600", None, None)]


# ---- the agent's audio ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", FORMATS)
def test_an_utterance_is_played_in_every_format(token: str) -> None:
    bot, vaic = call()
    audio = bytes(range(240))
    events = vaic.receive(bot.play_start("t1", token, "Hello!", {"bargeIn": False}))
    assert events == [PlayStarted("t1", token, "Hello!", {"bargeIn": False})]
    assert bot.play_open
    first, second = bot.play_chunk(audio), bot.play_chunk(audio)
    sent = base64.b64decode(json.loads(first)["audioChunk"])
    assert sent == (wav_header(media(token)) if token.startswith("wav/") else b"") + audio
    assert vaic.receive(first) == vaic.receive(second) == [PlayChunk("t1", audio)]
    assert vaic.receive(bot.play_stop()) == [PlayStopped("t1")]
    assert not bot.play_open


def test_absent_fields_are_omitted_instead_of_null() -> None:
    bot, vaic = call()
    assert json.loads(bot.play_start("t1", "raw/mulaw")) == {
        "type": "playStream.start",
        "streamId": "t1",
        "mediaFormat": "raw/mulaw",
    }
    sent = json.loads(bot.activities([{"type": "event", "name": "hangup", "id": None}]))
    assert sent["activities"] == [{"type": "event", "name": "hangup"}]
    assert violated(vaic, type="playStream.start", streamId="x", mediaFormat="raw/mulaw", altText=None) == [
        "null_field"
    ]


def test_an_id_may_not_be_used_twice_and_two_streams_may_not_be_open() -> None:
    bot, _ = call()
    bot.play_start("t1", "raw/mulaw")
    with pytest.raises(LocalProtocolError, match="another play stream is open"):
        bot.play_start("t2", "raw/mulaw")
    bot.play_stop()
    with pytest.raises(LocalProtocolError, match="used before"):
        bot.play_start("t1", "raw/mulaw")
    with pytest.raises(LocalProtocolError, match="no plain word"):
        bot.play_start('a"b', "raw/mulaw")
    bot.play_start("t2", "raw/mulaw")


def test_a_play_stream_has_to_be_open_for_chunk_and_stop() -> None:
    bot, _ = call()
    for sender in (lambda: bot.play_chunk(b"x"), bot.play_stop):
        with pytest.raises(LocalProtocolError, match="no play stream is open"):
            sender()


def test_a_chunk_of_half_a_sample_is_our_mistake() -> None:
    bot, _ = call()
    bot.play_start("t1", "raw/lpcm16")
    with pytest.raises(LocalProtocolError, match="whole samples"):
        bot.play_chunk(b"abc")


def test_playing_a_format_that_was_not_offered_is_our_mistake() -> None:
    bot, vaic = Bot(), Vaic()
    bot.receive(vaic.initiate(CID, None, None, ["raw/lpcm16"]))
    bot.accepted("raw/lpcm16")
    with pytest.raises(LocalProtocolError, match="was not offered"):
        bot.play_start("t1", "raw/mulaw")


def test_the_two_directions_may_differ_in_format() -> None:
    bot, vaic = call("raw/lpcm16")
    assert vaic.receive(bot.play_start("t1", "raw/lpcm16_24")) == [PlayStarted("t1", "raw/lpcm16_24", None, None)]


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ({"type": "playStream.chunk", "streamId": "t9", "audioChunk": "/w=="}, "chunk_outside_stream"),
        ({"type": "playStream.stop", "streamId": "t9"}, "stop_outside_stream"),
        ({"type": "playStream.start", "streamId": "t9", "mediaFormat": "raw/mulaw"}, "two_streams"),
        ({"type": "playStream.start", "streamId": "t0", "mediaFormat": "raw/mulaw"}, "id_reused"),
        ({"type": "playStream.start", "streamId": "t9"}, "bad_field"),
        ({"type": "playStream.start", "streamId": 9, "mediaFormat": "raw/mulaw"}, "bad_field"),
        ({"type": "playStream.start", "streamId": "t9", "mediaFormat": "audio/wav"}, "format_not_offered"),
        ({"type": "playStream.chunk", "streamId": "t1", "audioChunk": "f"}, "bad_base64"),
        ({"type": "playStream.chunk", "streamId": "t1"}, "bad_field"),
        ({"type": "session.accepted", "mediaFormat": "raw/mulaw"}, "unrequested"),
        ({"type": "connection.validated", "success": True}, "unrequested"),
        ({"type": "userStream.started"}, "unrequested"),
        ({"type": "userStream.stopped"}, "unrequested"),
        ({"type": "session.resumed"}, "unknown_type"),
        ({"type": "userStream.speech.guess"}, "unknown_type"),
        ({"type": "activities", "activities": {}}, "bad_field"),
        ({"type": "activities", "activities": ["hangup"]}, "bad_field"),
    ],
)
def test_a_misbehaving_bot_breaks_the_rule_named(message: dict[str, Any], rule: str) -> None:
    bot, vaic = call()
    vaic.receive(bot.play_start("t0", "raw/mulaw"))
    vaic.receive(bot.play_stop())
    if message.get("streamId") != "t0":
        vaic.receive(bot.play_start("t1", "raw/mulaw"))
    assert violated(vaic, **message) == [rule]


def test_a_wav_header_in_every_chunk_or_in_none_breaks_a_rule() -> None:
    header = base64.b64encode(wav_header(media("wav/mulaw"))).decode()
    _, vaic = call()
    start = {"type": "playStream.start", "streamId": "t1", "mediaFormat": "wav/mulaw"}
    assert violated(vaic, **start) == []
    assert violated(vaic, type="playStream.chunk", streamId="t1", audioChunk="/w==") == ["wav_header"]
    assert violated(vaic, type="playStream.chunk", streamId="t1", audioChunk=header) == ["wav_header"]


def test_half_a_sample_from_a_bot_breaks_a_rule() -> None:
    bot, vaic = call()
    vaic.receive(bot.play_start("t1", "raw/lpcm16"))
    assert violated(vaic, type="playStream.chunk", streamId="t1", audioChunk="YWJj") == ["half_sample"]


def test_speaking_before_acceptance_and_after_the_end_breaks_a_rule() -> None:
    vaic = Vaic()
    vaic.initiate(CID, None, None)
    assert violated(vaic, type="userStream.speech.started") == ["before_accepted"]
    _, vaic = call()
    vaic.session_end("client-disconnected", "Client Side")
    assert violated(vaic, type="userStream.speech.started") == ["after_end"]


def test_an_acceptance_without_format_is_allowed_on_a_resume_only() -> None:
    vaic = Vaic()
    vaic.initiate(CID, None, None)
    assert violated(vaic, type="session.accepted") == ["bad_field"]
    _, vaic = call()
    vaic.resume()
    assert vaic.receive('{"type":"session.accepted"}') == [Accepted("raw/mulaw")]


# ---- activities -----------------------------------------------------------------------------------------------------


def test_each_activity_arrives_untouched_and_in_order() -> None:
    bot, vaic = call()
    sent = [
        {"type": "event", "name": "start", "parameters": {"locale": "any-CI", "x": [1, None, {"y": "ß"}]}},
        {"type": "Event", "name": "DTMF", "value": "42#", "unknown": True},
        {"type": "message", "text": "hi"},
    ]
    assert bot.receive(vaic.activities(sent)) == [ActivityReceived(item) for item in sent]


def test_malformed_activities_are_counted_and_the_others_taken() -> None:
    bot, _ = call()
    good = {"type": "event", "name": "DTMF", "value": "1"}
    bad: list[object] = [None, 7, [], {}, {"type": 7}, {"type": "event"}, {"type": "event", "name": 7}]
    events = bot.receive(says("activities", activities=[*bad, good]))
    assert events == [ActivityReceived(good), Skipped("bad_field", "7 of 8 activities are malformed")]


@pytest.mark.parametrize("value", [None, {}, "x", 7])
def test_activities_that_are_no_list_are_skipped(value: object) -> None:
    bot, _ = call()
    assert skipped(bot, says("activities", activities=value)) == "bad_field"


def test_one_message_cannot_become_thousands_of_events() -> None:
    bot, _ = call()
    events = bot.receive(says("activities", activities=[{"type": "message"}] * 5000))
    assert len(events) == 65
    assert isinstance(events[-1], Skipped) and events[-1].code == "too_many"


def test_activities_are_taken_while_the_agent_is_being_reached_but_audio_is_not() -> None:
    bot, vaic = Bot(), Vaic()
    bot.receive(vaic.initiate(CID, None, None))
    start = {"type": "event", "name": "start"}
    assert bot.receive(says("activities", activities=[start])) == [ActivityReceived(start)]
    assert skipped(bot, says("userStream.start")) == "out_of_order"


def test_our_activities_reach_vaic() -> None:
    bot, vaic = call()
    hangup = {"type": "event", "name": "hangup", "activityParams": {"hangupReason": "done"}}
    assert vaic.receive(bot.activities([hangup])) == [BotActivity(hangup)]


def test_an_activity_that_has_no_json_form_is_our_mistake() -> None:
    bot, _ = call()
    with pytest.raises(LocalProtocolError, match="cannot be written as JSON"):
        bot.activities([{"type": "event", "value": object()}])
    with pytest.raises(LocalProtocolError, match="empty"):
        bot.activities([])


def test_half_an_emoji_is_mended_in_a_text_of_64_kib_and_not_in_a_longer_one() -> None:
    for length, understood in ((65_000, True), (66_000, False)):
        bot = Bot()
        text = "x" * length + "\\ud83d"
        (event,) = bot.receive(f'{{"type":"session.initiate","conversationId":"{CID}","note":"{text}"}}')
        assert isinstance(event, Initiate if understood else Skipped), event


def test_half_an_emoji_in_an_activity_does_not_stop_it() -> None:
    bot, vaic = call()
    (event,) = vaic.receive(bot.activities([{"type": "message", "text": "a\udc00", "x": ["\ud800"]}]))
    assert event == BotActivity({"type": "message", "text": "a\ufffd", "x": ["\ufffd"]})


# ---- the end, and a new socket --------------------------------------------------------------------------------------


def test_the_end_is_reported_once_and_nothing_follows_it() -> None:
    bot, vaic = call()
    frame = vaic.session_end("client-disconnected", "Client Side")
    assert bot.receive(frame) == [SessionEnd("client-disconnected", "Client Side")]
    assert bot.state == "ended"
    assert skipped(bot, frame) == "out_of_order"
    assert skipped(bot, says("activities", activities=[])) == "out_of_order"


@pytest.mark.parametrize("reason", [None, 7, [], {"a": 1}])
def test_the_fields_of_the_end_are_optional(reason: Any) -> None:
    bot, _ = call()
    (event,) = bot.receive(says("session.end", reasonCode=reason, reason=reason))
    assert isinstance(event, SessionEnd)
    assert bot.state == "ended"


def test_after_our_error_the_end_is_still_reported() -> None:
    bot, _ = call()
    bot.error("the agent cannot be reached")
    assert bot.receive(says("session.end")) == [SessionEnd(None, None)]


def test_every_sender_refuses_to_speak_after_the_end() -> None:
    bot, vaic = listening()
    bot.play_start("t1", "raw/mulaw")
    bot.receive(vaic.session_end())
    senders = [
        bot.validated,
        lambda: bot.accepted("raw/mulaw"),
        lambda: bot.error("x"),
        bot.stream_started,
        bot.stream_stopped,
        bot.speech_started,
        bot.speech_stopped,
        lambda: bot.hypothesis("x"),
        lambda: bot.recognition("x"),
        bot.committed,
        lambda: bot.play_start("t2", "raw/mulaw"),
        lambda: bot.play_chunk(b"x"),
        bot.play_stop,
        lambda: bot.activities([{"type": "message"}]),
        bot.new_socket,
    ]
    for sender in senders:
        with pytest.raises(LocalProtocolError):
            sender()


def test_another_conversation_on_the_same_socket_is_not_listened_to() -> None:
    bot, _ = listening()
    for kind in ("userStream.chunk", "userStream.start", "userStream.stop", "activities", "session.end"):
        frame = json.dumps({"type": kind, "conversationId": "other", "audioChunk": "/w==", "activities": []})
        assert skipped(bot, frame) == "other_call"
    assert bot.state == "accepted"


def test_messages_without_a_conversation_id_belong_to_the_call() -> None:
    bot, _ = listening()
    assert bot.receive('{"type":"userStream.chunk","audioChunk":"/w=="}') == [UserAudio(b"\xff", None)]


def test_a_resumed_call_takes_chunks_at_once_with_a_bot_that_knew_nothing_of_it() -> None:
    _, vaic = listening()
    bot = Bot()
    assert bot.receive(vaic.resume()) == [Resume(CID, None, True)]
    assert bot.receive(vaic.user_chunk(b"x")) == [UserAudio(b"x", None)]  # even before it is accepted
    assert vaic.receive(bot.accepted("raw/mulaw")) == [Accepted("raw/mulaw")]
    assert bot.receive(vaic.user_chunk(b"y")) == [UserAudio(b"y", None)]


def test_a_resumed_call_takes_a_fresh_start_without_a_stop() -> None:
    bot, vaic = listening()
    bot.new_socket()
    bot.receive(vaic.resume())
    vaic.receive(bot.accepted("raw/mulaw"))
    assert bot.receive(vaic.user_stream_start()) == [UserStreamStarted(None)]
    assert vaic.receive(bot.stream_started()) == [UserStreamAck(True, None)]


def test_acknowledgements_that_came_due_before_a_resume_was_accepted_are_paid_in_order() -> None:
    bot, vaic = listening()
    bot.new_socket()
    bot.receive(vaic.resume())
    for frame in (vaic.user_stream_stop(), vaic.user_stream_start(), vaic.user_stream_stop()):
        bot.receive(frame)
    with pytest.raises(LocalProtocolError):
        bot.stream_started()
    vaic.receive(bot.accepted("raw/mulaw"))
    kinds = [json.loads(frame)["type"].rpartition(".")[2] for frame in bot.owed()]
    assert kinds == ["stopped", "started", "stopped"]
    assert bot.owed() == []


def test_after_a_resume_the_old_play_stream_is_gone_and_its_id_stays_used() -> None:
    bot, vaic = call()
    vaic.receive(bot.play_start("t1", "raw/mulaw"))
    old = bot.play_chunk(b"x")
    bot.new_socket()
    assert not bot.play_open
    bot.receive(vaic.resume())
    vaic.receive(bot.accepted("raw/mulaw"))
    assert [event.rule for event in vaic.receive(old) if isinstance(event, Violation)] == ["chunk_outside_stream"]
    with pytest.raises(LocalProtocolError):
        bot.play_start("t1", "raw/mulaw")
    assert vaic.receive(bot.play_start("t2", "raw/mulaw")) == [PlayStarted("t2", "raw/mulaw", None, None)]


def test_a_bot_that_knows_its_call_does_not_resume_another() -> None:
    bot, _ = call()
    bot.new_socket()
    (event,) = bot.receive('{"type":"session.resume","conversationId":"other"}')
    assert event == Resume("other", None, valid_id=False)
    assert bot.conversation_id == CID


def test_a_resume_on_a_live_socket_is_out_of_order() -> None:
    bot, _ = call()
    assert skipped(bot, says("session.resume")) == "out_of_order"


# ---- whatever arrives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "bad_json"),
        ("{", "bad_json"),
        ('{"type":"session.end"', "bad_json"),
        ('{"type":NaN}', "bad_json"),
        ('{"type":"x","a":-Infinity}', "bad_json"),
        (b"\xff\xfe\x00audio", "binary"),
        (b"\x00\x01\x02", "bad_json"),
        ("[" * 100_000, "too_many_values"),
        ('{"type":"activities","a":[' + "[]," * 10_000 + "1]}", "too_many_values"),
        ("[" * 9_000, "too_deep"),
        ('{"type":"activities","a":' + "[" * 5_000 + "]" * 5_000 + "}", "too_deep"),
        ('{"type":"activities","a":' + "[" * 70 + "]" * 70 + "}", "too_deep"),
        ('{"type":"session.initiate","a":' + '{"a":' * 70 + "1" + "}" * 70 + "}", "too_deep"),
        ("[]", "not_object"),
        ("null", "not_object"),
        ('"session.end"', "not_object"),
        ("7", "not_object"),
        ("{}", "no_type"),
        ('{"type":null}', "no_type"),
        ('{"type":["session.end"]}', "no_type"),
        ('{"type":{"a":1}}', "no_type"),
        ('{"type":"userStream.speech.started"}', "unknown_type"),
        ('{"type":"session.resumed"}', "unknown_type"),
        ('{"type":""}', "unknown_type"),
        ('{"type":"\\ud800"}', "unknown_type"),
        ('{"type":"\ud800"}', "unknown_type"),
    ],
)
def test_what_is_not_a_message_is_skipped_under_its_code(frame: str | bytes, code: str) -> None:
    bot, _ = listening()
    assert skipped(bot, frame) == code
    assert bot.state == "accepted"


def test_wide_messages_are_not_deep_ones() -> None:
    bot, _ = call()
    activity = {"type": "message", "value": [{"a": [1]}] * 100}
    assert bot.receive(says("activities", activities=[activity])) == [ActivityReceived(activity)]


def test_half_an_emoji_costs_one_character_and_not_the_message() -> None:
    bot, _ = call()
    frame = '{"type":"session.end","reason":"\\ud83d bye \\ud83d\\ude00 \\\\ud83d \\udc00\\n"}'
    for text in (frame, frame.encode()):
        bot.state = "accepted"
        bot._end_seen = False
        assert bot.receive(text) == [SessionEnd(None, "\ufffd bye \U0001f600 \\ud83d \ufffd\n")]


def test_a_lone_surrogate_in_the_id_makes_it_unusable() -> None:
    (event,) = Bot().receive('{"type":"session.initiate","conversationId":"a\\ud800"}')
    assert isinstance(event, Initiate) and not event.valid_id


def test_numbers_of_any_size_do_no_harm() -> None:
    bot, _ = call()
    frame = '{"type":"activities","activities":[{"type":"event","name":"DTMF","value":%s}]}'
    for number in ("123456789012345678901234567890", "1e308", "-0", "1.0"):
        (event,) = bot.receive(frame % number)
        assert isinstance(event, ActivityReceived)
    assert skipped(bot, frame % ("9" * 5_000)) == "bad_json"


def test_a_mark_is_ignored() -> None:
    bot, _ = call()
    assert bot.receive(says("playStream.mark.reached", mark="m1")) == []


def test_what_is_skipped_is_described_without_repeating_it() -> None:
    bot, _ = listening()
    secret = "+4930123456"
    frames = [
        says("userStream.chunk", audioChunk=f"!{secret}"),
        says("activities", activities=[{"type": "event", "value": secret}]),
        says(f"{secret} called"),
        says("userStream.start", participant=[secret]),
        f'{{"type":"session.end","caller":"{secret}"'.encode(),
    ]
    for frame in frames:
        (event,) = bot.receive(frame)
        assert isinstance(event, Skipped)
        assert secret not in event.detail and len(event.detail) < 120


KINDS = [
    "connection.validate",
    "session.initiate",
    "session.resume",
    "session.end",
    "userStream.start",
    "userStream.chunk",
    "userStream.stop",
    "activities",
    "playStream.mark.reached",
    "playStream.start",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800")
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=6
)
names = st.sampled_from(
    [
        "conversationId",
        "caller",
        "botName",
        "audioChunk",
        "activities",
        "participant",
        "supportedMediaFormats",
        "reason",
    ]
)
usual = st.sampled_from([CID, "/w==", "f/9", "", [], ["raw/mulaw"], [{"type": "event", "name": "start"}], "caller"])
messages = st.builds(
    lambda kind, fields: json.dumps({"type": kind, **fields}),
    st.sampled_from(KINDS) | anything,
    st.dictionaries(names, usual | anything, max_size=5),
)


@given(
    st.lists(messages | messages.map(lambda text: text.encode()) | st.text() | st.binary(), max_size=12), st.booleans()
)
@settings(derandomize=True, max_examples=250, deadline=None)
def test_the_bot_never_raises_and_its_answers_are_always_allowed(frames: list[str | bytes], accept: bool) -> None:
    """Whatever arrives in whatever order, `receive` returns events, and the answer each event asks for is legal."""
    bot = Bot()
    for frame in frames:
        for event in bot.receive(frame):
            match event:
                case Validate():
                    bot.validated()
                case Initiate() | Resume() if accept and event.valid_id:
                    formats = event.formats or ("raw/mulaw",)
                    bot.accepted("raw/mulaw") if "raw/mulaw" in formats else bot.error("no common format")
                case UserStreamStarted() if bot.state == "accepted":
                    bot.stream_started()
                case UserStreamStopped() if bot.state == "accepted":
                    bot.stream_stopped()
                case UserAudio():
                    assert event.data
                case Skipped():
                    assert len(event.detail) < 160
                case _:
                    pass
    if bot.state == "accepted":
        bot.owed()


@given(st.lists(messages | st.text() | st.binary(), max_size=8))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_vaic_never_raises_either(frames: list[str | bytes]) -> None:
    _, vaic = call()
    for frame in frames:
        vaic.receive(frame)
