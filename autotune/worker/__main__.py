"""``python -m autotune.worker ROOT [preload ...] [--later preload ...]``: the worker server."""

import sys
from pathlib import Path

from autotune.worker.server import serve

if __name__ == "__main__":
    root, *names = sys.argv[1:]
    at = names.index("--later") if "--later" in names else len(names)
    serve(Path(root), tuple(names[:at]), tuple(names[at + 1 :]))
