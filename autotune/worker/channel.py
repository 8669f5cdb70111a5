"""How a running job talks to the process that asked for it: report, then wait for go or stop."""

import json
from typing import BinaryIO, Protocol


class Channel(Protocol):
    """`report` blocks until there is an answer; False means: stop here, return what there is."""

    def report(self, step: float, value: float) -> bool: ...


class NullChannel:
    """Always goes on; keeps what was reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, float]] = []

    def report(self, step: float, value: float) -> bool:
        self.reports.append((step, value))
        return True


class PipeChannel:
    """JSON lines over two byte streams: ``{"event": "report", ...}`` out, ``go``/``stop`` in."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer

    def report(self, step: float, value: float) -> bool:
        line = json.dumps({"event": "report", "step": step, "value": value})
        self._writer.write(line.encode() + b"\n")
        self._writer.flush()
        return self._reader.readline().strip() == b"go"
