"""The small committed corpus of `make fuzz`, replayed: whatever arrives, no machine raises or keeps too much."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from targets import TARGETS, Target, kept

CORPUS = Path(__file__).with_name("corpus")


def sequences(target: Target) -> list[list[bytes]]:
    files = sorted(CORPUS.glob(f"{target.name}.*json"))
    return [[base64.b64decode(data) for data in datas] for file in files for datas in json.loads(file.read_text())]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_sequence_of_the_corpus_breaks_a_machine_or_makes_it_grow(target: Target):
    corpus = sequences(target)
    assert corpus
    old = target.machine()
    for datas in corpus * 5:
        fresh = target.machine()
        for data in datas:
            fresh.feed(data)
            old.feed(data)
            if old.over:
                old = target.machine()
        assert kept(old.machine) <= target.most
