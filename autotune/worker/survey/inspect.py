"""Inspects the task once, before the search: checks it, counts its model, writes its rows.

    load -> make_model -> one forward -> one loss -> looks trained? -> one score -> traits
                                     `-> data/*.npz, weights (pretrained), imports

What is wrong with the task is a contract error here.  Nothing is trained.
"""

import hashlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from autotune import module_locator
from autotune.errors import ContractError
from autotune.records.job import Inspect, Inspection
from autotune.records.task import TaskInfo, TaskSpec
from autotune.worker.channel import Channel
from autotune.worker.contract import (
    LoadedTask,
    agreement,
    default_metrics,
    dynamic_shapes,
    frameworks,
    load,
)
from autotune.worker.data import rows, samples
from autotune.worker.data.batch_tree import fields, kind_of, size_of
from autotune.worker.data.streams import Stream
from autotune.worker.evaluation.evaluate import evaluating
from autotune.worker.server import task_cache
from autotune.worker.survey import trained_check
from autotune.worker.user_file.errors import contract_error, guard

CALIBRATION_ROWS = 256
WEIGHTS = "weights.safetensors"
_CHECKED_ROWS = 8
_SCORED_ROWS = 256
_RECORDED_ROWS = 32


def run(job: Inspect, root: Path, channel: Channel) -> Inspection:
    """Inspect ``job.task``; writes ``data/validation``, ``data/test`` and ``data/calibration``.

    Raises:
        ContractError: what is wrong with the task, where, and the lines that fix it.
    """
    from autotune.worker.survey.model_stats import count

    before = task_cache.modules_before()
    loaded = load(job.task, pretrained=job.pretrained)
    torch.manual_seed(job.task.seed)
    model = loaded.trained_model() if loaded.info.pretrained else loaded.make_model()
    imports = _imports(job.task, before)
    if loaded.functions.unlabelled:
        outputs = _outputs(loaded, model)
        loaded.functions.answers = agreement.record(outputs, root, loaded.where)
    checked, evaluation_s = _check(loaded, model)
    info = _with_weights(checked, loaded)
    arguments, named = loaded.model_inputs(loaded.collate([loaded.sample("validation", 0)])[0])
    traits = count(model, arguments, named)
    weights = None
    if info.pretrained:
        from safetensors.torch import save_model

        (root / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(root / WEIGHTS))
        weights = WEIGHTS
    write_rows(loaded, root)
    loaded.write_inspected(root)
    return Inspection(
        info=info, traits=traits, imports=imports, weights=weights, evaluation_s=evaluation_s
    )


def _outputs(loaded: LoadedTask, model: nn.Module) -> Iterator[tuple[Any, Tensor]]:
    """The model's output for each batch of rows without targets, and the rows' numbers."""
    for part in ("validation", "test", "calibration"):
        if getattr(loaded, part) is None:
            continue
        for inputs, target in loaded.batches(part, _RECORDED_ROWS):
            with guard(loaded.where, "the model's forward", loaded.path), evaluating(model):
                output = loaded.call(model, inputs)
            yield output, target


def _with_weights(info: TaskInfo, loaded: LoadedTask) -> TaskInfo:
    """With the checkpoint's hash, and what was found and stripped in it."""
    if loaded.spec.weights is None:
        return info
    with Path(loaded.spec.weights).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed: TaskInfo = msgspec.structs.replace(
        info, weights_sha256=digest, warnings=(*info.warnings, *loaded.notes)
    )
    return changed


def write_rows(loaded: LoadedTask, root: Path) -> None:
    """The inputs of *validation* and *test*, and up to `CALIBRATION_ROWS` for calibration.

    Calibration rows come from *train*, else *calibration*, else *validation*; evenly spaced, or
    the first ones of a stream.
    """
    for part in ("validation", "test"):
        count = loaded.rows(part)
        rows.save(root / "data" / f"{part}.npz", _rows(loaded, part, range(count)))
    part = "train" if loaded.train else "calibration" if loaded.calibration else "validation"
    count = loaded.rows(part)
    spread = np.unique(np.linspace(0, count - 1, min(count, CALIBRATION_ROWS)).astype(int))
    if isinstance(loaded.part(part), Stream):
        spread = np.arange(len(spread))
    rows.save(root / "data" / "calibration.npz", _rows(loaded, part, spread.tolist()))


