"""What a launch says about the machine it ran on: disturbances, and notes for the verdict.

Does not know whether a disturbance changed a latency, only that it was there.
"""

from collections.abc import Sequence

from autotune import units
from autotune.records.measurement import Launch
from autotune.stats import quantile

FOREIGN_LOAD = 0.2
STEAL = 0.05


def cause(launch: Launch) -> str | None:
    """Why a launch should be taken again, or None.  What could not be read disturbs nothing."""
    found = []
    throttled = _number(launch, "nr_throttled")
    if throttled is not None and throttled > 0:
        found.append(f"throttled {throttled:.0f} times by a CPU quota")
    steal = _number(launch, "steal_share")
    if steal is not None and steal > STEAL:
        found.append(f"{units.percent(steal)} stolen by the hypervisor")
    foreign = _number(launch, "foreign_load")
    if foreign is not None and foreign > FOREIGN_LOAD:
        found.append(f"{units.percent(foreign)} foreign load")
    return ", ".join(found) or None


def clock_step_s(launches: Sequence[Launch]) -> float:
    """The clock's step where it was too coarse for the calls, else 0."""
    coarse = (one for one in launches if one.tags.get("coarse_timer"))
    return max((_number(one, "timer_resolution_s") or 0.0 for one in coarse), default=0.0)


def notes(launches: Sequence[Launch], disturbed: Sequence[Launch], percentile: float) -> list[str]:
    """What a reader of the latency verdict should know about its launches."""
    out = []
    if any(launch.response_s for launch in launches):
        calls = [x for launch in launches for x in launch.latency_s]
        service = quantile.point_quantile(calls, percentile)
        out.append(f"service time p{percentile:g} {units.show(service, 's')}")
    timeouts = sum(launch.timeouts for launch in launches)
    if timeouts:
        out.append(f"{timeouts} requests were not answered in time and count as misses")
    unsettled = sum(not launch.settled for launch in launches)
    if unsettled:
        out.append(f"{unsettled} of {len(launches)} launches did not settle in the warm-up")
    if disturbed:
        were = "launch was" if len(disturbed) == 1 else "launches were"
        out.append(f"{len(disturbed)} {were} disturbed ({cause(disturbed[0])}) and taken again")
    still = [found for launch in launches if (found := cause(launch))]
    if still:
        out.append(
            f"{len(still)} of {len(launches)} launches that count were disturbed ({still[0]})"
        )
    step = clock_step_s(launches)
    if step:
        out.append(f"the clock moves in steps of {units.show(step, 's')}")
    return out


def _number(launch: Launch, name: str) -> float | None:
    value = launch.environment.get(name)
    return value if isinstance(value, float) else None
