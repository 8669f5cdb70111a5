"""Benchmarks of autotune's claims, each run as ``python -m benchmarks.NAME``.

    deploy           autotune's plan against eight ways to serve a model by hand
    energy_model     the power model's interval on published servers
    kills            a run that is killed and resumed gives what an undisturbed one gives
    order            the deploy search on simulated machines, with parts of it left out
    overhead         what timing a call adds to it
    planned_gpu      `autotune plan` against a GPU
    published        predicted step times against published training tables
    replay_curves    whether extrapolating learning curves would save epochs
    replay_training  the search for a power limit on recorded tables
    reuse            whether a second run gains from a first one's report
    train            training recipes within a time budget, against Optuna, halving and defaults
    verdicts         error rate and power of latency verdicts

Data and rows are kept under ``.cache/benchmarks``; a further run makes only what is missing.
"""
