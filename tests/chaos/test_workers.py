"""Workers die, stand still, come and go while callers talk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from experiment import experiment
from figures import note
from talking import busiest

from bridge_sim.agent import SimulatedAgent
from pods import Pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.gate
async def test_when_the_busiest_worker_is_killed_every_call_goes_on_at_another(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with experiment(redis_url, agent, tmp_path, "worker SIGKILL", "0 dropped, heard again in 2 s") as e:
        with e.fault():
            busiest(e.workers).kill()
        await e.another_turn()
        assert agent.total > len(e.talking.calls)  # it had calls, and they were taken over


async def test_when_two_of_three_workers_die_together_the_third_takes_all_their_calls(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with experiment(redis_url, agent, tmp_path, "2 of 3 workers SIGKILL at once", "0 dropped", workers=3) as e:
        last = min(e.workers, key=lambda worker: len(worker.logged("agent connected")))
        with e.fault():
            for worker in e.workers:
                if worker is not last:
                    worker.kill()
        await e.another_turn()


async def test_a_worker_that_is_killed_while_it_takes_calls_over_loses_none_of_them(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with experiment(redis_url, agent, tmp_path, "worker SIGKILL, and its heir in mid-takeover", "0 dropped") as e:
        first = busiest(e.workers)
        others = [worker for worker in [*e.workers, await e.pods.worker()] if worker is not first]

        def heirs() -> list[Pod]:
            return [worker for worker in others if worker.logged("call taken over")]

        with e.fault():
            first.kill()
            await others[0].until(heirs, 10, "the first takeover")
            heirs()[0].kill()
        await e.another_turn()


@pytest.mark.gate
async def test_calls_of_a_worker_that_stood_still_for_ten_seconds_go_on_elsewhere_and_it_does_no_harm_when_it_wakes(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    promise = "taken over in 4 s, nothing stale"
    async with experiment(redis_url, agent, tmp_path, "worker SIGSTOP 10 s", promise) as e:
        first = busiest(e.workers)
        (other,) = [worker for worker in e.workers if worker is not first]
        theirs, loop = len(first.logged("agent connected")), asyncio.get_running_loop()
        with e.fault(after=1.0):
            first.pause()
            stopped = loop.time()
            await other.until(lambda: len(other.logged("call taken over")) == theirs, 20, "the takeovers")
            taken = (loop.time() - stopped) * 1000
            await asyncio.sleep(10 - (loop.time() - stopped))
            first.go_on()
        await e.another_turn()
        assert sum(not connection.closed for connection in agent.connections) == len(e.talking.calls)
        assert agent.total > len(e.talking.calls)
    note("worker SIGSTOP: ms until all its calls are taken over", "4 s", calls=theirs, max=taken)


async def test_workers_that_stand_still_for_less_than_a_second_and_a_half_keep_their_calls(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    async with experiment(redis_url, agent, tmp_path, "workers SIGSTOP 0.4 to 1.5 s", "0 takeovers") as e:
        for seconds in (0.4, 0.9, 1.5):
            for worker in e.workers:
                worker.pause()
                await asyncio.sleep(seconds)
                worker.go_on()
        assert agent.total == len(e.talking.calls)


async def test_half_of_all_pods_can_die_at_once(redis_url: str, agent: SimulatedAgent, tmp_path: Path) -> None:
    async with experiment(
        redis_url, agent, tmp_path, "an edge and a worker SIGKILL at once", "0 dropped", edges=2
    ) as e:
        with e.fault():
            e.edges[0].kill()
            busiest(e.workers).kill()
        await e.another_turn()
        assert agent.total > len(e.talking.calls)


async def test_all_workers_are_replaced_one_by_one_and_nobody_notices(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    promise = "0.5 s beyond a pause, nothing lost"
    async with experiment(redis_url, agent, tmp_path, "all workers replaced one by one", promise, calls=20) as e:
        for worker in e.workers:
            await e.pods.worker()
            worker.terminate()
            assert await worker.ended(40) == 0
        assert not any("session_end" in worker.stdout for worker in e.workers)


async def test_workers_are_scaled_from_one_to_four_and_back(
    redis_url: str, agent: SimulatedAgent, tmp_path: Path
) -> None:
    promise = "0.5 s beyond a pause, nothing lost"
    async with experiment(redis_url, agent, tmp_path, "workers 1 to 4 to 1", promise, workers=1, calls=10) as e:
        others = await asyncio.gather(*(e.pods.worker() for _ in range(3)))
        leaving = [*e.workers, *others[:2]]
        for worker in leaving:
            worker.terminate()
        assert await asyncio.gather(*(worker.ended(40) for worker in leaving)) == [0, 0, 0]
