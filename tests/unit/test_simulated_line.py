"""The simulated VAIC without sockets, back to back with the `Bot` machine, time as a number."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import pytest

from bridge_shared.protocol.audiocodes import ActivityReceived, Bot, SessionEnd, UserAudio, UserStreamStarted
from bridge_shared.protocol.media import FORMATS, media
from bridge_sim.line import Line
from bridge_sim.plan import CallPlan
from bridge_sim.report import CallEvent, CallReport, Heard

CID = "c-1"
SECOND = b"\x01" * 8000


class Talk:
    """A line and a bot in the same room; `at` moves time on and keeps what the bot receives."""

    def __init__(self, media_format: str = "raw/mulaw", **plan: Any) -> None:
        self.shown: list[CallEvent] = []
        self.line = Line(CallPlan(**plan), CID, lambda: {"id": "i", "timestamp": "t"}, self.shown.append)
        self.bot = Bot()
        self.got: list[Any] = []
        self.to_bot(self.line.initiate())
        self.says(self.bot.accepted(media_format), now=0.0)

    def to_bot(self, *frames: bytes) -> None:
        for frame in frames:
            self.got += self.bot.receive(frame)

    def says(self, *frames: bytes, now: float) -> None:
        for frame in frames:
            self.to_bot(*self.line.receive(frame, now))

    def at(self, now: float) -> list[Any]:
        """What the bot has got since the last time."""
        self.to_bot(*self.line.tick(now))
        got, self.got = self.got, []
        return got

    def plays(self, audio: bytes, now: float, stream_id: str = "p1", stop: bool = True) -> None:
        self.says(self.bot.play_start(stream_id, "raw/mulaw"), self.bot.play_chunk(audio), now=now)
        if stop:
            self.says(self.bot.play_stop(), now=now)

    def event(self, now: float, **activity: Any) -> None:
        self.says(self.bot.activities([{"type": "event", **activity}]), now=now)


def names(events: list[Any]) -> list[str]:
    return [event.activity.get("name") for event in events if isinstance(event, ActivityReceived)]


def finishes(events: list[Any]) -> list[tuple[int, str]]:
    """The playFinished events: (playedDurationMS, status)."""
    found = [event.activity for event in events if isinstance(event, ActivityReceived)]
    values = [activity["value"] for activity in found if activity["name"] == "playFinished"]
    return [(value["playedDurationMS"], value["status"]) for value in values]


def test_the_start_activity_follows_the_acceptance_with_the_parameters_of_the_plan() -> None:
    talk = Talk(start_parameters={"crm": "4711", "locale": "de-DE"}, start_delay_s=0.5)
    assert names(talk.at(0.4)) == []
    assert talk.line.deadline() == 0.5
    (start,) = talk.at(0.5)
    assert start.activity["name"] == "start" and start.activity["id"] == "i"
    assert start.activity["parameters"] == {
        "vaigConversationId": CID,
        "caller": "+4930123456",
        "callerHost": "sbc.example.net",
        "callee": "+4930654321",
        "calleeHost": "sbc.example.net",
        "locale": "de-DE",
        "crm": "4711",
    }


def test_playfinished_comes_when_the_last_sample_was_heard() -> None:
    talk = Talk()
    talk.at(0.1)
    talk.plays(SECOND, 0.2)
    assert finishes(talk.at(1.1)) == []
    assert talk.line.deadline() == pytest.approx(1.2)
    assert finishes(talk.at(1.2)) == [(1000, "finished")]
    assert not talk.line.quiet(1.6)
    assert talk.line.quiet(1.7)


def test_playfinished_is_not_sent_where_the_administrator_did_not_ask_for_it() -> None:
    talk = Talk(play_finished=False)
    talk.at(0.1)
    talk.plays(SECOND, 0.2)
    assert finishes(talk.at(5.0)) == []


def test_without_barge_in_speech_started_changes_nothing() -> None:
    talk = Talk()
    talk.at(0.1)
    talk.plays(SECOND, 0.2)
    talk.says(talk.bot.speech_started(), now=0.5)
    assert finishes(talk.at(2.0)) == [(1000, "finished")]


def test_with_barge_in_speech_started_silences_the_agent_at_once() -> None:
    talk = Talk(barge_in=True)
    talk.at(0.1)
    talk.says(talk.bot.stream_started(), now=0.1)
    talk.plays(SECOND, 0.2, stop=False)
    talk.line.say(SECOND, "", 0.4)
    talk.says(talk.bot.speech_started(), now=0.7)
    assert finishes(talk.at(0.7)) == [(500, "interrupted")]
    assert talk.line.report.cut_ms == [pytest.approx(300)]
    talk.says(talk.bot.play_chunk(SECOND), talk.bot.play_stop(), now=0.8)
    assert finishes(talk.at(5.0)) == []
    assert talk.line.report.violations == []


def test_abort_prompts_discards_without_barge_in_too() -> None:
    talk = Talk()
    talk.at(0.1)
    talk.plays(SECOND, 0.2)
    talk.event(0.7, name="abortPrompts")
    assert finishes(talk.at(0.7)) == [(500, "interrupted")]


def test_a_config_event_switches_barge_in() -> None:
    talk = Talk()
    talk.at(0.1)
    talk.plays(SECOND, 0.2, stop=False)
    talk.event(0.3, name="config", sessionParams={"bargeIn": True})
    assert UserStreamStarted(None) in talk.at(0.3)
    talk.event(0.4, name="config", sessionParams={"bargeIn": "yes"})
    talk.says(talk.bot.speech_started(), now=0.5)
    assert finishes(talk.at(0.5)) == [(300, "interrupted")]


def test_a_hangup_cuts_the_playing_and_is_answered_with_the_end() -> None:
    talk = Talk()
    talk.at(0.1)
    talk.plays(SECOND, 0.2)
    talk.event(0.5, name="hangup", activityParams={"hangupReason": "done"})
    assert talk.at(0.5)[-1] == SessionEnd("bot-disconnected", "Bot Side")
    report = talk.line.final_report(0.0, 9.0)
    assert (report.end, report.seconds) == ("bot-disconnected", 0.5)
    assert [(heard.status, len(heard.data)) for heard in report.heard] == [("interrupted", 2400)]


@pytest.mark.parametrize("name", ["transfer", "handover"])
def test_a_transfer_ends_the_call(name: str) -> None:
    talk = Talk()
    talk.event(0.5, name=name, activityParams={"transferTarget": "tel:1"})
    assert talk.at(0.5)[-1] == SessionEnd("transferred", "Transferred")


def test_a_transfer_that_fails_leaves_the_call_with_the_bot() -> None:
    talk = Talk(transfer_fails=True)
    talk.event(0.5, name="transfer", activityParams={"transferTarget": "tel:1"})
    events = talk.at(0.5)
    assert "transferStatus" in names(events)
    assert talk.line.end == "" and talk.bot.state == "accepted"


def test_what_crossed_the_end_is_forgiven_for_a_second() -> None:
    talk = Talk()
    frame = talk.bot.speech_started()
    talk.to_bot(talk.line.hang_up("client-disconnected", "", 1.0))
    talk.says(frame, now=1.9)
    assert talk.line.report.violations == []
    talk.says(frame, now=2.0)
    assert [violation.rule for violation in talk.line.report.violations] == ["after_end"]


def test_a_bot_that_goes_on_after_its_own_error_is_not_forgiven() -> None:
    talk = Talk()
    frame = talk.bot.speech_started()
    talk.says(talk.bot.error("broken"), frame, now=1.0)
    assert [violation.rule for violation in talk.line.report.violations] == ["after_end"]
    assert talk.line.report.problem == "the bot sent session.error: broken"


def test_a_user_stream_that_is_not_acknowledged_for_two_seconds_is_a_violation() -> None:
    talk = Talk(barge_in=True)
    talk.at(0.1)
    assert talk.line.deadline() == pytest.approx(2.1)
    talk.at(2.1)
    assert [violation.rule for violation in talk.line.report.violations] == ["late_acknowledgement"]


def test_the_backlog_comes_as_one_chunk_after_the_acknowledgement() -> None:
    talk = Talk(barge_in=True, participant="caller")
    assert UserStreamStarted("caller") in talk.at(0.1)
    assert talk.at(0.6) == []
    talk.says(talk.bot.stream_started(), now=0.6)
    assert talk.at(0.6) == [UserAudio(b"\xff" * 4000, "caller")]
    assert talk.at(0.76) == [UserAudio(b"\xff" * 1280, "caller")]
    assert talk.line.final_report(0.0, 1.0).sent_audio == b"\xff" * 5280


def test_an_answer_is_timed_from_the_last_sample_to_the_first_chunk_of_a_new_stream() -> None:
    talk = Talk(barge_in=True)
    talk.at(0.1)
    talk.plays(SECOND, 0.2, stop=False)
    assert talk.line.say(SECOND, "", 1.0) == pytest.approx(2.0)
    talk.says(talk.bot.play_chunk(SECOND), talk.bot.play_stop(), now=1.1)
    assert not talk.line.answered
    talk.plays(SECOND, 2.5, "p2")
    assert talk.line.answered
    assert talk.line.report.answer_ms == [pytest.approx(500)]


def test_a_lost_socket_lets_what_was_received_play_to_its_end_and_nothing_is_sent_late() -> None:
    talk = Talk(barge_in=True)
    talk.at(0.1)
    talk.plays(SECOND, 0.2, stop=False)
    talk.line.lost(0.5)
    assert talk.at(3.0) == []
    (heard,) = talk.line.final_report(0.0, 3.0).heard
    assert (heard.status, len(heard.data)) == ("finished", 8000)


@pytest.mark.parametrize("stream", ["fresh", "continue"])
def test_after_a_resume_the_caller_is_heard_again(stream: Any) -> None:
    talk = Talk(barge_in=True)
    talk.at(0.1)
    talk.says(talk.bot.stream_started(), now=0.1)
    talk.at(1.0)
    talk.line.lost(1.0)
    talk.bot = Bot()
    talk.to_bot(talk.line.resume(stream))
    talk.says(talk.bot.accepted("raw/mulaw"), now=2.0)
    events = talk.at(2.0)
    assert (UserStreamStarted(None) in events) == (stream == "fresh")
    if stream == "fresh":
        talk.says(talk.bot.stream_started(), now=2.0)
    assert talk.at(2.16) == [UserAudio(b"\xff" * 1280, None)]
    assert "start" not in names(events)


def test_underruns_and_the_lead_are_in_the_report() -> None:
    talk = Talk()
    talk.at(0.1)
    talk.plays(SECOND, 1.0, stop=False)
    talk.says(talk.bot.play_chunk(SECOND), talk.bot.play_stop(), now=2.25)
    report = talk.line.final_report(0.0, 9.0)
    assert report.gaps == [pytest.approx(250)]
    assert report.max_lead_ms == pytest.approx(1000)


def test_only_a_plan_that_leaves_something_to_say_can_interrupt() -> None:
    with pytest.raises(ValueError, match="barge needs"):
        CallPlan(say=("a",), barge_in=True, barge=0)
    with pytest.raises(ValueError, match="barge needs"):
        CallPlan(say=("a", "b"), barge=0)


def test_the_written_sound_has_silence_where_nothing_was_played(tmp_path: Path) -> None:
    report = CallReport(CID, seconds=3.0)
    report.heard = [
        Heard("a", "raw/mulaw", b"\x00" * 4000, "finished", ((0.5, 0), (1.25, 2000))),
        Heard("b", "raw/lpcm16", b"\x01\x01" * 8000, "finished", ((2.0, 0),)),
        Heard("c", "raw/mulaw", b"", "interrupted", ()),
    ]
    report.wav(tmp_path / "x.wav")
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 48000)
        data = file.readframes(48000)
    loud = [any(data[at : at + 320]) for at in range(0, len(data), 320)]  # 10 ms each
    spoken = [*range(50, 75), *range(125, 150), *range(200, 250)]
    assert [index for index, sound in enumerate(loud) if sound] == spoken


def test_an_empty_report_can_be_written_too(tmp_path: Path) -> None:
    CallReport(CID).wav(tmp_path / "x.wav")
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert file.getnframes() == 0


def test_the_plan_offers_what_live_hub_offers() -> None:
    line = Line(CallPlan(), CID, dict, lambda event: None)
    assert json.loads(line.initiate())["supportedMediaFormats"] == list(FORMATS)
    assert media(FORMATS[0]).rate == 16000
