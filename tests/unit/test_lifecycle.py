"""bridge_shared.lifecycle: the media thread's beginning and end, and signals, with real threads and processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import uvloop

from bridge_shared.lifecycle import MediaThread

LONG = 3600.0  # seconds: for ever, in a test


@pytest.fixture
def media() -> Iterator[MediaThread]:
    with MediaThread() as thread:
        yield thread


def test_the_loop_is_uvloop_in_a_thread_that_is_no_daemon(media: MediaThread):
    async def where() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        return asyncio.get_running_loop(), threading.current_thread()

    loop, thread = media.submit(where()).result()
    assert isinstance(loop, uvloop.Loop)
    assert thread is not threading.current_thread()
    assert not thread.daemon


def test_a_submitted_coroutine_gives_its_result_or_its_error(media: MediaThread):
    async def fail() -> None:
        raise ValueError("mine")

    assert media.submit(asyncio.sleep(0, "done")).result() == "done"
    with pytest.raises(ValueError, match="mine"):
        media.submit(fail()).result()


async def test_a_result_can_be_awaited_in_another_loop(media: MediaThread):
    assert await asyncio.wrap_future(media.submit(asyncio.sleep(0, "done"))) == "done"


def test_a_task_whose_future_nobody_kept_is_not_collected_while_it_waits():
    ended = []

    async def serve() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with MediaThread() as media:
        media.submit(serve())
        media.submit(asyncio.sleep(0)).result()
        gc.collect()
        media.submit(asyncio.sleep(0)).result()
        assert ended == []
    assert ended == ["cancelled"]


def test_cancelling_the_future_cancels_the_task(media: MediaThread):
    begun, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    future = media.submit(wait())
    begun.wait()
    future.cancel()
    assert cancelled.wait(timeout=30)


def test_calls_from_other_threads_run_in_the_loop(media: MediaThread):
    ran: concurrent.futures.Future[str] = concurrent.futures.Future()
    media.call(lambda word: ran.set_result(f"{word} in {threading.current_thread().name}"), "ran")
    assert ran.result() == "ran in bridge-media"


async def test_a_blocked_main_loop_does_not_stop_the_media_loop(media: MediaThread):
    """What the second thread is for: here the main loop is blocked until the other has turned 50 times."""
    turned = threading.Event()

    async def turn() -> None:
        for _ in range(50):
            await asyncio.sleep(0.001)
        turned.set()

    future = media.submit(turn())
    assert turned.wait(timeout=30)
    await asyncio.wrap_future(future)


def test_stopping_cancels_what_is_left_and_lets_it_clean_up():
    media = MediaThread().start()
    cleaned = []

    async def serve() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0)  # a cleaning up that needs the loop
            cleaned.append("closed")

    future = media.submit(serve())
    media.submit(asyncio.sleep(0)).result()
    assert media.stop(timeout=30)
    assert cleaned == ["closed"]
    assert future.cancelled()
    assert media.loop.is_closed()


def test_stopping_also_ends_a_task_that_was_started_by_a_task_being_cancelled():
    media = MediaThread().start()
    second = []

    async def late() -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            second.append("cancelled")
            raise

    async def first() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            kept.append(asyncio.create_task(late()))
            await asyncio.sleep(0)

    kept: list[asyncio.Task[None]] = []
    media.submit(first())
    media.submit(asyncio.sleep(0)).result()
    assert media.stop(timeout=30)
    assert second == ["cancelled"]


def test_a_task_that_ignores_its_cancellation_is_named_and_left_behind(caplog: pytest.LogCaptureFixture):
    media = MediaThread().start()

    async def stubborn() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("the stubborn one")
        begun.set()
        while True:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                continue

    begun = threading.Event()
    future = media.submit(stubborn())
    begun.wait()
    assert not media.stop(timeout=0.05)
    assert [vars(r)["task"] for r in caplog.records if "ignored its cancellation" in r.message] == ["the stubborn one"]
    assert not future.done()
    # asyncio complains when the task is collected: here, and not in whichever test happens to run by then.
    del media, future
    gc.collect()
    assert caplog.messages[-1] == "something failed in the media loop"


def test_a_task_that_fails_while_being_stopped_is_logged(caplog: pytest.LogCaptureFixture):
    media = MediaThread().start()

    async def fail() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            raise ValueError("mine")

    media.submit(fail())
    media.submit(asyncio.sleep(0)).result()
    assert media.stop(timeout=30)
    assert "a task failed while it was being stopped" in caplog.messages


def test_a_callback_that_raises_is_logged_and_the_loop_goes_on(media: MediaThread, caplog: pytest.LogCaptureFixture):
    media.call(lambda: 1 / 0)
    assert media.submit(asyncio.sleep(0, "still here")).result() == "still here"
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.message == "something failed in the media loop"
    assert record.exc_info is not None


def test_after_stop_nothing_is_taken_any_more():
    media = MediaThread().start()
    assert media.stop(timeout=30)
    assert media.stop(timeout=30)
    with pytest.raises(RuntimeError, match="stopped"):
        media.submit(asyncio.sleep(0))
    with pytest.raises(RuntimeError):
        media.call(print)


def test_a_thread_that_never_started_takes_nothing_and_can_be_stopped():
    media = MediaThread()
    with pytest.raises(RuntimeError, match="not been started"):
        media.submit(asyncio.sleep(0))
    assert media.stop(timeout=30)
    assert media.loop.is_closed()
    with pytest.raises(RuntimeError, match="been stopped"):
        media.start()


def test_the_media_thread_cannot_wait_for_itself(media: MediaThread):
    async def stop() -> None:
        media.stop(timeout=1)

    with pytest.raises(RuntimeError, match="its own end"):
        media.submit(stop()).result()


# The application's loop is blocked for ever by a handler, as a polling loop without `await` does it. (One long
# time.sleep would not do here: a signal that comes between Python's last look for one and the system call waits
# until that call ends.)
BLOCKED_APP = """
import asyncio, sys, time
from bridge_shared.lifecycle import MediaThread, Signals

def say(word):
    print(word, flush=True)

async def app():
    say("ready")
    while True:
        time.sleep(0.01)

media = MediaThread().start()
with Signals(on_drain=lambda: media.call(say, "draining")):
    asyncio.run(app())
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_media_loop_while_the_applications_loop_is_blocked_and_a_second_one_kills(
    first: signal.Signals,
):
    with subprocess.Popen([sys.executable, "-c", BLOCKED_APP], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(first)
            assert process.stdout.readline() == "draining\n"
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 1
        finally:
            process.kill()  # or a failure would wait for the end of something that blocks for ever


RESTORING = """
import signal, threading
from bridge_shared.lifecycle import Signals

mine = lambda *_: print("mine")
signal.signal(signal.SIGTERM, mine)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
drains, kills = [], []
signals = Signals(lambda: drains.append(1), lambda: kills.append(1))
with signals:
    signals.install()  # a second time: what stands before stays known
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
assert (drains, kills, signals.received) == ([1], [1, 1], 3)
assert signal.getsignal(signal.SIGTERM) is mine
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

refused = []
thread = threading.Thread(target=lambda: refused.append(Signals(print).install()))
thread.start(); thread.join()
assert refused == [False]
assert signal.getsignal(signal.SIGTERM) is mine
"""


def test_signals_count_are_restored_and_are_left_alone_outside_the_main_thread():
    subprocess.run([sys.executable, "-c", RESTORING], check=True)
