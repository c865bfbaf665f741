"""`python -m bridge_edge` is `bridgectl edge`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["edge"]
    # by name: the edge itself must not import the SDK above it
    runpy.run_module("deepgram_audiocodes_bridge.cli", run_name="__main__", alter_sys=True)
