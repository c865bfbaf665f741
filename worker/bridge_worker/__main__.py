"""`python -m bridge_worker` is `bridgectl worker`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["worker"]
    # by name: the worker itself must not import the SDK above it
    runpy.run_module("deepgram_audiocodes_bridge.cli", run_name="__main__", alter_sys=True)
