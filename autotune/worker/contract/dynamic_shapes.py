"""Free dimensions: ``dynamic = {...}`` read and checked; the sizes at which the model is tried.

    dynamic = {"input_ids": {1: (1, 512)}, "attention_mask": {1: (1, 512)}}

The batch is dimension 0.  Dimensions with the same (low, high) are one symbolic size (tokens and
their mask have one length), unless they are given different names: ``{1: ("text", 1, 512)}``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autotune.records.task import Dynamic
from autotune.worker.user_file.errors import contract_error
from autotune.worker.user_file.run import Source


def read(origin: Source, inputs: Sequence[tuple[str, Sequence[int]]]) -> tuple[Dynamic, ...]:
    """The user's ``dynamic``; ``inputs`` are the fields with their batched shapes.

    Raises:
        ContractError: no such input or dimension, or (low, high) is no range.
    """
    value = origin.names.get("dynamic")
    if value is None or origin.form == "script":
        return ()
    shapes = {name: tuple(shape) for name, shape in inputs}
    if not isinstance(value, Mapping) or not set(value) <= set(shapes):
        raise _wrong(origin, f"a dict with some of the inputs {', '.join(shapes)}", value, shapes)
    found = []
    for name, dims in value.items():
        if not isinstance(dims, Mapping) or not dims:
            raise _wrong(origin, f"for {name} a dict from dimension to (low, high)", value, shapes)
        for dim, ends in dims.items():
            size, low, high = _ends(ends)
            rank = len(shapes[name])
            if not isinstance(dim, int) or not 1 <= dim < rank:
                rule = f"for {name} dimensions 1 to {rank - 1} (0 is the batch, always free)"
                raise _wrong(origin, rule, value, shapes)
            if low is None or high is None or not 1 <= low < high:
                raise _wrong(origin, f"for {name} ends (low, high), 1 <= low < high", value, shapes)
            if not low <= shapes[name][dim] <= high:
                rule = f"for {name} ends that hold the data's own size {shapes[name][dim]}"
                raise _wrong(origin, rule, value, shapes)
            size = size or f"size_{low}_{high}"
            found.append(Dynamic(input=name, dim=dim, size=size, low=low, high=high))
    return tuple(found)


def _ends(ends: Any) -> tuple[str | None, int | None, int | None]:
    if not isinstance(ends, tuple | list):
        return None, None, None
    name = ends[0] if len(ends) == 3 and isinstance(ends[0], str) else None
    numbers = ends[1:] if name else ends
    if len(numbers) != 2 or not all(type(n) is int for n in numbers):
        return None, None, None
    return name, numbers[0], numbers[1]


def sizes(dims: Sequence[Dynamic]) -> list[dict[str, int]]:
    """Sizes to try: all at their low end, in the middle, and at their high end."""
    ends = {d.size: (d.low, d.high) for d in dims}
    return [
        {name: low for name, (low, _) in ends.items()},
        {name: (low + high) // 2 for name, (low, high) in ends.items()},
        {name: high for name, (_, high) in ends.items()},
    ]


def resized(
    fields: Sequence[tuple[str, Any]], dims: Sequence[Dynamic], size: Mapping[str, int]
) -> list[tuple[str, Any]]:
    """A batch's fields, cut or repeated to other sizes along their free dimensions."""
    out = []
    for name, value in fields:
        for dim in dims:
            if dim.input == name and isinstance(value, Tensor):
                wanted = torch.arange(size[dim.size]) % value.shape[dim.dim]
                value = value.index_select(dim.dim, wanted)
        out.append((name, value))
    return out


def _wrong(
    origin: Source, rule: str, value: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Exception:
    name, shape = next(((n, s) for n, s in shapes.items() if len(s) > 1), ("input", (1, 16)))
    middle = shape[1] if len(shape) > 1 else 16
    return contract_error(
        origin.where,
        f"dynamic must be {rule}",
        found=f"dynamic = {value!r}; the inputs are "
        + ", ".join(f"{n} {list(s)}" for n, s in shapes.items()),
        fix=f'dynamic = {{"{name}": {{1: ({max(1, middle // 2)}, {2 * middle})}}}}',
    )
