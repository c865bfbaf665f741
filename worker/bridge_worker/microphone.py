"""What the agent hears: the caller's audio as it comes, and silence in real time where none comes.

A pure machine. The agent needs a stream that never stops: it finds the end of an utterance by the silence
behind it, and closes a socket that is quiet for some seconds (Voice Agent reference §5.1). VAIC closes the
caller's stream around every prompt when barge-in is off (Bot API reference §5.3), so silence of the right
encoding is made for exactly the time that audio does not cover, never as a burst.
"""

from __future__ import annotations

from bridge_shared.protocol.media import Media

OPEN_PATIENCE_SECONDS = 1.0
"""An open stream may be this late before silence stands in: its audio will still come, and audio that comes
on top of silence would reach the agent faster than real time."""

LONGEST_SILENCE_SECONDS = 1.0
"""After a stall of ours the missed silence is not made up for: Deepgram takes at most 1.25 x real time (§5.2)."""


class Microphone:
    """Covers the time line of one agent connection with audio."""

    def __init__(self, media: Media, now: float, *, stream_open: bool = False) -> None:
        self._media = media
        self._covered_until = now
        self._open = stream_open

    @property
    def is_open(self) -> bool:
        """Whether VAIC has the caller's stream open."""
        return self._open

    def stream(self, is_open: bool) -> None:
        """VAIC opened or closed the caller's stream."""
        self._open = is_open

    def audio(self, nbytes: int, now: float) -> None:
        """This much caller audio goes to the agent now. It counts as just spoken: the time line never runs ahead
        by more than what has arrived at once."""
        self._open = True
        seconds = self._media.ms(nbytes) / 1000
        self._covered_until = max(self._covered_until, now - seconds) + seconds

    def silence(self, now: float) -> bytes:
        """The silence that is due now, whole samples; b"" if audio covers the time."""
        missing = now - self._covered_until
        if missing <= (OPEN_PATIENCE_SECONDS if self._open else 0.0):
            return b""
        silence = self._media.silence(min(missing, LONGEST_SILENCE_SECONDS) * 1000)
        if missing > LONGEST_SILENCE_SECONDS:
            self._covered_until = now
        else:  # a part of a sample is due with the next
            self._covered_until += self._media.ms(len(silence)) / 1000
        return silence
