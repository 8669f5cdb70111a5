"""One rank of a distributed job: ``torch.distributed.run ... -m autotune.worker.server.rank``.

    argv: ORDER (a `parallel.Order` file)  ROOT  ANSWER (the file to write)  SOCKET

Says ``hello`` to the launcher, joins the group through the plug-in named by the recipe, runs
the body; rank 0 reports and answers.  A rank that fails says why before it ends, and whether the
cause is only that another rank died.  It ends by ``os._exit``: the orderly shutdown of an
interpreter with live collectives can abort.
"""

import contextlib
import json
import os
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from autotune import plugins, processes
from autotune.parallel import Order, Reply
from autotune.records import codec
from autotune.worker.user_file.errors import failure


class SocketChannel:
    """Reports over the launcher's socket; `report` blocks for ``go`` or ``stop``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def say(self, event: str, **fields: Any) -> None:
        self._connection.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")

    def report(self, step: float, value: float) -> bool:
        self.say("report", step=step, value=value)
        return self._lines.readline().strip() == b"go"

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


def main(order_file: str, root: str, answer_file: str, address: str) -> int:
    """Run this rank; returns its exit status."""
    processes.die_with_parent()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    with contextlib.closing(SocketChannel(connection)) as channel:
        return _serve(order_file, root, answer_file, channel)


def _serve(order_file: str, root: str, answer_file: str, channel: "SocketChannel") -> int:
    channel.say("hello", rank=int(os.environ["RANK"]))
    try:
        order = codec.decode(Path(order_file).read_bytes(), Order, what="the launcher's order")
        module, _, function = order.body.partition(":")
        body = getattr(import_module(module), function)
        plugin = plugins.load("parallel", order.job.recipe.parallel)
        group = plugin.join(order.job, order.started_s)
        answer = body(order.job, Path(root), channel, group)
        if group.rank == 0:
            Path(answer_file).write_bytes(codec.encode(Reply(answer=answer)))
        channel.say("done", rank=group.rank)
        group.close()
    except BaseException as error:
        secondary = _secondary(error)
        if secondary:  # the other rank's traceback is the cause, not this one
            print(f"rank {os.environ['RANK']} lost its group", file=sys.stderr)
        else:
            traceback.print_exc()
        found = failure(error)
        with contextlib.suppress(OSError):
            channel.say("failure", kind=found.kind, message=found.message, secondary=secondary)
        return 1
    return 0


def _secondary(error: BaseException) -> bool:
    """Whether this is a collective that broke because another rank is gone."""
    import torch.distributed

    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError)
        and any(sign in text for sign in ("gloo/", "nccl", "connection closed by peer"))
    )


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
