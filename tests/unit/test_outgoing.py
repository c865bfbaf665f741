"""bridge_edge.outgoing: what waits before a slow socket, over a real one."""

from __future__ import annotations

import asyncio

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from bridge_edge.outgoing import Outgoing

BIG = 256 * 1024
MANY = 200  # 50 MiB: more than loopback holds by itself


async def test_speech_of_a_turn_that_waits_before_a_slow_socket_is_dropped_at_its_cut_and_nothing_else() -> None:
    dropped: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def slow(socket: ServerConnection) -> None:
        outgoing = Outgoing(socket, lambda _: None, lambda: None)
        writer = asyncio.create_task(outgoing.run())
        for _ in range(MANY):
            outgoing.put(b"s" * BIG, audio=1000, turn=(1, 1))
        outgoing.put(b"stop")
        outgoing.put(b"later", audio=1000, turn=(1, 2))
        before = -1
        while outgoing.backlog != before:  # until the socket takes no more
            before = outgoing.backlog
            await asyncio.wait([writer], timeout=0.1)
        left = outgoing.drop_audio((1, 1))
        assert outgoing.backlog == BIG + len(b"stop" + b"later")  # the socket may have a part of the first
        outgoing.put(b"end")
        dropped.set_result(left)
        await socket.wait_closed()
        writer.cancel()

    async with serve(slow, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", max_size=None, max_queue=1, compression=None) as vaic:
            left = await asyncio.wait_for(dropped, 20)
            got = [await vaic.recv()]
            while got[-1] != "end":
                got.append(await vaic.recv())
    assert left > 0
    assert [message for message in got if len(message) < BIG] == ["stop", "later", "end"]
    assert len(got) - 3 == MANY - left // 1000
