"""`examples/` and models that no example contains, in every form, through the whole road."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.conftest import EXAMPLES, QUICK, Ran

MODELS = Path(__file__).parent / "models"
WHOLE = (
    *(EXAMPLES / f"{name}.py" for name in ("plain_script", "two_towers", "wine_dict")),
    *(
        MODELS / f"{n}.py"
        for n in ("script_cancer_bce", "tuple_iris_lists", "dict_labels_attention")
    ),
)
"""Two of each form."""
OTHERS = sorted(set(MODELS.glob("*_*.py")) - set(WHOLE))


# one deployment beside the baseline: every stage is gone through, none twice
LEFT_OUT = "prune,ddp,int8_static,int8_dynamic"


@pytest.mark.slow
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_model_goes_all_the_way(run: Callable[..., Ran], path: Path) -> None:
    ran = run(path, *QUICK, "--only", "runtime=onnxruntime", "--without", LEFT_OUT)
    assert ran.report is not None, ran.err
    assert ran.report["status"] == "complete"
    assert ran.report["chosen"]["quality"] is not None
    assert ran.code in (0, 3, 4)
    assert set(ran.verdicts) == {"quality"}
    assert not any(t["state"] == "failed" for t in ran.report["deploy_trials"]), [
        t["failure"] for t in ran.report["deploy_trials"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_a_models_run_is_reckoned(run: Callable[..., Ran], path: Path) -> None:
    ran = run(path, "--dry-run", "--threads", "1")
    assert ran.code == 0, ran.err
    assert ran.report is None
