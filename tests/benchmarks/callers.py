"""The callers of the load: so many calls from VAIC, with a stamp in every piece of their audio.

    python callers.py --calls 100 --load echo|talk ws://127.0.0.1:PORT [more edges]

`echo`: 160 bytes every 20 ms, and each comes back. `talk`: 1,280 bytes every 160 ms, as VAIC sends them; the agent
speaks by itself. It prints `ready` with the times of the set-ups as JSON; on its standard input `begin` starts a
measurement and `end` prints what was measured, as JSON, `gaps` the longest silence of each call. The calls end with
the standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import binascii
import json
import sys
import uuid

import orjson
import stamps
import uvloop
from sockets import TEXT, WebSocket

INTERVAL = {"echo": 0.02, "talk": 0.16}
CHUNK = {"echo": 160, "talk": 1280}
AT_ONCE = 16
"""Calls that are being set up."""


class Caller:
    """One call."""

    def __init__(self, load: Load, url: str, phase: float) -> None:
        self._load, self._url, self._phase = load, url, phase
        self.cid = str(uuid.uuid4())
        self.accepted = asyncio.Event()
        self._accepted_at: float | None = None
        self.ended = asyncio.Event()
        self._frames = bytearray()
        self._number = self._last = 0
        self._streams = 0
        self._heard = False
        self.heard_at = 0.0
        self.gap = (0.0, 0.0)
        chunk = CHUNK[load.kind]
        # base64 turns 3 bytes into 4: what follows the stamp is the same in every chunk
        self._fixed = 18
        rest = binascii.b2a_base64(bytes(chunk - self._fixed), newline=False)
        self._head = b'{"type":"userStream.chunk","conversationId":"' + self.cid.encode() + b'","audioChunk":"'
        self._tail = rest + b'"}'
        self.socket = WebSocket(self._message, self._opened, self._closed, url)

    async def place(self) -> float:
        """Place the call; returns the milliseconds from `session.initiate` to `session.accepted`.

        Raises:
            ConnectionError, TimeoutError: it was not accepted.
        """
        await self._load.loop.create_connection(lambda: self.socket, *_address(self._url))
        async with asyncio.timeout(30):
            await self.accepted.wait()
        if self._accepted_at is None:
            raise ConnectionError("the bridge has ended a call before it was accepted")
        return (self._accepted_at - self._began) * 1000

    def _closed(self) -> None:
        self.ended.set()
        self.accepted.set()

    def _json(self, kind: str, **more: object) -> None:
        self.socket.send(TEXT, orjson.dumps({"type": kind, "conversationId": self.cid, **more}))

    def _opened(self) -> None:
        self._began = stamps.now()
        self._json(
            "session.initiate",
            botName="load",
            caller="+493012345",
            expectAudioMessages=True,
            supportedMediaFormats=["raw/mulaw"],
        )

    def _message(self, opcode: int, payload: bytes) -> None:
        found = payload.find(b'"audioChunk"', 0, 160)
        if found >= 0:
            begins = payload.index(b'"', found + 12) + 1
            return self._audio(binascii.a2b_base64(payload[begins : payload.index(b'"', begins)]))
        message = orjson.loads(payload)
        match message["type"]:
            case "session.accepted":
                self._accepted_at = stamps.now()
                self.accepted.set()
                self._json("activities", activities=[{"type": "event", "name": "start"}])
                self._json("userStream.start")
            case "userStream.started":
                self._next = self._load.loop.time() + self._phase
                self._load.loop.call_at(self._next, self._speak)
            case "playStream.start":
                self._streams += 1
                self._heard = False
            case "session.error":
                print("refused:", message.get("reason"), file=sys.stderr, flush=True)

    def _audio(self, data: bytes) -> None:
        load = self._load
        load.chunks += 1
        load.bytes += len(data)
        now = stamps.now()
        if now - self.heard_at > self.gap[1] - self.gap[0]:
            self.gap = (self.heard_at, now)
        self.heard_at = now
        if load.kind == "talk":
            if not self._heard and (found := stamps.read(data)) is not None:
                self._heard = True
                load.delays.note(found[1])
            return
        self._frames += data
        at, size = 0, CHUNK["echo"]
        while len(self._frames) - at >= size:
            found = stamps.read(self._frames, at)
            if found is None:  # out of step: audio was lost
                load.lost += 1
                at += 1
                continue
            number, moment = found
            load.lost += max(0, number - self._last - 1)
            self._last = number
            load.delays.note(moment)
            at += size
        del self._frames[:at]

    def _speak(self) -> None:
        load = self._load
        if self.socket.transport.is_closing() or load.over:
            return
        self._number += 1
        first = stamps.stamp(self._number) + b"\x00" * (self._fixed - stamps.SIZE)
        self.socket.send(TEXT, self._head + binascii.b2a_base64(first, newline=False) + self._tail)
        load.late_ms = max(load.late_ms, (load.loop.time() - self._next) * 1000)
        self._next += INTERVAL[load.kind]
        load.loop.call_at(self._next, self._speak)

    async def hang_up(self) -> None:
        """End the call, and wait for the bridge to close the socket."""
        self._json("session.end", reasonCode="client-disconnected")
        async with asyncio.timeout(10):
            await self.ended.wait()


class Load:
    """All calls."""

    def __init__(self, kind: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.kind = kind
        self.callers: list[Caller] = []
        self.delays = stamps.Delays()
        self.over = False
        self.chunks = self.bytes = self.lost = 0
        self.late_ms = 0.0

    def begin(self) -> None:
        self.chunks = self.bytes = self.lost = 0
        self.late_ms = 0.0
        for caller in self.callers:
            caller.heard_at, caller.gap = stamps.now(), (0.0, 0.0)
        self.delays.begin()

    def end(self) -> dict[str, object]:
        return {
            "chunks": self.chunks,
            "bytes": self.bytes,
            "lost": self.lost,
            "late_ms": round(self.late_ms, 1),
            "heard": self.delays.end(),
            "open": sum(not caller.ended.is_set() for caller in self.callers),
        }

    def gaps(self) -> dict[str, tuple[float, float]]:
        """The longest silence of each call since `begin`: its begin and end on the monotonic clock."""
        return {caller.cid: caller.gap for caller in self.callers}


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("ws://").rstrip("/").partition(":")
    return host, int(port)


async def main(calls: int, kind: str, urls: list[str], per_second: float) -> None:
    """Place the calls, and hold them until the standard input ends.

    Args:
        per_second: so many are placed each second, however long each takes; 0: `AT_ONCE` are being set up.
    """
    load = Load(kind)
    stdin = asyncio.StreamReader()
    await load.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    gate = asyncio.Semaphore(AT_ONCE)
    callers = [Caller(load, urls[n % len(urls)], n / calls * INTERVAL[kind]) for n in range(calls)]
    load.callers = callers

    async def place(number: int, caller: Caller) -> float:
        if per_second:
            await asyncio.sleep(number / per_second)
            return await caller.place()
        async with gate:
            return await caller.place()

    began = stamps.now()
    placed = await asyncio.gather(*(place(*numbered) for numbered in enumerate(callers)), return_exceptions=True)
    failed = [result for result in placed if isinstance(result, BaseException)]
    if failed and not per_second:  # a burst may be refused in part, which is then a result
        raise failed[0]
    setups = {
        **stamps.summary(result for result in placed if isinstance(result, float)),
        "all_s": round(stamps.now() - began, 3),
        "failed": len(failed),
    }
    print("ready", json.dumps(setups), flush=True)
    while line := await stdin.readline():
        if line.strip() == b"begin":
            load.begin()
        elif line.strip() == b"gaps":
            print(json.dumps(load.gaps()), flush=True)
        else:
            print(json.dumps(load.end()), flush=True)
    load.over = True
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            if not caller.ended.is_set():
                tasks.create_task(caller.hang_up())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--load", choices=tuple(INTERVAL), required=True)
    parser.add_argument("--per-second", type=float, default=0.0)
    parser.add_argument("urls", nargs="+")
    given = parser.parse_args()
    uvloop.run(main(given.calls, given.load, given.urls, given.per_second))
