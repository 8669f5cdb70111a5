"""Successive halving that resumes: which trial goes on at a rung, and which is taken up again.

    rung        1/9          1/3          1
    trial 0   0.7 pause ................................
    trial 1   0.5 go on -> 0.4 go on -> 0.35
    trial 2   0.6 pause .. promoted later, from its checkpoint, when it is in the best third

Asynchronous successive halving (Li et al., arXiv 1810.05934): a trial that does not go on at
once is paused, not ended.  Only trials of one group (of one schedule: one cycle is behind
halfway, by design) are compared.  Pure bookkeeping: knows no time and no trainings.
"""

from collections import defaultdict

REDUCTION = 3


class Halving:
    """Values are minimised.  ``rungs`` counts them, from 0; the last is a trial's end."""

    def __init__(self, rungs: int) -> None:
        self._last = rungs - 1
        self._seen: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        self._gone: set[tuple[int, int]] = set()

    def report(self, number: int, rung: int, value: float, among: str) -> bool:
        """Trial ``number`` has reached a rung; whether it goes on at once.

        It does where it is in the best third of those seen there, at least the best of two; at a
        higher rung the first one does too, as it has beaten others already.
        """
        seen = self._seen[among, rung]
        seen[number] = value
        if rung == self._last:
            return False
        alone = len(seen) == 1 and rung == 0
        if alone or number not in self._best(seen):
            return False
        self.went_on(number, rung)
        return True

    def went_on(self, number: int, rung: int) -> None:
        """A trial has been taken past a rung."""
        self._gone.add((number, rung))

    def stays(self, number: int, rung: int) -> None:
        """A trial waits at a rung after all."""
        self._gone.discard((number, rung))

    def promotable(self) -> int | None:
        """A paused trial that is in the best third of its rung by now, the furthest first."""
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
        """Trials that wait at some rung, the furthest and best first."""
        found = [
            (-rung, value, number)
            for (_, rung), seen in self._seen.items()
            for number, value in seen.items()
            if rung != self._last and self._waits(number, rung)
        ]
        return [number for _, _, number in sorted(found)]

    def forget(self, number: int) -> None:
        """A trial has ended: it is not promoted any more (its values stay to compare with)."""
        for rung in range(self._last + 1):
            self._gone.add((number, rung))

    def _waits(self, number: int, rung: int) -> bool:
        return (number, rung) not in self._gone and self.rung_of(number) == rung

    def _best(self, seen: dict[int, float]) -> set[int]:
        count = max(1, len(seen) // REDUCTION)
        return set(sorted(seen, key=lambda number: (seen[number], number))[:count])
