"""Counts a model's traits (FLOPs, parameters, bytes) without its weights.

    load -> make_model() on the meta device -> one forward of meta tensors -> traits
                 `-> it cannot be traced -> the real model, where its weights fit in memory

A model of 70 billion parameters takes a second and no memory.  Loss, score and rows are not
checked, as `survey.inspect` does.
"""

import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from autotune.errors import ContractError, JobError
from autotune.records.job import Outline, Outlined
from autotune.records.task import Traits
from autotune.worker.channel import Channel
from autotune.worker.contract import LoadedTask, load
from autotune.worker.survey.model_stats import count

_SHARE = 0.7  # of the free memory that a model made in full may take


def run(job: Outline, root: Path, channel: Channel) -> Outlined:
    """Count the model of ``job.task``.

    Raises:
        ContractError: the task cannot be loaded, or its model cannot be called.
        JobError: the model must be made in full, and does not fit in this machine's memory.
    """
    del root, channel
    loaded = load(job.task, pretrained=False)
    first = loaded.collate([loaded.sample("validation", 0)])[0]
    arguments, named = loaded.model_inputs(first)
    try:
        traits = _on_meta(loaded, arguments, named)
    except (RuntimeError, TypeError, ValueError, ContractError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        note = f"the model cannot be traced without its weights ({said[:120]}): it was made in full"
        _must_fit(loaded)
        traits = count(loaded.given_model(), arguments, named)
        return Outlined(info=loaded.info, traits=traits, notes=(note,))
    return Outlined(info=loaded.info, traits=traits)


def _on_meta(loaded: LoadedTask, arguments: Any, named: Any) -> Traits:
    with warnings.catch_warnings():
        # copying weights into a meta tensor does nothing, as intended
        warnings.filterwarnings("ignore", message="for .*: copying from a non-meta parameter")
        model = _made_on_meta(loaded)
    args, kwargs = tree_map(_to_meta, (arguments, named))
    return count(model, args, kwargs)


def _made_on_meta(loaded: LoadedTask) -> nn.Module:
    with torch.device("meta"):
        model = loaded.given_model()
    return model.to("meta")


def _to_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def _must_fit(loaded: LoadedTask) -> None:
    """Raise where the model is known not to fit."""
    try:
        made = _made_on_meta(loaded)
    except Exception:  # whatever the user's code raises: its size is then unknown
        return
    size = sum(p.numel() * p.element_size() for p in made.parameters())
    free = psutil.virtual_memory().available
    if size > _SHARE * free:
        raise JobError(
            "oom",
            f"the model has {size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB are free here, and "
            "it cannot be traced without them: remove .item(), .numpy() and branches on values "
            "from its forward, or plan a smaller one",
        )
