"""The published tables: rows are whole, the split is the stated one, predictions stay close."""

import statistics

import pytest

from benchmarks.published import __main__ as published


@pytest.fixture(scope="module")
def compared():
    return [published.compare(row) for row in published.rows()]


def test_rows_name_their_source_and_plan():
    rows = published.rows()
    assert len(rows) >= 50
    assert sum(row["split"] == "calibration" for row in rows) == 7
    for row in rows:
        assert row["source"].startswith("https://")
        assert bool(row["tokens_per_s"]) != bool(row["tflop_per_s_per_device"])
        assert row["recompute"] in ("none", "selective", "full")
        assert int(row["dp"]) * int(row["tp"]) * int(row["pp"]) == int(row["devices"])


def test_megatrons_count_is_the_papers():
    # arXiv 2104.04473, section 5.1: 145.6 billion parameters, 148 TFLOP/s on each of 1536
    row = next(r for r in published.rows() if r["model"].endswith("145.6B"))
    assert published.traits(row).parameters == pytest.approx(145.6e9, rel=0.01)
    # some 34 days for 300 billion tokens of the like GPT-3 on 1,024 at 140
    tokens_per_s = 2304 * 2048 / published.published_s(row)
    assert tokens_per_s == pytest.approx(148e12 * 1536 / (8 * 145.6e9), rel=0.1)


def test_shapes_have_the_published_sizes():
    sizes = {"MPT-7b": 6.66e9, "MPT-13b": 12.85e9, "MPT-30b": 29.98e9, "MPT-70b": 64.9e9}
    for row in published.rows():
        if row["model"] in sizes and row["sequence"] == "2048":
            assert published.traits(row).parameters == pytest.approx(sizes[row["model"]], rel=0.01)


def test_predictions_of_the_held_out_rows_stay_close(compared):
    held = [c for c in compared if c.row["split"] == "held out"]
    assert statistics.mean(abs(c.error) for c in held) < 0.15
    assert sum(c.covered for c in held) / len(held) > 0.85


def test_the_table_has_a_line_a_row(compared):
    assert len(list(published.table(compared))) == len(compared) + 1
    assert "within the stated 90 % interval" in published.summary("all", compared)
