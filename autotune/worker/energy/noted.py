"""What boards had before it was changed: noted in a file until it is put back.

    note(before) --> {"GPU-uuid": what it had}, written once, whole
    put_back()   --> set again board by board; the file goes, or keeps what a board refused

A killed process leaves the file, and the next one that is made of it puts everything back first.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Noted:
    """What is in the file.

    Args:
        file: where it is noted.
        undo: puts one board's value back.
        refused: what ``undo`` raises where the board does not let it.
        what: is noted, for a message.
    """

    def __init__(
        self,
        file: Path,
        undo: Callable[[str, Any], object],
        refused: type[Exception],
        what: str,
    ) -> None:
        self._file, self._undo, self._refused, self._what = file, undo, refused, what
        with contextlib.suppress(json.JSONDecodeError):
            self.put_back()  # what a killed process has left

    def note(self, before: Callable[[], Mapping[str, Any]]) -> None:
        """Write what there was, unless it stands there already."""
        if self._file.exists():
            return
        scratch = self._file.with_name(self._file.name + ".part")
        scratch.write_text(json.dumps(before()))
        scratch.replace(self._file)

    def put_back(self) -> None:
        """Undo everything; what a board refuses stays noted."""
        if not self._file.exists():
            return
        left = {}
        for uuid, had in json.loads(self._file.read_text()).items():
            try:
                self._undo(uuid, had)
            except self._refused as error:
                print(f"{self._what} of {uuid} cannot be put back: {error}", file=sys.stderr)
                left[uuid] = had
        if left:
            self._file.write_text(json.dumps(left))
        else:
            self._file.unlink()
