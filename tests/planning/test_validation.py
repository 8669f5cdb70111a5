"""A measured table: errors and coverage by row, and faults named by line."""

import pytest

from autotune.errors import FormatError
from autotune.planning import validation
from tests.support import planned

MODEL = planned.decoder(layers=32, hidden=4096, sequence=2048, heads=32, vocabulary=50000)
PROFILES = {name: planned.profile(name) for name in ("h100-sxm-x8", "a100-80-sxm-x8")}


@pytest.fixture
def check(tmp_path):
    def run(text):
        path = tmp_path / "measured.csv"
        path.write_text(text)
        return validation.check(path, MODEL, PROFILES)

    return run


def test_rows_of_training_and_deployment(check):
    one, two = check(
        "machine,batch,precision,dp,micro_batch,zero,step_s\n"
        "h100-sxm-x8,128,bf16,8,2,1,2.7\n"
        "a100-80-sxm-x8,128,bf16,8,2,1,70.0\n"
    )
    assert one.covered
    assert not two.covered
    assert two.error < -0.8
    assert one.plan.micro_batches == 8
    assert (one.row, two.row) == (2, 3)
    (call,) = check("batch, precision, runtime, latency_s\n1, bf16, compiled, 0.05\n")
    assert call.machine == "h100-sxm-x8"
    assert call.predicted_s.low < call.predicted_s.value < call.predicted_s.high


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch,precision,step_s\n", "holds no rows"),
        ("batch,precison,step_s\n8,bf16,1\n", "unknown column 'precison'"),
        ("batch,step_s\n8,1\n", "line 2: column 'precision' is missing"),
        ("batch,precision,step_s\n8,bf16,-1\n", "line 2: -1 is no time"),
        ("batch,precision,step_s\n8,bf16,nan\n", "line 2: nan is no time"),
        ("batch,precision,step_s\n8,bf16,fast\n", "line 2: could not convert"),
        ("batch,precision,step_s\n8,int3,1\n", "line 2: h100-sxm-x8 has no rate for 'int3'"),
        ("batch,precision,dp,step_s\n9,bf16,8,1\n", "cannot be spread over dp 8"),
        ("batch,precision,micro_batch,step_s\n9,bf16,2,1\n", "does not divide"),
        ("batch,precision,recompute,step_s\n8,bf16,some,1\n", "Invalid enum value 'some'"),
        ("batch,precision,machine,step_s\n8,bf16,x,1\n", "machine 'x' is none of"),
        ("batch,precision,step_s,latency_s\n8,bf16,1,1\n", "either step_s or latency_s"),
        ("batch,precision,dp,step_s\n0,bf16,8,1\n", "batch is 0"),
    ],
)
def test_a_fault_names_its_line(check, text, said):
    with pytest.raises(FormatError, match=said):
        check(text)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        validation.check(tmp_path / "none.csv", MODEL, PROFILES)
