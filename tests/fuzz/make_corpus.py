"""Choose the corpus anew: of many sequences, those that reach a line of the machines that none before has reached.

    python tests/fuzz/make_corpus.py

Sequences found by a failure are kept: they stand in `corpus/<target>.found.json`, which this does not touch.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from targets import TARGETS, Target

CORPUS = Path(__file__).with_name("corpus")
SEQUENCES, IN_A_ROW = 3000, 12


def choose(target: Target) -> list[list[bytes]]:
    reached: set[tuple[str, int]] = set()
    chosen: list[list[bytes]] = []

    @seed(0)
    @settings(
        max_examples=SEQUENCES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(target.inputs, min_size=1, max_size=IN_A_ROW))
    def sequence(datas: list[bytes]) -> None:
        lines: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if "bridge_shared" not in frame.f_code.co_filename:
                return None
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            return trace

        machine, before = target.machine(), sys.gettrace()
        sys.settrace(trace)
        try:
            for data in datas:
                machine.feed(data)
        finally:
            sys.settrace(before)
        if not lines <= reached:
            reached.update(lines)
            chosen.append(datas)

    sequence()
    return chosen


def main() -> None:
    for target in TARGETS:
        chosen = choose(target)
        text = [[base64.b64encode(data).decode() for data in datas] for datas in chosen]
        (CORPUS / f"{target.name}.json").write_text("[\n" + ",\n".join(map(json.dumps, text)) + "\n]\n")
        print(f"{target.name}: {len(chosen)} sequences, {sum(map(len, chosen))} inputs")


if __name__ == "__main__":
    main()
