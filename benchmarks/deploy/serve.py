"""Serves one deployment in a process of its own: JSON lines in, answers out.

    python -m benchmarks.deploy.serve FOLDER ROWS BATCH THREADS

    {}                      -> {load_s, first_s}       once, when it is ready
    {"warm": seconds}       -> {usual_s}
    {"block": seconds}      -> {p50_s, calls}
    {"score": "file.npy"}   -> {}                      outputs of every row, by the same calls

An artifact's own ``load.py`` is used where there is one, else the peer's loader.  Between commands
the process blocks on its input, so that several can take turns.
"""

import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

POOL = 64
LEAST_CALLS = 3


def _predict(folder: Path) -> Any:
    path = folder / "load.py"
    if not path.is_file():
        from benchmarks.deploy.peers import load

        return load(folder)
    spec = importlib.util.spec_from_file_location("artifact_load", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found.load()


def block(predict: Any, calls: list[Any], seconds: float, first: int = 0) -> list[float]:
    """Seconds of single calls, one after another, for ``seconds``."""
    clock = time.perf_counter
    taken: list[float] = []
    began = clock()
    while len(taken) < LEAST_CALLS or clock() - began < seconds:
        arrays = calls[(first + len(taken)) % len(calls)]
        started = clock()
        predict(*arrays)
        taken.append(clock() - started)
    return taken


def outputs(predict: Any, rows: list[Any], batch: int) -> Any:
    """The output of every row; the last batch is padded with the last row."""
    import numpy as np

    found, count = [], len(rows[0])
    for start in range(0, count, batch):
        picked = np.minimum(np.arange(start, start + batch), count - 1)
        answer = predict(*(values[picked] for values in rows))
        found.append(np.asarray(answer)[: count - start].copy())
    return np.concatenate(found)


def main(argv: list[str]) -> int:
    """Serve until the input ends."""
    folder, rows_file, batch, threads = Path(argv[0]), argv[1], int(argv[2]), int(argv[3])
    from autotune.worker.measure.measure import limit_threads

    limit_threads(threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not mix with the answers
    began = time.perf_counter()
    predict = _predict(folder)
    loaded = time.perf_counter()

    import numpy as np

    with np.load(rows_file) as held:
        rows = [held[name] for name in held.files]
    count = max(1, min(POOL, len(rows[0]) // batch))
    calls = [[v[i * batch : (i + 1) * batch].copy() for v in rows] for i in range(count)]
    started = time.perf_counter()
    predict(*calls[0])
    first_s = time.perf_counter() - started
    print(json.dumps({"load_s": loaded - began, "first_s": first_s}), file=answers, flush=True)
    done = 0
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if "score" in command:
            np.save(command["score"], outputs(predict, rows, batch))
        elif "warm" in command:
            taken = block(predict, calls, command["warm"])
            answer = {"usual_s": statistics.median(taken)}
        else:
            taken = block(predict, calls, command["block"], done)
            done += len(taken)
            answer = {"p50_s": statistics.median(taken), "calls": len(taken)}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # runtimes' own clean-up takes half a second
