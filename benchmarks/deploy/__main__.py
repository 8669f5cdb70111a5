"""Autotune's plan against eight ways to serve a model by hand.  ``python -m benchmarks.deploy``

    eight models on real data x (batch 1, a throughput batch)
      -> checkpoint (once) -> eight ways to serve it by hand, each built and scored
      -> autotune run --goal latency, at most 60 trials -> all of them timed side by side

Two claims for each batch: on every model the slowdown against the fastest peer that keeps the
quality floor has a 95 % lower bound of at most 3 %; in the geometric mean over models autotune is
1.3 times faster.  Rows are kept in ``.cache/benchmarks/deploy/rows.jsonl``; those made with this
source of autotune, these package versions and this setting are not made again.

Exit code: 0 the claims hold, 1 a claim fails, 4 rows are missing.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks._common.data import DataError
from benchmarks.deploy import judge, prepare, rows
from benchmarks.deploy.prepare import MODELS, THROUGHPUT_BATCH, RowError, Setting

QUICK = ("mlp", "crepe", "gru")
QUICK_SETTING = Setting(time_s=60.0, cycles=1, block_s=0.1, rows=2000)
HOLDS, FAILS, MISSING = 0, 1, 4
Job = tuple[str, int]


def jobs(only: Sequence[str], batches: Sequence[int], quick: bool) -> list[Job]:
    """Rows to make, batch 1 of every model first.

    Raises:
        RowError: a name that is no model.
    """
    unknown = [name for name in only if name not in MODELS]
    if unknown:
        raise RowError(f"--only {unknown[0]}: no such model; there are {', '.join(MODELS)}")
    models = list(only) or list(QUICK if quick else MODELS)
    several = batches or ((1,) if quick else (1, THROUGHPUT_BATCH))
    return [(model, batch) for batch in several for model in models]


def estimate_s(job: Job, setting: Setting) -> float:
    """About how many seconds a row takes; what is cached takes none."""
    model, batch = job
    peers = prepare.place(model, batch, setting.threads)
    ready = (peers / "openvino-int8" / "peer.json").is_file()
    trained = prepare.weights(model).is_file()
    blocks = 2 * setting.cycles * setting.block_s * 10
    race = setting.launches * (15 + blocks)
    return 1.1 * setting.time_s + 30 + race + (0 if ready else 150) + (0 if trained else 180)


def report(wanted: list[Job], found: dict[Job, dict[str, Any]]) -> int:
    """Print every row and the claims; the exit code."""
    for job in wanted:
        if job in found:
            print("\n".join(judge.table(found[job])), end="\n\n")
    missing = [job for job in wanted if job not in found]
    lines, good = judge.summary([found[job] for job in wanted if job in found])
    print("\n".join(lines))
    if missing:
        print("rows missing: " + ", ".join(f"{m} batch {b}" for m, b in missing))
        return MISSING
    return HOLDS if good else FAILS


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], metavar="MODEL", help="may repeat")
    parser.add_argument("--batch", action="append", default=[], type=int, help="may repeat")
    parser.add_argument("--quick", action="store_true", help="three models, batch 1, 10 minutes")
    parser.add_argument("--time", type=float, metavar="S", help="seconds of each search")
    parser.add_argument("--threads", type=int, default=Setting().threads)
    parser.add_argument("--launches", type=int, default=Setting().launches)
    parser.add_argument("--minutes", type=float, help="start no row that would end later")
    parser.add_argument("--show", action="store_true", help="only print the rows there are")
    parser.add_argument("--prepare", action="store_true", help="only train and build the peers")
    parser.add_argument("--peers", action="store_true", help="only race the peers; no row is kept")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the rows that are missing, print them, and judge."""
    given = arguments(argv)
    setting = (QUICK_SETTING if given.quick else Setting())._replace(
        threads=given.threads, launches=given.launches
    )
    if given.time:
        setting = setting._replace(time_s=given.time)
    if setting.time_s > 360:
        print(f"--time {setting.time_s:g}: the claim is about searches of at most 360 s")
        return 2
    try:
        wanted = jobs(given.only, given.batch, given.quick)
        if not given.show:
            if given.prepare or given.peers:
                alone(wanted, setting, given.peers)
                return HOLDS
            make(wanted, setting, given.minutes)
    except (RowError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    return report(wanted, rows.stored(setting))


def alone(wanted: list[Job], setting: Setting, raced: bool) -> None:
    """Build and score the peers, and race them without autotune where that is wished."""
    prepare.train([model for model, _ in wanted], setting.threads)
    for model, batch in wanted:
        if raced:
            row = rows.row(model, batch, setting, search=False)
            print("\n".join(judge.table(row)), end="\n\n", flush=True)
            continue
        prepare.make_test_rows(model, setting.rows)
        found = prepare.prepared(model, batch, setting)
        print(f"{model} batch {batch}: peers ready", flush=True)
        for one in found.values():
            said = one.get("failure") or "quality {:.4f}, drop {:+.4f}".format(*one["quality"])
            print(f"   {one['title']:38} {said}", flush=True)


def make(wanted: list[Job], setting: Setting, minutes: float | None) -> None:
    """Make what is not stored, until the time is up."""
    began = time.monotonic()
    done = rows.stored(setting)
    if minutes is None:
        prepare.train(
            [model for model, batch in wanted if (model, batch) not in done], setting.threads
        )
    for model, batch in wanted:
        if (model, batch) in done:
            continue
        spent = time.monotonic() - began
        if minutes is not None and spent + estimate_s((model, batch), setting) > 60 * minutes:
            print(f"{model} batch {batch} would not end within {minutes:g} minutes", flush=True)
            return
        print(f"{model} batch {batch} ...", flush=True)
        rows.keep(rows.row(model, batch, setting))


if __name__ == "__main__":
    sys.exit(main())
