"""Whether the relay carries every frame whole, unchanged and in order; its figures count only if it does.

Both ends are written with `websockets` and so share nothing with the relay's own reading of frames. The sizes go over
every form of a frame's length, the masks are random, and TCP cuts the large ones into pieces.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random

from designs import peer
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

SIZES = [1, 2, 3, 60, 61, 125, 126, 127, 160, 1280, 49_000, 65_535, 65_536, 200_000, *range(1, 300)]
SECONDS = 20.0


class RelayWrong(Exception):
    """The relay changed, lost or reordered a frame."""


async def _echo(socket: ServerConnection) -> None:
    """An agent that gives every piece of audio back at once."""
    await socket.send(json.dumps({"type": "Welcome"}))
    async for message in socket:
        if isinstance(message, bytes):
            await socket.send(message)
        else:
            await socket.send(json.dumps({"type": "SettingsApplied"}))


async def _call(url: str, sent: list[bytes]) -> list[bytes]:
    """Send these pieces of audio through a call, and return as many as come back."""

    def message(kind: str, **more: object) -> str:
        return json.dumps({"type": kind, "conversationId": "check", **more}, separators=(",", ":"))

    async def until(kind: str) -> None:
        while json.loads(await socket.recv())["type"] != kind:
            pass

    async with connect(url, compression=None, max_size=None, ping_interval=None) as socket:
        await socket.send(message("session.initiate", supportedMediaFormats=["raw/mulaw"]))
        await until("session.accepted")
        await socket.send(message("userStream.start"))
        await until("userStream.started")

        async def speak() -> None:
            for audio in sent:
                await socket.send(message("userStream.chunk", audioChunk=base64.b64encode(audio).decode()))

        speaking = asyncio.create_task(speak())
        back: list[bytes] = []
        while len(back) < len(sent):
            got = json.loads(await socket.recv())
            if got["type"] == "playStream.chunk":
                back.append(base64.b64decode(got["audioChunk"]))
        await speaking
        return back


async def check() -> None:
    """Raises RelayWrong with the first frame that is not as it was sent, or TimeoutError if some never come back."""
    some = random.Random(1)
    calls = [[some.randbytes(size) for size in some.sample(SIZES, len(SIZES))] for _ in range(4)]
    async with serve(_echo, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None) as agent:
        port = next(iter(agent.sockets)).getsockname()[1]
        with peer("relay.py", f"ws://127.0.0.1:{port}") as design:
            async with asyncio.timeout(SECONDS):
                heard = await asyncio.gather(*(_call(design.urls[0], sent) for sent in calls))
    for sent, back in zip(calls, heard, strict=True):
        for number, (there, here) in enumerate(zip(sent, back, strict=True)):
            if there != here:
                raise RelayWrong(
                    f"frame {number} of {len(there)} bytes came back as {len(here)} bytes, beginning {here[:20]!r}; "
                    "mend baseline/relay.py before believing its figures"
                )


if __name__ == "__main__":
    asyncio.run(check())
    print("every frame came back as it was sent")
