"""Start from the best configurations of an earlier run on a similar model and machine (``--like``).

    earlier report --> WarmStart: its best recipes     --trained again, first---> train search
                                  its best deployments --measured again, first--> deploy search

No figure of the earlier run is used: configurations are tried again, before any other.  An earlier
ranking can trap a search where the two models rank differently, so a share of the proposals comes
from a study that has not seen them (`study.MixedStudy`).

Not known here: where reports lie (`pipeline.earlier_reports`), and quality: what was accurate for
another model need not be for this one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from autotune.records.base import Record
from autotune.records.hardware import Profile
from autotune.records.plan import Deployment, Recipe, Value
from autotune.records.task import Traits
from autotune.search.study import Initial

WHY = "an earlier report"
"""Who proposed a configuration of a warm start."""
_SIMILAR_MODEL = 1.2
"""`model_distance` at most: 1.8x in size and in work, say."""
_SIMILAR_MACHINE = 0.5
"""`machine_distance` at most: anchors that differ 1.6x."""

Part = Literal["recipes", "deployments"]


class WarmStart(Record, frozen=True, kw_only=True):
    """The best recipes and deployments of one report, best first, and where it was made."""

    folder: str
    model: str
    traits: Traits
    profile: Profile
    deployments: tuple[Deployment, ...]
    recipes: tuple[Recipe, ...] = ()

    def similar_model(self, traits: Traits) -> bool:
        """Whether its model is near enough to one of these ``traits``."""
        return model_distance(traits, self.traits) <= _SIMILAR_MODEL

    def similar_machine(self, profile: Profile) -> bool:
        """Whether its machine is near enough to this one."""
        return machine_distance(profile, self.profile) <= _SIMILAR_MACHINE

    def first(
        self, known: Iterable[Mapping[str, Value] | None], usual: Sequence[Initial], what: str
    ) -> tuple[list[Initial], str]:
        """What a search tries first, and a note that says so.

        Args:
            known: this run's configurations in the values of the new space, None where outside.
            usual: what would be tried first without it; it comes after.
            what: for the note, e.g. ``"plans, measured anew"``.
        """
        given: list[Mapping[str, Value]] = []
        for values in known:
            if values and values not in given:
                given.append(values)
        kind, _, done = what.partition(", ")
        note = (
            f"Starts from {len(given)} {kind} of {self.folder} ({self.model}), {done}; every "
            "third of the sampler's trials has not seen them."
        )
        first = [(values, WHY) for values in given]
        return [*first, *((values, why) for values, why in usual if values not in given)], note


def nearest(
    earlier: Iterable[WarmStart], traits: Traits, profile: Profile, part: Part
) -> WarmStart | None:
    """Of those on a similar model and machine that have this part the nearest, if any."""
    near = [
        one
        for one in earlier
        if getattr(one, part) and one.similar_model(traits) and one.similar_machine(profile)
    ]

    def distance(one: WarmStart) -> float:
        return model_distance(traits, one.traits) + machine_distance(profile, one.profile)

    return min(near, key=distance, default=None)


def model_distance(one: Traits, other: Traits) -> float:
    """0 for equal models: the sum of the log ratios of parameters and of FLOPs, and the share of
    layers that only one of them has.
    """
    pairs = (
        (one.parameters, other.parameters),
        (one.flops_per_sample, other.flops_per_sample),
    )
    apart = sum(abs(math.log((a + 1) / (b + 1))) for a, b in pairs)
    kinds = set(one.module_types) | set(other.module_types)
    common = sum(min(one.module_types.get(k, 0), other.module_types.get(k, 0)) for k in kinds)
    most = max(sum(one.module_types.values()), sum(other.module_types.values()), 1)
    return apart + (1 - common / most if kinds else 0.0)


def machine_distance(one: Profile, other: Profile) -> float:
    """Median log ratio of the anchors' rates; infinite where instruction set, cores or GPUs
    differ.
    """
    same = (
        one.cpu.architecture == other.cpu.architecture
        and one.cpu.isa == other.cpu.isa
        and one.cpu.usable_cores == other.cpu.usable_cores
        and [g.name for g in one.gpus] == [g.name for g in other.gpus]
    )
    if not same:
        return math.inf
    ratios = [
        abs(math.log(leaf.value / found.value))
        for name, leaf in one.figures.items()
        if leaf.value and (found := other.figures.get(name)) is not None and found.value
    ]
    return sorted(ratios)[len(ratios) // 2] if ratios else 0.0
