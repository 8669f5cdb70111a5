"""``python -m autotune.worker ROOT [preload ...]``: the worker server."""

import sys
from pathlib import Path

from autotune.worker.server.server import serve

if __name__ == "__main__":
    serve(Path(sys.argv[1]), tuple(sys.argv[2:]))
