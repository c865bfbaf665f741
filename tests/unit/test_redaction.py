"""What of a conversation is not to be kept."""

from __future__ import annotations

from bridge_worker.redaction import GONE, Redaction


def test_what_a_pattern_matches_is_taken_out() -> None:
    redacted = Redaction("\\b\\d{4,}\\b\n\n[\\w.]+@[\\w.]+")
    assert redacted("My card is 4711 0815, mail me at a.b@c.de.") == f"My card is {GONE} {GONE}, mail me at {GONE}"


def test_without_patterns_everything_is_kept() -> None:
    assert Redaction(None)("4711") == Redaction("")("4711") == "4711"


def test_an_applications_own_function_comes_after_the_patterns() -> None:
    assert Redaction("\\d+", str.upper)("pin 4711") == "PIN [REDACTED]"


def test_an_utterance_on_which_the_applications_function_fails_is_not_kept() -> None:
    def broken(text: str) -> str:
        raise KeyError(text)

    assert Redaction(None, broken)("pin 4711") == GONE
