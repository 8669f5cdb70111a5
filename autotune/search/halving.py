"""Successive halving with pauses: which trial continues at a rung, and which is resumed later.

    rung        1/9          1/3          1
    trial 0   0.7 pause ................................
    trial 1   0.5 ------> 0.4 ------> 0.35
    trial 2   0.6 pause .. promoted later, from its checkpoint, when it is in the best third

Asynchronous successive halving (Li et al., arXiv 1810.05934): a trial that does not continue at
once is paused, not ended.  Only trials of one group are compared: those of one learning-rate
schedule, as a one-cycle schedule is behind halfway, by design.  Pure bookkeeping.
"""

from collections import defaultdict

REDUCTION = 3


class Halving:
    """Values are minimised.  There are ``rungs`` rungs, numbered from 0; trials end at the last."""

    def __init__(self, rungs: int) -> None:
        self._last = rungs - 1
        self._seen: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        self._past: set[tuple[int, int]] = set()

    def report(self, number: int, rung: int, value: float, among: str) -> bool:
        """Record that trial ``number`` has reached a rung; returns whether it continues at once.

        It does where it is in the best third of the rung, at least the best of two; at a higher
        rung the first trial does too, as it has beaten others already.
        """
        seen = self._seen[among, rung]
        seen[number] = value
        if rung == self._last:
            return False
        first = len(seen) == 1 and rung == 0
        if first or number not in self._best(seen):
            return False
        self.resume(number, rung)
        return True

    def resume(self, number: int, rung: int) -> None:
        """Record that a trial continues past a rung."""
        self._past.add((number, rung))

    def pause(self, number: int, rung: int) -> None:
        """Record that a trial waits at a rung after all."""
        self._past.discard((number, rung))

    def promotable(self) -> int | None:
        """A paused trial that is in the best third of its rung by now; the highest rung first."""
        for rung in reversed(range(self._last)):
            found = [
                (seen[number], number)
                for (_, at), seen in self._seen.items()
                if at == rung and len(seen) > 1
                for number in self._best(seen)
                if self._waits(number, rung)
            ]
            if found:
                return min(found)[1]
        return None

    def rung_of(self, number: int) -> int | None:
        """The last rung that a trial has reached."""
        return max((rung for (_, rung), seen in self._seen.items() if number in seen), default=None)

    def paused(self) -> list[int]:
        """Trials that wait at some rung; the highest rung first, then the best value."""
        found = [
            (-rung, value, number)
            for (_, rung), seen in self._seen.items()
            for number, value in seen.items()
            if rung != self._last and self._waits(number, rung)
        ]
        return [number for _, _, number in sorted(found)]

    def forget(self, number: int) -> None:
        """Record that a trial has ended: it is not promoted, but others are compared with it."""
        for rung in range(self._last + 1):
            self._past.add((number, rung))

    def _waits(self, number: int, rung: int) -> bool:
        return (number, rung) not in self._past and self.rung_of(number) == rung

    def _best(self, seen: dict[int, float]) -> set[int]:
        count = max(1, len(seen) // REDUCTION)
        return set(sorted(seen, key=lambda number: (seen[number], number))[:count])
