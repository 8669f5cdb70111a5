"""``python -m autotune`` is the command line."""

from autotune.cli.main import main

main()
