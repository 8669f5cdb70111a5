"""Units of figures: the ending of a leaf's name is its SI unit.

gemm_fp32_2t_flop_per_s  FLOP/s      power_limit_w  W      multiprocessors  1
"""

UNITS: tuple[tuple[str, str], ...] = (
    ("_flop_per_s", "FLOP/s"),
    ("_op_per_s", "op/s"),
    ("_bytes_per_s", "B/s"),
    ("_bytes", "B"),
    ("_hz", "Hz"),
    ("_w", "W"),
    ("_j", "J"),
    ("_s", "s"),
)
"""(ending, unit), the longer ending first.  A name without any of them is a count or ratio."""
NONE = "1"


def unit_of(name: str) -> str:
    """The unit that a leaf of this name has."""
    return next((unit for ending, unit in UNITS if name.endswith(ending)), NONE)
