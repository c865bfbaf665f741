"""bridge_shared.logs: what an application's own formatters get, and what `configure` prints."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bridge_shared import logs


class Kept(logging.Handler):
    """An application's handler."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    ours, handler = logging.getLogger(logs.ROOT), Kept()
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield handler
    ours.removeHandler(handler)
    ours.setLevel(logging.NOTSET)


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """Puts back what `configure` changes in the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in (logs.ROOT, *logs._CHATTY):
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines(form: logs.Format, message: str, /, **fields: object) -> list[str]:
    stream = io.StringIO()
    logs.configure("INFO", form, stream=stream)
    logs.get("test").info(message, **fields)
    return stream.getvalue().splitlines()


def test_every_logger_lies_below_the_name_that_users_filter_on(kept: Kept):
    logs.get("edge").info("call refused")
    assert kept.records[0].name == "deepgram_audiocodes_bridge.edge"


def test_fields_become_attributes_of_the_record_and_the_message_stays_constant(kept: Kept):
    logs.get("edge").bind(session_id="abc").info("call started", caller_known=True)
    (record,) = kept.records
    assert (record.getMessage(), record.args) == ("call started", ())
    assert logging.Formatter("%(session_id)s %(caller_known)s").format(record) == "abc True"


def test_a_message_with_a_percent_sign_is_not_formatted(kept: Kept):
    logs.get("edge").info("100 %s", count=1)
    assert kept.records[0].getMessage() == "100 %s"


def test_a_call_logger_says_which_call_in_every_record(kept: Kept):
    logs.call_logger("cid-1").warning("late audio")
    assert vars(kept.records[0])["conversation_id"] == "cid-1"


@pytest.mark.parametrize("name", ["name", "msg", "args", "message", "asctime", "exc_text", "taskName", "levelname"])
def test_a_field_with_a_reserved_name_is_kept_under_another_and_crashes_nothing(kept: Kept, name: str):
    logs.get("edge").info("hello", **{name: "value"})
    (record,) = kept.records
    assert record.getMessage() == "hello"
    assert vars(record)[f"{name}_"] == "value"


def test_a_field_may_be_called_event_as_users_of_the_original_expect(kept: Kept):
    logs.get("bridge").error("handler raised", event="session_end")
    assert vars(kept.records[0])["event"] == "session_end"


def test_line_breaks_in_a_value_cannot_forge_a_line(kept: Kept):
    logs.get("edge").info("refused", reason="no\r\nERROR all is lost\x1b[2J\u2028", error=ValueError("a\nb"))
    fields = vars(kept.records[0])
    assert fields["reason"] == "no  ERROR all is lost [2J "
    assert fields["error"] == "ValueError: a b"


def test_bytes_are_logged_as_their_number(kept: Kept):
    logs.get("edge").debug("chunk", data=b"\xff" * 160)
    assert vars(kept.records[0])["data"] == "160 bytes"


def test_a_record_points_at_the_line_that_logged_it(kept: Kept):
    logs.get("edge").info("here")
    try:
        raise ValueError("x")
    except ValueError:
        logs.get("edge").exception("there")
    assert {(r.filename, r.funcName) for r in kept.records} == {
        ("test_logs.py", "test_a_record_points_at_the_line_that_logged_it")
    }
    assert kept.records[1].exc_info is not None


def test_a_level_that_is_off_costs_no_record(kept: Kept):
    logging.getLogger(logs.ROOT).setLevel(logging.INFO)
    logs.get("edge").debug("wire")
    assert not kept.records
    assert not logs.get("edge").enabled(logging.DEBUG)


def test_importing_us_installs_no_handler():
    code = "import logging as g, bridge_shared.logs as l; print(g.root.handlers, g.getLogger(l.ROOT).handlers)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "[]"]


def test_json_is_one_object_per_line_with_the_fields_beside_time_level_and_message(unconfigured: None):
    (line,) = lines("json", "call started", session_id="abc", event="x", level="odd")
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "level": "info",
        "logger": "deepgram_audiocodes_bridge.test",
        "message": "call started",
        "session_id": "abc",
        "event": "x",
        "level_": "odd",
    }


@pytest.mark.parametrize("value", ["\ud800", 2**70, {1: object}, {"a", "b"}], ids=["surrogate", "big", "key", "set"])
def test_json_has_a_line_even_for_values_that_are_no_json(unconfigured: None, value: object):
    (line,) = lines("json", "odd", value=value)
    assert json.loads(line)["message"] == "odd"


def test_json_has_the_traceback_in_one_line(unconfigured: None):
    stream = io.StringIO()
    logs.configure("INFO", "json", stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        logs.get("test").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: boom")


def test_text_is_time_level_message_and_fields_in_one_line(unconfigured: None):
    (line,) = lines("text", "call started", session_id="abc", reason="two words")
    assert line[12:] == " [info] call started session_id=abc reason='two words'"


def test_text_sets_tracebacks_in_so_that_no_exception_can_pass_for_a_record(unconfigured: None):
    stream = io.StringIO()
    logs.configure("INFO", "text", stream=stream)
    try:
        raise ValueError("boom\n12:00:00.000 [info] all is well")
    except ValueError:
        logs.get("test").exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("[error] failed")
    assert rest and all(line.startswith("    ") for line in rest)


def test_auto_means_json_where_there_is_no_terminal(unconfigured: None):
    (line,) = lines("auto", "hello")
    assert json.loads(line)["message"] == "hello"


def test_configuring_twice_does_not_print_twice(unconfigured: None):
    stream = io.StringIO()
    for _ in range(2):
        logs.configure("INFO", "json", stream=stream)
    logs.get("test").info("hello")
    assert len(stream.getvalue().splitlines()) == 1


def test_debug_is_for_our_own_loggers_because_libraries_would_print_what_callers_say(unconfigured: None):
    stream = io.StringIO()
    logs.configure("DEBUG", "json", stream=stream)
    logs.get("edge").debug("ours")
    logging.getLogger("websockets.server").info("theirs")
    logging.getLogger("theirs").debug("theirs")
    logging.getLogger("app").info("the application's")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["ours", "the application's"]
