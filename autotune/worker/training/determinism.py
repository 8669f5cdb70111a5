"""Which operators of a training step may give other results with the same seed.

    one step with torch's deterministic mode on, warning only --> the names it warns of

Most such operators are a GPU's (sums by atomics).  Not known here: kernels chosen by timing
(``torch.backends.cudnn.benchmark``), and the order in which ranks add up.
"""

import re
import warnings
from collections.abc import Callable

import torch

_WARNING = re.compile(r"^(\S.*?) does not have a deterministic implementation")


def named(step: Callable[[], object]) -> tuple[str, ...]:
    """The operators in ``step`` that torch says are not deterministic, in order."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            step()
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn)
    found = (_WARNING.match(str(warning.message)) for warning in caught)
    return tuple(dict.fromkeys(match[1] for match in found if match))
