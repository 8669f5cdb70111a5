"""Dynamic energy: a window's joules less what the idle machine draws, before and after.

    idle window | window of the work | idle window
      P_before          E, T             P_after        E_dynamic = E - T (P_before + P_after) / 2

Budgets are on the total; the dynamic part is what the work added.  It may be negative
(the machine was not idle before or after) and is then reported as such, never as 0.
"""

from itertools import chain

import msgspec

from autotune.records.measurement import EnergyWindow

_DRIFT = 0.05
_RESOLVED = 3.0


def dynamic(work: EnergyWindow, before: EnergyWindow, after: EnergyWindow) -> EnergyWindow:
    """The window of the work with its dynamic energy, or with a note why there is none.

    Its half-width: the work's, plus T times the mean of the idle ones' (W) and half their drift.
    """
    for name, idle in (("before", before), ("after", after)):
        if idle.total_j is None:
            return _noted(
                work,
                f"no dynamic energy: the idle power {name} the work is not known ({idle.reason})",
            )
    if work.total_j is None:
        return work
    first_w, last_w = _watts(before), _watts(after)
    idle_w, span_s = (first_w + last_w) / 2, work.duration_s
    energy_j = work.total_j - idle_w * span_s
    unsure_w = (_unsure(before) + _unsure(after)) / 2 + abs(last_w - first_w) / 2
    uncertainty_j = (work.uncertainty_j or 0.0) + unsure_w * span_s
    notes = []
    if abs(last_w - first_w) > _DRIFT * idle_w:
        notes.append(f"idle power drifted from {first_w:.3g} W to {last_w:.3g} W")
    if energy_j < 0:
        notes.append(
            "the dynamic energy is negative: the machine drew more while it was idle than "
            "while it worked, so the idle windows were not idle"
        )
    elif energy_j < _RESOLVED * uncertainty_j:
        notes.append("the dynamic energy is below resolution: the work adds too little to idle")
    return _noted(
        msgspec.structs.replace(
            work, idle_w=idle_w, dynamic_j=energy_j, dynamic_uncertainty_j=uncertainty_j
        ),
        *notes,
    )


def _noted(window: EnergyWindow, *notes: str) -> EnergyWindow:
    return msgspec.structs.replace(window, notes=tuple(chain(window.notes, notes)))


def _watts(window: EnergyWindow) -> float:
    assert window.total_j is not None
    return window.total_j / window.duration_s


def _unsure(window: EnergyWindow) -> float:
    return (window.uncertainty_j or 0.0) / window.duration_s
