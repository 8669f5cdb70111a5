"""transformers and Lightning models as they come: inspected, trained, shipped, scored.

Skipped where the framework is not installed; none of autotune's own code imports one.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autotune.records.job import Inspect, Score, Train
from autotune.records.plan import Recipe
from autotune.records.task import TaskSpec
from autotune.worker.channel import NullChannel
from autotune.worker.data import rows
from autotune.worker.evaluation import evaluate as evaluation
from autotune.worker.measure import outputs as measure_outputs
from autotune.worker.survey import inspect
from autotune.worker.training import train
from tests.support import tasks

FRAMEWORKS = Path(__file__).parent / "models" / "frameworks"

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.mark.parametrize(
    ("name", "framework", "floor", "metric"),
    [
        ("bert_pixels", "transformers", 0.2, "accuracy"),
        ("decoder_pixels", "transformers", 0.4, "token_accuracy"),
        ("lightning_digits", "lightning", 0.8, "accuracy"),
        ("vit_digits", "transformers", 0.25, "accuracy"),
    ],
)
def test_a_model_goes_all_the_way(
    tmp_path: Path, name: str, framework: str, floor: float, metric: str
) -> None:
    pytest.importorskip(framework)
    spec = TaskSpec(kind="file", path=str(FRAMEWORKS / f"{name}.py"))
    found = inspect.run(Inspect(task=spec), tmp_path, NullChannel())
    info = found.info
    assert info.metric == metric
    assert "token_type_ids" not in info.input_names
    assert any("training_step" in w for w in info.warnings) == (framework == "lightning")
    recipe = Recipe(**{"lr": 3e-3, "batch_size": 32, **(info.recipe or {})})
    order = Train(task=spec, recipe=recipe, epochs=info.epochs or 1, weights_out="w.st")
    done = train.run(order, tmp_path, NullChannel())
    assert done.qualities[-1] > floor
    outputs = {}
    for runtime in ("eager", "onnxruntime"):
        built = tasks.built(
            tmp_path, spec, weights="w.st", runtime=runtime, recipe=recipe, out=f"builds/{runtime}"
        )
        assert "model.pt2" not in built.files
        predict = tasks.predict(tmp_path / "builds" / runtime)
        inputs = rows.load(tmp_path / "data" / "validation.npz")
        measure_outputs.record(predict, inputs, tmp_path / f"{runtime}.npz", fixed=None)
        scored = evaluation.run(
            Score(task=spec, part="validation", outputs=f"{runtime}.npz"), tmp_path, NullChannel()
        )
        assert scored.scores.quality == pytest.approx(done.qualities[-1], abs=0.02)
        assert scored.scores.loss == pytest.approx(done.val_losses[-1], rel=0.05)
        outputs[runtime] = rows.load(tmp_path / f"{runtime}.npz").fields[0]
    assert np.allclose(outputs["eager"], outputs["onnxruntime"], atol=1e-3)


def test_a_bert_takes_every_length_that_dynamic_promises(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    spec = TaskSpec(kind="file", path=str(FRAMEWORKS / "bert_pixels.py"))
    inspect.run(Inspect(task=spec, pretrained=True), tmp_path, NullChannel())
    tasks.built(tmp_path, spec, runtime="onnxruntime")
    predict = tasks.predict(tmp_path / "out")
    for length in (16, 40, 96):
        ids = np.ones((2, length), np.int64)
        found = predict(input_ids=ids, attention_mask=ids)
        assert found["logits"].shape == (2, 10)


@pytest.mark.parametrize("world", [2])
def test_a_training_step_is_shared_out_over_ranks(tmp_path: Path, world: int) -> None:
    pytest.importorskip("lightning")
    spec = TaskSpec(kind="file", path=str(FRAMEWORKS / "lightning_digits.py"))
    recipe = Recipe(parallel="ddp", ranks=world, threads=1, batch_size=64, lr=3e-3)
    job = Train(task=spec, recipe=recipe, epochs=2)
    done = train.run(job, tmp_path, NullChannel())
    assert done.qualities[-1] > 0.6


def test_none_of_our_code_imports_a_framework() -> None:
    text = (
        "import sys, autotune.worker.contract.task, autotune.worker.training.train\n"
        "import autotune.worker.survey.inspect\n"
        "assert not {'transformers', 'lightning', 'pytorch_lightning'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    subprocess.run([sys.executable, "-c", text], check=True, env=env)