def _rows(loaded: LoadedTask, part: str, numbers: Sequence[int]) -> rows.Rows:
    """Inputs of these rows, collated in batches (of one where their shapes may differ)."""
    size = 1 if loaded.info.ragged or loaded.has_own_collate else _SCORED_ROWS
    found: list[list[Any]] = []
    for start in range(0, len(numbers), size):
        samples_ = [loaded.sample(part, number) for number in numbers[start : start + size]]
        inputs, _ = loaded.collate(samples_)
        arrays = loaded.input_arrays(inputs)
        found += [[array[i] for array in arrays] for i in range(len(samples_))]
    info = loaded.info
    names = info.input_names if info.input_kind == "dict" else ("",) * len(info.input_names)
    return rows.from_samples(info.input_kind, names, found)


def _check(loaded: LoadedTask, model: nn.Module) -> tuple[TaskInfo, float]:
    """Check one forward, one loss and one score on real rows.

    Returns:
        What is known of the task afterwards, and the seconds to score all of *validation* so.
    """
    info = loaded.info
    if not info.pretrained and loaded.train is None:
        raise contract_error(
            loaded.where,
            "there is evaluation data but no training data, and the model is not pretrained",
            missing="train_data(), or `pretrained = True`",
            fix="def train_data():\n"
            "    X, y = ...  # tensors or arrays, one row a sample\n"
            "    return torch.utils.data.TensorDataset(X, y)",
        )
    inputs, target = _batch(loaded, "validation", _CHECKED_ROWS)
    with evaluating(model):
        output = _forward(loaded, model, inputs)
    has_loss = _check_loss(loaded, model, output, target, inputs)
    if not info.pretrained:
        trained_check.check(loaded)
        _check_training(loaded, model)
    binary, evaluation_s = _check_score(loaded, model)
    _check_dynamic(loaded, model)
    names = tuple(n for n, m in model.named_modules() if n and not list(m.children()))
    changed: TaskInfo = msgspec.structs.replace(
        info,
        has_loss=has_loss,
        smoothable=has_loss and _smoothable(loaded, model, output, target),
        binary=binary,
        module_names=names,
        output_bytes_per_row=size_of(output) // max(1, samples_in(inputs)),
        warnings=(*info.warnings, *_framework(loaded, model)),
    )
    return changed, evaluation_s


def _smoothable(loaded: LoadedTask, model: nn.Module, output: Any, target: Any) -> bool:
    """Whether a recipe may smooth labels: the loss is the default cross-entropy, or the user's
    ``train`` computes it.

    Raises:
        ContractError: it may not, and the user's recipe does.
    """
    own = loaded.own_train is not None
    plain = not frameworks.has_training_step(model) and loaded.functions.smoothable(output, target)
    smoothing = (loaded.info.recipe or {}).get("label_smoothing")
    if smoothing and not plain and not own:
        raise loaded.functions.unsmoothable(float(smoothing))
    return plain or own


def samples_in(inputs: Any) -> int:
    """Rows of a batch of inputs."""
    named = fields(inputs)
    return len(named[0][1]) if named and isinstance(named[0][1], Tensor) else 1


def _framework(loaded: LoadedTask, model: nn.Module) -> tuple[str, ...]:
    if not frameworks.has_training_step(model) or loaded.own_train is not None:
        return ()
    return (
        "a LightningModule: training_step is the loss; optimizer and learning rate are searched; "
        "configure_optimizers() and callbacks are not called",
    )


