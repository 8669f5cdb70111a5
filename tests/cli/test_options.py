"""Options of the train search on the command line."""

import pytest
from click.testing import CliRunner

from autotune.cli import options
from autotune.cli.main import cli
from autotune.errors import UsageError


def given(**more: object) -> dict[str, object]:
    names = ("latency", "percentile", "energy", "memory", "max_drop", "min_quality", "load")
    return dict.fromkeys(names) | {"accept_modelled_energy": False} | more


def test_a_target_quality_and_eta_reach_the_budget() -> None:
    made = options.budget(given(target_quality=0.95, eta=0.5))
    assert (made.target_quality, made.eta) == (0.95, 0.5)
    assert options.budget(given()).target_quality is None


def test_eta_alone_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="give --target-quality too"):
        options.budget(given(eta=0.5))


def test_the_help_names_them() -> None:
    said = CliRunner().invoke(cli, ["run", "--help"]).output
    for name in ("--target-quality", "--eta", "--allow-power-limit"):
        assert name in said
    refused = CliRunner().invoke(cli, ["run", "model.py", "--eta", "1.5"])
    assert refused.exit_code == 2
    assert "1.5" in refused.output
