"""Stands in for train.py where its parent is tested: no torch, and a step takes no time.

It keeps the promises that a parent relies on: it continues where it was, saves and leaves at
SIGTERM, and exports last. Its figures are a function of recipe, seed and step.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

flags = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
run, steps, seed = Path(flags["--run"]), int(flags["--steps"]), int(flags["--seed"])
recipe = Path(flags["--config"]).stem
every = -(-steps // int(flags["--evaluations"]))
if os.environ.get("PRETENDED_FAILURE") == f"{recipe}-{seed}":
    sys.stderr.write("Traceback:\nerror: it was not meant to be\n")
    sys.exit(2)

resolved = json.loads(os.environ["PRETENDED_SETTINGS"])[recipe]
state = run / "checkpoints" / "state"
state.parent.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text(json.dumps(resolved | {"seed": seed, "steps": steps}))
step = int(state.read_text()) if state.exists() else 0
seconds = 0.05 if os.environ.get("PRETENDED_SLOWNESS") == f"{recipe}-{seed}" else 0.0
wishes: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _: wishes.append(number))


def figures(step: int) -> dict[str, float]:
    noise = crc32(f"{recipe} {seed} {step}".encode()) / 2**32 / 10
    return {"knn_top1": 0.3 + 0.2 * (1 - math.exp(-step / steps)) + noise, "view_map": noise}


with (run / "metrics.jsonl").open("a") as file:

    def store(record: Mapping[str, object]) -> None:
        file.write(json.dumps(record) + "\n")
        file.flush()

    while step < steps:
        time.sleep(seconds)
        step += 1
        facts = {"loss": 1 / step, "seconds": 0.5 + step / 4, "data_wait": 0.1, "memory_gib": 1.0}
        store({"step": step} | facts)
        if step % every == 0 and step < steps:
            store({"step": step, "evaluation": "online"} | figures(step))
        if wishes:
            state.write_text(str(step))
            sys.exit(128 + wishes[0])
    final = {"linear_top1": 0.5} | figures(step)
    store({"step": step, "evaluation": "final"} | final)
state.write_text(str(step))
(run / "encoder.safetensors").write_bytes(b"")
