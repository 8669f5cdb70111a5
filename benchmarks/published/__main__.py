"""Predicted step times against published training tables.  ``python -m benchmarks.published``

    rows.csv: model, shape, devices, plan, throughput, source -> step time
    the same plan predicted from the library profile of the machine -> error a row

Seven rows (split `calibration`) set the shares and errors in `planning.training_time`; all
others are held out.  The tables were chosen for naming model, batch, sequence, devices and plan:

- MosaicML llm-foundry, all rows of 2,048 and 8,192 tokens on A100 80GB and on H100 in bf16: FSDP
  full shard, tokens/s.  "Activation checkpointing" is full recomputation.
- Megatron-LM, arXiv 2104.04473, Table 1: FLOP/s by the paper's own count (equation 3), turned
  back into seconds by it.  Full recomputation; attention was not fused; the micro-batch is not
  given: the fastest of 1 to 8 that fits is taken.  Its interleaved schedule is not modelled.
- NVIDIA NeMo 24.07 on DGX H100, FP8, rows without context parallelism; shapes are those of the
  published models.  Recomputation is not given: none is assumed.

Network: as in the profile, or eight 200 or 400 Gb/s ports a node.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from autotune.hardware import profiles as hardware_profiles
from autotune.planning import machines, training_time
from autotune.records.outlook import Recompute, TrainingPlan
from autotune.records.task import Traits, Transformer

ROWS = Path(__file__).with_name("rows.csv")
Row = dict[str, str]


@dataclass(frozen=True)
class Compared:
    """One row: seconds a step, published and predicted; and the predicted peak of a device."""

    row: Row
    published_s: float
    predicted_s: float
    sd: float
    memory_bytes: float
    fits: float

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted_s / self.published_s - 1

    @property
    def covered(self) -> bool:
        return abs(math.log(self.predicted_s / self.published_s)) <= training_time.Z90 * self.sd


def rows() -> list[Row]:
    """The published table."""
    with ROWS.open(newline="") as file:
        return list(csv.DictReader(file))


def traits(row: Row) -> Traits:
    """What counting the model would give; attention is counted without its causal half."""
    layers, hidden, heads = (int(row[name]) for name in ("layers", "hidden", "heads"))
    ffn, vocabulary, sequence = (int(row[name]) for name in ("ffn", "vocabulary", "sequence"))
    kept = 2 * int(row["kv_heads"]) / heads
    matrices = hidden * hidden * (2 + kept) + hidden * ffn * (3 if int(row["gated"]) else 2)
    block = int(layers * (matrices + 4 * hidden))
    scored = layers * 4.0 * hidden * sequence**2
    flops = 2.0 * layers * matrices * sequence + scored
    parameters = block + (vocabulary + sequence) * hidden
    return Traits(
        parameters=parameters,
        parameter_bytes=4 * parameters,
        buffer_bytes=0,
        flops_per_sample=flops + 2.0 * sequence * hidden * vocabulary,
        activation_bytes_per_sample=0.0,
        largest_op_bytes=0,
        op_calls={"all": 16 * layers},
        transformer=Transformer(
            layers=layers,
            hidden=hidden,
            sequence=sequence,
            heads=heads,
            vocabulary=vocabulary,
            block_parameters=block,
            block_flops_per_sample=flops,
            attention_flops_per_sample=scored,
            fused_attention=bool(int(row["fused"])),
        ),
    )


def published_s(row: Row) -> float:
    """Seconds a step; where FLOP/s are given, by arXiv 2104.04473, equation 3."""
    batch, sequence = int(row["batch"]), int(row["sequence"])
    if row["tokens_per_s"]:
        return batch * sequence / float(row["tokens_per_s"])
    layers, hidden, vocabulary = (int(row[n]) for n in ("layers", "hidden", "vocabulary"))
    shares = 1 + sequence / (6 * hidden) + vocabulary / (16 * layers * hidden)
    flops = 96.0 * batch * sequence * layers * hidden**2 * shares
    return flops / (int(row["devices"]) * float(row["tflop_per_s_per_device"]) * 1e12)


def plans(row: Row) -> Iterable[TrainingPlan]:
    """The row's plan; several where its micro-batch is not given."""
    dp, batch = int(row["dp"]), int(row["batch"])
    given = row["micro_batch"]
    for micro in (int(given),) if given else (1, 2, 4, 8):
        yield TrainingPlan(
            batch_size=batch,
            precision=row["precision"],
            dp=dp,
            tp=int(row["tp"]),
            pp=int(row["pp"]),
            micro_batch=micro,
            micro_batches=max(1, batch // dp // micro),
            recompute=cast(Recompute, row["recompute"]),
            zero=int(row["zero"]),
        )


def compare(row: Row) -> Compared:
    """Predict one row from its machine's profile."""
    machine = machines.machine(
        hardware_profiles.load_profile(row["profile"]), devices=int(row["devices"])
    )
    model = traits(row)
    found = [training_time.forecast(model, machine, plan) for plan in plans(row)]
    fitting = [f for f in found if training_time.fits(f.memory_bytes, machine) >= 0.5] or found[:1]
    best = min(fitting, key=lambda f: f.time_s)
    return Compared(
        row,
        published_s(row),
        best.time_s,
        best.time_sd,
        best.memory_bytes,
        training_time.fits(best.memory_bytes, machine),
    )


def table(compared: Iterable[Compared]) -> Iterable[str]:
    """One line a row."""
    yield f"{'':11} {'model':20} {'machine':15} {'devices':>7} {'batch':>6} {'seq':>6} " + (
        f"{'published':>10} {'predicted':>10} {'error':>7} {'in 90 %':>7} {'memory':>7}"
    )
    for c in compared:
        row = c.row
        yield (
            f"{row['split']:11} {row['model']:20} {row['profile']:15} {row['devices']:>7} "
            f"{row['batch']:>6} {row['sequence']:>6} {c.published_s:>8.3f} s "
            f"{c.predicted_s:>8.3f} s {c.error:>+7.1%} {'yes' if c.covered else 'no':>7} "
            f"{c.memory_bytes / 1e9:>4.0f} GB"
        )


def summary(name: str, compared: list[Compared]) -> str:
    """MAPE, bias and coverage of some rows."""
    errors = [abs(c.error) for c in compared]
    bias = statistics.median(math.log(c.predicted_s / c.published_s) for c in compared)
    return (
        f"{name}: {len(compared)} rows, mean error {statistics.mean(errors):.1%}, largest "
        f"{max(errors):.1%}, median prediction {math.exp(bias):.2f}x of published, "
        f"{sum(c.covered for c in compared)} within the stated 90 % interval; all fitted their "
        f"devices, {sum(c.fits >= 0.1 for c in compared)} are given a chance of at least 0.1"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    compared = [compare(row) for row in rows()]
    print("\n".join(table(compared)))
    for split in ("calibration", "held out"):
        print(summary(split, [c for c in compared if c.row["split"] == split]))
    for source in dict.fromkeys(c.row["source"] for c in compared):
        held = [c for c in compared if c.row["source"] == source and c.row["split"] == "held out"]
        print(summary(f"  held out, {source}", held))


if __name__ == "__main__":
    main()
