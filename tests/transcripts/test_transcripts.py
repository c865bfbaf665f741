"""The recorded conversations are what the bridge says today."""

from __future__ import annotations

import json

import pytest
from recording import FOLDER, SCENES, record, shape


def kept(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
async def test_each_side_says_what_it_said_when_it_was_recorded(redis_url: str, name: str) -> None:
    assert shape(await record(name, redis_url)) == shape(kept(name))


def test_every_scenario_is_recorded_and_no_other() -> None:
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(SCENES)


@pytest.mark.parametrize("name", SCENES)
def test_a_recording_tells_nothing_of_the_call_it_was_made_with(name: str) -> None:
    for line in kept(name):
        message = line.get("message")
        if isinstance(message, dict):
            assert str(message.get("conversationId", "<")).startswith("<")
            assert str(message.get("audioChunk", "<")).startswith("<")
