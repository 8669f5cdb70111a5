"""What a search needs, whatever it searches: spaces, studies, surrogate, halving, warm starts."""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.search.study import Initial, MixedStudy, Proposal, Study

__all__ = [
    "Initial",
    "MixedStudy",
    "Proposal",
    "Study",
    "halving",
    "space",
    "surrogate",
    "warm_start",
]

__getattr__ = lazy(
    __name__, {"Initial": "study", "MixedStudy": "study", "Proposal": "study", "Study": "study"}
)
