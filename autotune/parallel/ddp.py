"""Data parallel: N ranks, each with a copy of the model and its share of every batch.

    launcher --exec--> torch.distributed.run --exec--> rank 0 .. N-1  (worker.server.rank)
        ^------------------ Unix socket: hello, report / go / stop, answer, failure ------|

gloo over the loopback on CPUs, NCCL with one device a rank on GPUs.  Once all ranks are done
the whole tree is killed, because an orderly exit of N interpreters and their agent costs
another second and gives nothing.

Start-up (2 quiet cores, torch 2.13): the agent imports torch 0.9 s, each rank imports torch
0.7 s and torch.compile's front end 0.9 s (the DDP constructor asks for it), the rendezvous
0.1 s.  ``--local-addr`` avoids a look-up of this host's name, which can take seconds.

Clean-up: a rank dies with the agent, the agent with the launcher (parent-death signals), and
the launcher kills the agent's process tree before it returns or raises.
"""

import contextlib
import datetime
import json
import math
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import ContractError, JobError
from autotune.records.job import Answer, Context, Throughput, Train

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autotune.parallel import Body, Reporter

_COLLECTIVE_LIMIT_S = 600.0  # ranks wait this long for rank 0's evaluation and report
_TAIL = 8000  # bytes of output kept; torch.distributed.run's own error report takes half of it
_GRACE_S = 3.0  # after a first failure: time for its cause to arrive
_TICK_S = 0.5


def unavailable(context: Context) -> str | None:
    """Needs two cores or two GPUs, rows for two ranks, and torch built with distributed."""
    cores = context.profile.cpu.cores
    if len(context.profile.gpus) < 2 and cores < 2:
        return (
            f"needs 2 usable CPU cores or 2 GPUs, this process may use {cores:g} cores: "
            "widen its CPU affinity or container quota"
        )
    if context.info.own_train:
        return "the model file's own train() runs in one process"
    if context.info.train_rows < 2:
        return f"needs at least 2 training rows, train_data has {context.info.train_rows}"
    if not hasattr(socket, "AF_UNIX"):
        return "needs Unix sockets: run under Linux or macOS"
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return "needs torch built with torch.distributed and gloo: install a PyPI build of torch"
    return None


def ranks(context: Context) -> tuple[int, ...]:
    """Powers of two up to one a GPU, or a core where there is no GPU."""
    profile = context.profile
    devices = len(profile.gpus) or math.floor(profile.cpu.cores)
    return tuple(1 << i for i in range(1, 11) if 1 << i <= devices)


def launch(job: Train | Throughput, root: Path, channel: "Reporter", body: "Body") -> Answer:
    """Run the body on ``recipe.ranks`` ranks; see `autotune.parallel.Plugin.launch`."""
    from autotune import processes
    from autotune.parallel import Order
    from autotune.records import codec

    order = Order(job=job, body=f"{body.__module__}:{_name(body)}", started_s=time.monotonic())
    folder = _private_folder(root)
    try:
        (folder / "order.json").write_bytes(codec.encode(order))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "s"))
            listener.listen(job.recipe.ranks)
            with _start(job, root, folder) as agent:
                try:
                    with _Relay(agent, listener, job.recipe.ranks, channel) as relay:
                        relay.run()
                finally:
                    processes.kill_tree(agent.pid)
        return _read(folder / "answer.json")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(body: Any) -> str:
    return str(body.__qualname__)


def _private_folder(root: Path) -> Path:
    """In the run's work folder, so that even a killed launcher leaves nothing elsewhere,
    unless the socket's path would pass the 107 bytes that it may have.
    """
    near = len(os.fsencode(root.resolve())) <= 80
    return Path(tempfile.mkdtemp(prefix="ddp-", dir=root.resolve() if near else None))


def _read(path: Path) -> Answer:
    from autotune.parallel import Reply
    from autotune.records import codec

    return codec.decode(path.read_bytes(), Reply, what="rank 0's answer").answer


def _start(job: Train | Throughput, root: Path, folder: Path) -> "subprocess.Popen[bytes]":
    from autotune import processes

    files = [str(folder / "order.json"), str(root.resolve()), str(folder / "answer.json")]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(job.recipe.ranks), "--local-addr", "127.0.0.1"),
        *("--monitor-interval", "0.05", "--log-dir", str(folder)),
        *("-m", "autotune.worker.server.rank", *files, str(folder / "s")),
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(job.recipe.threads),
        start_new_session=True,  # Ctrl-C is the owner's to pass on
        preexec_fn=processes.die_with_parent,  # one prctl, no locks
    )


def _environment(threads: int) -> dict[str, str]:
    """The ranks' environment: they can import what this process can, and nothing else."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": loopback,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
    }


class _Peer:
    """One rank's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank: int | None = None
        self.over = False
        self._buffer = b""

    def fileno(self) -> int:
        return self.connection.fileno()

    def messages(self) -> list[dict[str, Any]] | None:
        """Messages received; None when the rank has closed its end."""
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]


