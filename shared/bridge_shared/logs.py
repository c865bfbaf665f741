"""Logging: structlog's bound fields in front of the standard library's loggers.

Every logger lies below ``deepgram_audiocodes_bridge``, so an application filters and formats ours as it does
its own. A record carries a constant message and its facts as attributes (``extra``); a formatter of the
application reads ``record.session_id``. No handler is installed unless `configure` is called, and only
``bridgectl`` calls it.

This is the one door to structlog.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

ROOT: Final = "deepgram_audiocodes_bridge"

Format = Literal["auto", "text", "json"]

# What a LogRecord has of its own; `extra` with one of these names makes logging raise KeyError.
_RECORD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# Line breaks and other control characters would let a caller's text forge a log line or move a terminal's cursor.
_CONTROL: Final = {n: " " for n in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}

# Libraries whose INFO is a line per connection; their DEBUG would print what callers say.
_CHATTY: Final = ("asyncio", "httpcore", "httpx", "uvicorn", "websockets")


class Logger(structlog.BoundLoggerBase):
    """A logger with bound fields: ``log.bind(session_id=...)`` returns one that adds them to every record.

    Messages are constant sentences; whatever varies is a field. A field whose name the standard library
    reserves (``name``, ``args``, …) is recorded with an underscore behind it. `exc_info` is passed on.
    """

    _logger: logging.Logger

    def debug(self, message: str, /, **fields: Any) -> None:
        self._emit(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        self._emit(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        self._emit(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        self._emit(logging.ERROR, message, fields)

    def exception(self, message: str, /, **fields: Any) -> None:
        """`error` with the traceback of the exception being handled."""
        self._emit(logging.ERROR, message, {"exc_info": True, **fields})

    def enabled(self, level: int) -> bool:
        """Whether a record of this level would go anywhere; for fields that are dear to compute."""
        return self._logger.isEnabledFor(level)

    def _emit(self, level: int, message: str, fields: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        exc_info = fields.pop("exc_info", None)
        _, extra = self._process_event("", None, fields)
        # 3 = whoever called debug(), info() …
        self._logger.log(level, message, exc_info=exc_info, extra=extra, stacklevel=3)


def get(name: str) -> Logger:
    """The logger ``deepgram_audiocodes_bridge.<name>``."""
    return Logger(logging.getLogger(f"{ROOT}.{name}"), processors=(_clean,), context={})


def stdlib(name: str) -> logging.Logger:
    """A standard logger below ours for a library that wants one. It records what went wrong, not every connection."""
    logger = logging.getLogger(f"{ROOT}.{name}")
    logger.setLevel(logging.WARNING)
    return logger


def call_logger(cid: str) -> Logger:
    """The logger of one call: every record says which (`conversation_id`); bind `session_id` when it is known."""
    return get("call").bind(conversation_id=cid)


def configure(level: str = "INFO", format: Format = "auto", *, stream: TextIO | None = None) -> None:
    """Send all records of this process to `stream` (standard error), one line each.

    Args:
        level: for our own loggers. The application's are shown from INFO on, libraries from WARNING on, whatever
            this says, because their DEBUG prints what callers say.
        format: ``text`` for people, ``json`` for machines, ``auto`` = text if the stream is a terminal.
        stream: where to; standard error by default.

    Calling it again replaces what it installed before.
    """
    stream = stream if stream is not None else sys.stderr
    terminal = stream.isatty()
    formatter: logging.Formatter
    if format == "text" or (format == "auto" and terminal):
        formatter = _TextFormatter(colors=terminal and not os.environ.get("NO_COLOR"))
    else:
        formatter = _JsonFormatter()
    handler = _Handler(stream)
    handler.setFormatter(formatter)

    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger(ROOT).setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _clean(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor: names that logging accepts, values without line breaks."""
    return {f"{key}_" if key in _RECORD_ATTRIBUTES else key: _one_line(value) for key, value in fields.items()}


def _one_line(value: Any) -> Any:
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"  # audio is never printed
    return value.translate(_CONTROL) if isinstance(value, str) else value


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that `configure` finds it again."""


class _JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, the fields, and exception as one string."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        _add_fields(line, record)
        if exception := _traceback(record):
            line["exception"] = exception
        try:
            return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # orjson refuses lone surrogates and integers beyond 64 bits; a log line must not be lost for that.
            return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    """``12:00:01.250 [info] message  key=value``; a traceback follows, each of its lines set in."""

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        self._renderer = structlog.dev.ConsoleRenderer(
            colors=colors, event_key="message", timestamp_key="time", pad_event_to=0, pad_level=False, sort_keys=False
        )

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3],
            "level": record.levelname.lower(),
            "message": record.getMessage().translate(_CONTROL),
        }
        _add_fields(line, record)
        text = self._renderer(None, "", line)
        if exception := _traceback(record):
            # Set in, so that no text inside an exception can pass for a record.
            text = "\n    ".join([text, *exception.splitlines()])
        return text


def _add_fields(line: dict[str, Any], record: logging.LogRecord) -> None:
    fields: Mapping[str, Any] = vars(record)
    for key, value in fields.items():
        if key not in _RECORD_ATTRIBUTES:
            line[f"{key}_" if key in line or key in {"exception", "exc_info", "stack"} else key] = _one_line(value)


def _traceback(record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(logging.Formatter().formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