def _check_dynamic(loaded: LoadedTask, model: nn.Module) -> None:
    """The model must run at both ends and the middle of its free dimensions."""
    free = loaded.info.dynamic
    if not free:
        return
    inputs, _ = loaded.collate([loaded.sample("validation", 0)])
    for size in dynamic_shapes.sizes(free):
        named = dynamic_shapes.resized(fields(inputs), free, size)
        shapes = ", ".join(f"{name} {_shape(value)}" for name, value in named)
        hint = (Exception, "dynamic promises that the model takes these sizes: narrow its ranges")
        with (
            evaluating(model),
            guard(loaded.where, f"the model's forward at ({shapes})", loaded.path, [hint]),
        ):
            if isinstance(inputs, dict):
                model(**dict(named))
            else:
                model(*(value for _, value in named))


def _batch(loaded: LoadedTask, part: str, most: int) -> tuple[Any, Any]:
    count = 1 if loaded.info.ragged and not loaded.has_own_collate else most
    count = min(count, loaded.rows(part))
    return loaded.collate([loaded.sample(part, row) for row in range(count)])


def _forward(loaded: LoadedTask, model: nn.Module, inputs: Any) -> Any:
    shapes = ", ".join(f"{name} {_shape(value)}" for name, value in fields(inputs))
    how = {"tensor": "model(x)", "tuple": "model(*inputs)", "dict": "model(**inputs)"}
    hint = (Exception, f"a batch of your dataset's inputs is passed as {how[kind_of(inputs)]}")
    with guard(loaded.where, f"the model's forward on a batch ({shapes})", loaded.path, [hint]):
        return loaded.call(model, inputs)


def _check_loss(
    loaded: LoadedTask, model: nn.Module, output: Any, target: Any, inputs: Any
) -> bool:
    """Whether there is a loss; it must be one finite number."""
    trains_itself = loaded.own_train is not None or frameworks.has_training_step(model)
    if trains_itself and not loaded.has_own_loss:
        try:
            return math.isfinite(float(loaded.loss(output, target)))
        except (ContractError, IndexError):
            return False
    if not loaded.info.has_loss:
        if not loaded.info.pretrained:
            default_metrics.loss(output, target)  # raises, with the lines that fix it
        return False
    _check_binary_floats(loaded)
    _check_classes(loaded, output, target)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with guard(loaded.where, "the loss of the first batch", loaded.path):
            value = float(loaded.loss(output, target))
    for warning in caught:
        if "size" in str(warning.message) and "broadcasting" in str(warning.message):
            raise _broadcasts(loaded, output, target)
    if not math.isfinite(value):
        bad = [name for name, x in fields(inputs) if not _finite(x)]
        raise contract_error(
            loaded.where,
            f"the loss of the first batch is {value}",
            found=f"{', '.join(bad)} holds NaN or infinity" if bad else "finite inputs",
            hint="scale the inputs, and look for log(0) or a division by 0 in the model or loss",
        )
    return True


def _check_training(loaded: LoadedTask, model: nn.Module) -> None:
    """The loss must depend on a parameter in training mode."""
    if loaded.own_train is not None:
        return
    inputs, target = _batch(loaded, "train", _CHECKED_ROWS)
    modes = {module: module.training for module in model.modules()}
    model.train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    if frameworks.has_training_step(model):
        with guard(loaded.where, "training_step(batch, 0)", loaded.path):
            value = frameworks.TrainingStep(model)(inputs, target, 0)
    else:
        value = loaded.loss(_forward(loaded, model, inputs), target)
    for buffer, kept in zip(model.buffers(), buffers, strict=True):
        buffer.data.copy_(kept)
    for module, mode in modes.items():
        module.training = mode
    if not value.requires_grad:
        count = sum(p.requires_grad for p in model.parameters())
        raise contract_error(
            loaded.where,
            "the loss does not depend on any trainable parameter",
            found=f"{count} trainable parameter tensors in the model",
            missing="a path of tensor operations from the parameters to the loss",
            hint="look for .detach(), .item(), torch.no_grad() or argmax in forward and loss",
        )


