"""Two processes exchange tensors: in a fresh interpreter, as the server's child is."""

import json
import subprocess
import sys

CODE = """
import json
from autotune.worker import links
print(json.dumps({name: leaf.value for name, leaf in links.gloo().items()}))
"""


def test_gloo_between_two_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"gloo_latency_s", "gloo_bytes_per_s"}
    assert 0 < found["gloo_latency_s"] < 1
    assert found["gloo_bytes_per_s"] > 1e6


def test_a_rank_that_dies_gives_nothing() -> None:
    code = CODE.replace("print(", "links._exchange = lambda rank, store: 1 / 0\nprint(")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {}
