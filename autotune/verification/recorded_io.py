"""``artifact/recorded.npz``: a few inputs with the artifact's outputs, and baseline scores.

Keys: ``in0``, ``in1``, ... and ``in_names``, ``in_kind``; ``out0``, ... likewise; and
``baseline_quality``, ``baseline_per_sample`` or ``baseline_replicates`` (on *test*), which
a later verification is tested against.  Nothing is pickled.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.errors import OutputError
from autotune.records.measurement import Scores

_ROWS = 8


def record(work: Path, target: Path, built: str, baseline: Scores | None) -> None:
    """Write ``target`` from the run's *test* rows and the verified outputs.

    Raises:
        OutputError: it cannot be written.
    """
    import numpy as np

    name = built.rpartition("/")[2]
    data: dict[str, Any] = {}
    for prefix, path in (
        ("in", work / "data" / "test.npz"),
        ("out", work / "outputs" / f"{name}-test.npz"),
    ):
        if not path.exists():  # outputs too large to keep are removed once they are scored
            continue
        with np.load(path, allow_pickle=False) as rows:
            data[f"{prefix}_names"] = rows["names"]
            data[f"{prefix}_kind"] = rows["kind"]
            for i in range(len(rows["names"])):
                data[f"{prefix}{i}"] = _first(rows, i)[:_ROWS]
    if baseline is not None:
        data["baseline_quality"] = np.array(baseline.quality)
        data["baseline_rows"] = np.array(baseline.rows)
        for field in ("per_sample", "replicates"):
            values = getattr(baseline, field)
            if values is not None:
                data[f"baseline_{field}"] = np.array(values)
    scratch = target.with_name(".recorded.part.npz")
    try:
        with scratch.open("wb") as file:
            np.savez_compressed(file, **data)
        scratch.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror or error})") from None


def _first(rows: Any, field: int) -> Any:
    """The first rows of one field of a rows file: stacked, in chunks, or one array a row."""
    for name in (f"f{field}", f"f{field}.c0"):
        if name in rows:
            return rows[name]
    return rows[f"f{field}.0"][None]


def rows_file(recorded: Path, out: Path) -> Callable[[Path], bool]:
    """Write the recorded inputs as a rows file; the answer compares outputs with the recorded.

    Agreement is to 1e-4 of the largest recorded magnitude.
    """
    import numpy as np

    with np.load(recorded, allow_pickle=False) as data:
        kept = {key: data[key] for key in data}
    names = kept["in_names"]
    rows = min(len(kept[f"in{i}"]) for i in range(len(names)))
    fields = {f"f{i}": kept[f"in{i}"][:rows] for i in range(len(names))}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, kind=kept["in_kind"], names=names, **fields)

    def agrees(outputs: Path) -> bool:
        with np.load(outputs, allow_pickle=False) as found:
            for i in range(len(kept.get("out_names", ()))):
                want = kept[f"out{i}"][:rows]
                got = _first(found, i)[: len(want)]
                scale = max(1.0, float(np.abs(want).max(initial=0.0)))
                if got.shape != want.shape or float(np.abs(got - want).max()) > 1e-4 * scale:
                    return False
        return True

    return agrees


def scores(recorded: Path, whose: str) -> Scores:
    """The recorded *test* scores of the baseline."""
    import numpy as np

    with np.load(recorded, allow_pickle=False) as data:
        found = {
            field: tuple(float(x) for x in data[f"{whose}_{field}"])
            for field in ("per_sample", "replicates")
            if f"{whose}_{field}" in data
        }
        return Scores(
            quality=float(data[f"{whose}_quality"]),
            rows=int(data[f"{whose}_rows"]),
            per_sample=found.get("per_sample"),
            replicates=found.get("replicates"),
        )
