"""The search for a power limit on recorded tables.  ``python -m benchmarks.replay_training``

    rows.csv: gpu, workload, batch_size, power_limit_w, epoch_s, power_w
    -> for each table the least-energy setting within a tenth of the fastest epoch
    -> what `training.power_limit` finds in twelve measurements, and what twelve random ones find

The rows are measurements of Zeus's public trace (You et al., NSDI'23; repository ml-energy/zeus,
examples/research_reproducibility/zeus_nsdi23/trace/summary_power_{v100,a40}.csv), rounded to
five digits: seconds of an epoch and mean power of the GPU at each batch size and power limit.
CIFAR-100 on V100 is the Adam rows.  Energy is their product: the GPU's alone.

The tables are per epoch; how many epochs a batch size needs is not in them.  The exit code is 1
where a table fails: more than twelve measurements, or more than 3 % above its optimum.
"""

import csv
import random
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from autotune.training.power_limit import MOST_LOOKS, SLOWER, Look, least_energy

TABLES = Path(__file__).with_name("rows.csv")
Table = dict[tuple[int, float], Look]
_NEAR = 1.03


def load(path: Path = TABLES) -> dict[str, Table]:
    """Time and energy of an epoch by batch size and power limit, by GPU and workload."""
    found: dict[str, Table] = defaultdict(dict)
    with path.open() as file:
        for row in csv.DictReader(file):
            time_s = float(row["epoch_s"])
            look = Look(time_s, time_s * float(row["power_w"]))
            setting = int(row["batch_size"]), float(row["power_limit_w"])
            found[f"{row['gpu']}, {row['workload']}"][setting] = look
    return found


def optimum(table: Table) -> float:
    """The least energy within a tenth of the fastest."""
    fastest = min(look.time_s for look in table.values())
    return min(k.energy_j for k in table.values() if k.time_s <= (1 + SLOWER) * fastest)


def ratio(table: Table) -> tuple[float, int]:
    """Energy of the found setting over the optimum (infinite where it is too slow), and the
    number of measurements.
    """
    batches, limits = (sorted({key[i] for key in table}) for i in (0, 1))
    found = least_energy(
        [int(b) for b in batches], limits, lambda batch, limit: table[batch, limit]
    )
    look = found.looks[found.best]
    fastest = min(k.time_s for k in table.values())
    late = look.time_s > (1 + SLOWER) * fastest * 1.0001
    return (float("inf") if late else look.energy_j / optimum(table)), len(found.looks)


def at_random(table: Table, seed: int) -> float:
    """The same for the best of twelve random settings, of those near the fastest among them."""
    keys = random.Random(seed).sample(sorted(table), MOST_LOOKS)
    fastest = min(table[key].time_s for key in keys)
    fast = [table[key] for key in keys if table[key].time_s <= (1 + SLOWER) * fastest]
    return min(look.energy_j for look in fast) / optimum(table)


def main() -> int:
    """Print each table's line; 1 where one is missed."""
    missed = 0
    heads = ("settings", "looks", "found/optimum", "random", "saved")
    print(f"{'table':34} " + " ".join(f"{head:>{max(6, len(head))}}" for head in heads))
    for name, table in load().items():
        found, looks = ratio(table)
        chance = statistics.median(at_random(table, seed) for seed in range(200))
        full = min(table.values(), key=lambda look: look.time_s)
        saved = 1 - found * optimum(table) / full.energy_j
        kept = looks <= MOST_LOOKS and found <= _NEAR
        missed += not kept
        end = "" if kept else "  MISSED"
        print(f"{name:34} {len(table):8} {looks:5} {found:13.3f} {chance:7.3f} {saved:6.1%}{end}")
    print("random: median of 200 draws of twelve.  saved: against the fastest setting.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