def _check_score(loaded: LoadedTask, model: nn.Module) -> tuple[bool, float]:
    """Whether all scores are 0 or 1, so that the exact paired test applies; and the seconds to
    score all of *validation*.
    """
    began = time.perf_counter()
    inputs, target = _batch(loaded, "validation", _SCORED_ROWS)
    with evaluating(model):
        output = _forward(loaded, model, inputs)
        score = loaded.score(output, target)
        if score is None:
            loaded.quality(output, target)
    spent = time.perf_counter() - began
    seconds = spent * loaded.info.validation_rows / max(1, samples_in(inputs))
    # balanced scores are weighted later; agreement of a model with itself is always 1
    if score is None or loaded.functions.balanced or loaded.functions.unlabelled:
        return False, seconds
    plain = bool(((score == 0) | (score == 1)).all())
    return loaded.info.binary or (plain and bool((score == 1).any())), seconds


def _check_binary_floats(loaded: LoadedTask) -> None:
    """Refuse float targets that are all 0 or 1, unless loss and score say what they are."""
    if loaded.has_own_loss and (loaded.has_own_score or loaded.info.metric != "neg_mse"):
        return
    if loaded.has_own_score and loaded.info.pretrained:
        return
    if loaded.functions.unlabelled:
        return
    streamed = loaded.train is None or isinstance(loaded.train, Stream)
    values = samples.targets(loaded.validation if streamed else loaded.train)
    if values is None or values.dtype.kind != "f" or not np.isin(values, (0.0, 1.0)).all():
        return
    both = not loaded.has_own_loss
    raise contract_error(
        loaded.where,
        "the targets are floats that are all 0 or 1: classes or numbers?",
        found=f"float targets {list(values.shape)} with the values "
        f"{', '.join(str(v) for v in np.unique(values))}",
        missing="loss(output, target)" if both else "score(output, target)",
        fix="def loss(output, target):\n"
        "    # 0 or 1 from one logit a sample; or return integer targets from the dataset\n"
        "    return F.binary_cross_entropy_with_logits(output, target)"
        if both
        else "def score(output, target):\n"
        "    # right or wrong, one number a sample, for outputs that are logits\n"
        "    return ((output > 0) == (target > 0.5)).float()",
    )


def _check_classes(loaded: LoadedTask, output: Any, target: Any) -> None:
    classes, guess = loaded.info.classes, default_metrics.main_output(output)
    if classes is None or guess is None or loaded.has_own_loss or guess.dim() != target.dim() + 1:
        return
    if classes > guess.shape[1]:
        raise contract_error(
            loaded.where,
            "the model has fewer outputs than there are classes",
            found=f"targets up to {classes - 1}, outputs {_shape(guess)}",
            missing=f"{classes} outputs (classes count from 0)",
            fix=f"def make_model():\n    ...  # end with\n    nn.Linear(hidden, {classes})",
        )


def _broadcasts(loaded: LoadedTask, output: Any, target: Any) -> Exception:
    return contract_error(
        loaded.where,
        "output and target do not fit together: the loss broadcasts them, which is seldom intended",
        found=f"output {_shape(default_metrics.main_output(output))}, target {_shape(target)}",
        missing="one shape for both",
        fix="y = y.reshape(-1, 1)  # where the data is made",
    )


def _imports(task: TaskSpec, before: set[str]) -> tuple[str, ...]:
    """Installed packages that loading the task imported, and the modules of them that the
    user's file names: the server imports them once, so that no job needs to.
    """
    from importlib.metadata import packages_distributions

    tops = {name.partition(".")[0] for name in set(sys.modules) - before}
    installed = packages_distributions() if tops - before else {}
    fresh = {top for top in tops - before if top in installed and top != "autotune"}
    found = set(fresh)
    if task.kind == "file":
        path = module_locator.locate(task.path) or Path(task.path)
        names = module_locator.imported(path, anywhere=True)
        found |= {name for name in names if name.partition(".")[0] in fresh}
    return tuple(sorted(name for name in found if getattr(sys.modules.get(name), "__spec__", None)))


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _finite(value: Any) -> bool:
    return not (isinstance(value, Tensor) and value.is_floating_point()) or bool(
        value.isfinite().all()
    )
