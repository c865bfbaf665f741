"""What of a conversation is not to be kept."""

from __future__ import annotations

import json

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


def test_json_stays_json_and_lacks_what_is_not_to_be_kept_in_texts_numbers_names_and_json_within_texts() -> None:
    redacted = Redaction("\\d{4,}")
    given = {"card": 4711, "4712": ["no 4713", True, None, 0.5], "inner": json.dumps({"pin": "4714", "n": 12})}
    kept = json.loads(redacted.json(json.dumps(given)))
    inner = {"pin": GONE, "n": 12}
    assert kept == {"card": GONE, GONE: [f"no {GONE}", True, None, 0.5], "inner": kept["inner"]}
    assert json.loads(kept["inner"]) == inner


def test_json_without_anything_to_take_out_is_kept_as_it_was_spelt() -> None:
    for text in ('{"n" : 1.50,\n"s": "x"}', "[ ]", "{", "", "text", "null"):
        assert Redaction("\\d{4,}").json(text) == text


def test_what_is_no_json_is_taken_for_text() -> None:
    redacted = Redaction("\\d{4,}")
    assert redacted.json("pin 4711") == f"pin {GONE}"
    assert redacted.json("[4711") == f"[{GONE}"
    assert redacted.json("4711") == GONE
    assert redacted.json("[" * 100_000 + "4711") == "[" * 100_000 + GONE