class _Relay:
    """Receives the ranks' messages and output until there is an answer or a failure."""

    def __init__(
        self,
        agent: "subprocess.Popen[bytes]",
        listener: socket.socket,
        ranks: int,
        channel: "Reporter",
    ) -> None:
        assert agent.stdout is not None
        self._output = agent.stdout
        self._listener = listener
        self._ranks = ranks
        self._channel = channel
        self._peers: list[_Peer] = []
        self._failures: list[dict[str, Any]] = []
        self._lost: list[int] = []
        self._tail = b""
        self._done: set[int] = set()
        self._silent = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)

    def __enter__(self) -> "_Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for peer in self._peers:
            peer.connection.close()

    def run(self) -> None:
        """Return once rank 0 has written its answer and the others have ended too.

        Raises:
            JobError, ContractError: a rank failed or died before that.
        """
        deadline: float | None = None
        while len(self._done) < self._ranks:
            for key, _ in self._selector.select(_TICK_S):
                self._serve(key.fileobj)
            if self._silent or self._cause_known() or (deadline and time.monotonic() > deadline):
                break
            if deadline is None and (self._failures or self._lost or 0 in self._done):
                deadline = time.monotonic() + _GRACE_S
        if 0 not in self._done:
            self._fail()

    def _serve(self, source: Any) -> None:
        if source is self._listener:
            peer = _Peer(self._listener.accept()[0])
            self._peers.append(peer)
            self._selector.register(peer, selectors.EVENT_READ)
        elif isinstance(source, _Peer):
            self._handle(source)
        else:
            self._copy()

    def _copy(self) -> None:
        """Copy the ranks' output to this process's stderr, and keep its end."""
        data = os.read(self._output.fileno(), 1 << 16)
        if not data:
            self._selector.unregister(self._output)
            self._silent = True
        with contextlib.suppress(OSError):
            os.write(2, data)
        self._tail = (self._tail + data)[-_TAIL:]

    def _handle(self, peer: _Peer) -> None:
        messages = peer.messages()
        if messages is None:
            self._selector.unregister(peer)
            if not peer.over:
                self._lost.append(-1 if peer.rank is None else peer.rank)
            return
        for message in messages:
            match message["event"]:
                case "hello":
                    peer.rank = message["rank"]
                case "report":
                    go = self._channel.report(message["step"], message["value"])
                    with contextlib.suppress(OSError):
                        peer.connection.sendall(b"go\n" if go else b"stop\n")
                case "failure":
                    peer.over = True
                    self._failures.append(message)
                case "done":
                    peer.over = True
                    self._done.add(message["rank"])

    def _cause_known(self) -> bool:
        """Whether a rank has reported the cause; other ranks' errors follow from it."""
        return any(not f["secondary"] for f in self._failures)

    def _fail(self) -> None:
        first = next((f for f in self._failures if not f["secondary"]), None)
        if first is None and not self._lost and self._failures:
            first = self._failures[0]
            if "timed out" in first["message"].lower():
                first = {**first, "kind": "hang"}
        if first is None:
            raise JobError("crash", self._exit_report())
        if first["kind"] == "contract":
            raise ContractError(first["message"])
        raise JobError(first["kind"], first["message"])

    def _exit_report(self) -> str:
        text = self._tail.decode(errors="replace")
        who = f"rank {self._lost[0]}" if self._lost and self._lost[0] >= 0 else "a rank"
        # the lost rank's own status: the survivors of a broken group exit with 1 and may be
        # the ones that the agent saw first
        own = rf"^\s*rank\s*:\s*{self._lost[0]} .*?" if self._lost else r"Root Cause.*?"
        found = re.search(own + r"exitcode\s*:\s*(-?\d+)", text, re.DOTALL | re.MULTILINE)
        how = _ending(int(found[1])) if found else "ended"
        log = re.split(r"^[WE]\d{4} .*torch/distributed/elastic", text, flags=re.MULTILINE)[0]
        lines = [line for line in log.splitlines() if line.strip()][-8:]
        tail = "\n".join(["; its last lines:", *lines]) if lines else ""
        return f"{who} of {self._ranks} {how} without an answer{tail}"


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name
    hint = " (the kernel does this when memory runs out)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


class Ranks:
    """One rank's view of the process group; see `autotune.parallel.Group`."""

    def __init__(self, device: str, started_s: float) -> None:
        import torch.distributed

        self._dist = torch.distributed
        self.rank = self._dist.get_rank()
        self.world = self._dist.get_world_size()
        self.device = device
        self.started_s = started_s

    def wrap(self, model: "nn.Module", *, find_unused: bool = False) -> Any:
        """DDP; the buffers are rank 0's before every forward (DDP's own default)."""
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model,
            device_ids=None if self.device == "cpu" else [self.device],
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,
        )

    def unwrap(self, model: Any) -> "nn.Module":
        module: nn.Module = model.module
        return module

    def mean(self, total: float, count: float) -> float:
        pair = self._tensor(total, count)
        self._dist.all_reduce(pair)
        return float(pair[0] / pair[1])

    def largest(self, value: float) -> float:
        one = self._tensor(value)
        self._dist.all_reduce(one, op=self._dist.ReduceOp.MAX)
        return float(one[0])

    def share(self, value: float) -> float:
        one = self._tensor(value)
        self._dist.broadcast(one, src=0)
        return float(one[0])

    def agree(self, go: bool) -> bool:
        return self.share(float(go)) > 0.5

    def close(self) -> None:
        self._dist.destroy_process_group()

    def _tensor(self, *values: float) -> "torch.Tensor":
        import torch

        return torch.tensor(values, dtype=torch.float64, device=self.device)


def join(job: Train | Throughput, started_s: float) -> Ranks:
    """Called in a rank's interpreter, under torch.distributed.run: enter the group."""
    import torch
    import torch.distributed

    torch.set_num_threads(job.recipe.threads)
    local = int(os.environ["LOCAL_RANK"])
    cuda = job.device != "cpu" and torch.cuda.device_count() >= job.recipe.ranks
    device = f"cuda:{local}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=_COLLECTIVE_LIMIT_S)
    )
    return Ranks(device, started_s)
