"""Frameworks whose models have conventions of their own.  None of them is imported.

    transformers  dict inputs with ``labels``, outputs with ``.loss`` and ``.logits``: as it
                  stands; a causal language model's labels are its inputs, shifted by one
    Lightning     ``training_step`` is the loss; optimizers and loops are ours

What this does not do: callbacks, schedulers and ``configure_optimizers`` (the recipe decides).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from autotune.errors import ContractError
from autotune.worker.data.samples import LABELS

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def has_training_step(model: nn.Module) -> bool:
    """Whether a model is a LightningModule with a training step of its own."""
    kinds = type(model).__mro__
    base = next((kind for kind in kinds if kind.__name__ == "LightningModule"), None)
    own = getattr(type(model), "training_step", None)
    return base is not None and own is not getattr(base, "training_step", None)


def shifts_labels(model: nn.Module) -> bool:
    """Whether a model takes its own inputs as labels: token t+1 is the target of token t."""
    return any(
        kind.__module__.startswith("transformers.") and kind.__name__.endswith(_CAUSAL)
        for kind in type(model).__mro__
    )


def prepared(model: nn.Module) -> nn.Module:
    """The model; a LightningModule's ``log`` does nothing, as there is no Trainer."""
    if has_training_step(model):
        for name in ("log", "log_dict"):
            object.__setattr__(model, name, _ignore)
    return model


def _ignore(*_: Any, **__: Any) -> None:
    return None


class TrainingStep(nn.Module):
    """A LightningModule called as ``step(input, target, number) -> loss``.

    A module of its own, so that DistributedDataParallel can wrap it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, target: Any, number: int) -> Tensor:
        """The mean loss of one batch.

        Raises:
            ContractError: the training step returns no loss.
        """
        labelled = isinstance(inputs, Mapping) and LABELS in inputs
        batch = inputs if labelled else (inputs, target)
        found = self.model.training_step(batch, number)  # type: ignore[operator]
        loss = found.get("loss") if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ContractError(
                f"{type(self.model).__name__}.training_step returned {type(found).__name__}; "
                "it must return the loss, or a dict with 'loss'"
            )
        return loss.reshape(())
