"""Options are made from the fields of records; each value that is given reaches its record."""

import subprocess
import sys
from typing import Annotated, Any, Literal

import click
import msgspec
import pytest
from click.testing import CliRunner

from autotune.cli import options
from autotune.cli.main import cli, execute, run, verify
from autotune.cli.profiles import plan
from autotune.errors import UsageError
from autotune.pipeline.pipeline import make_request
from autotune.records.base import option
from autotune.records.budget import Budget, Effort, Limit
from autotune.records.task import TaskSpec


class Wider(Budget, frozen=True, kw_only=True):
    """A budget with fields that were made up here."""

    first_load_s: Annotated[float | None, option("Limit for loading the model.", "2s")] = None
    swaps: Annotated[int, option("Most page faults.", least=0)] = 3
    cache: Annotated[Literal["cold", "warm"] | None, option("State of the page cache.")] = None


def typed(record: type[Budget], *args: str) -> Any:
    """The record that a command with these arguments makes."""
    made: list[Budget] = []

    @click.command()
    @options.of(record)
    def command(**given: Any) -> None:
        made.append(options.record(record, given))

    done = CliRunner().invoke(command, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return made[0]


def test_a_new_field_is_an_option_and_reaches_the_record() -> None:
    made = typed(Wider, "--first-load", "300ms", "--swaps", "0", "--cache", "cold", "--batch", "4")
    assert made == Wider(first_load_s=0.3, swaps=0, cache="cold", batch=4)
    assert typed(Wider) == Wider()
    command = click.command()(options.of(Wider)(lambda **given: None))
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "Limit for loading the model." in shown
    assert "[default: 3]" in shown
    assert "[cold|warm]" in shown


def test_a_new_field_given_in_python_reaches_the_request_of_the_run() -> None:
    wider = Wider(first_load_s=0.3)
    request = make_request(TaskSpec(kind="file", path="model.py"), wider, Effort())
    assert request.budget is wider


def test_each_field_of_budget_and_effort_is_an_option_of_run() -> None:
    names = {param.name for param in run.params}
    assert names >= {*Budget.__struct_fields__, *Effort.__struct_fields__}


@pytest.mark.parametrize("command", [run, execute, verify, plan])
def test_no_option_is_forgotten(command: click.Command) -> None:
    """Each is an argument of its command by name, or a field of one of the records."""
    assert command.callback is not None
    code = command.callback.__code__
    own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    fields = {*Budget.__struct_fields__, *Effort.__struct_fields__}
    left = {param.name for param in command.params} - {*own} - fields
    assert not left
    with pytest.raises(AssertionError, match="no record takes"):
        options.budget_and_effort({"forgotten": 1})


def test_values_are_converted_as_they_were_typed() -> None:
    limits = ("--latency", "0.6x", "--memory", "2MB", "--load", "200/s")
    training = ("--train-time", "5min", "--train-energy", "2kJ")
    made = typed(Budget, *limits, *training, "--accept-modelled-energy")
    assert made == Budget(
        latency=Limit(value=0.6, relative=True), memory=Limit(value=2e6), load_per_s=200.0,
        train_time_s=300.0, train_energy_j=2e3, accept_modelled_energy=True,
    )  # fmt: skip
    _, effort = options.budget_and_effort({"seed": 0, "only": ("compress=prune",), "threads": None})
    assert effort == Effort(only=("compress=prune",))
    given = {"latency": None, "max_drop": 0.0, "accept_modelled_energy": False}
    assert options.given_fields(Budget, given) == {"max_drop": 0.0}


def test_what_cannot_be_converted_is_refused(tmp_path: Any) -> None:
    for args, said in (
        (["--eta", "1.5"], "1.5"),
        (["--latency", "5"], "has no unit"),
        (["--load", "fast"], "requests per second"),
        (["--powercap-root", str(tmp_path / "no")], "does not exist"),
    ):
        refused = CliRunner().invoke(cli, ["run", "model.py", *args])
        assert refused.exit_code == 2
        assert said in refused.output
    with pytest.raises(UsageError, match="give --target-quality too"):
        options.budget_and_effort({"eta": 0.5})
    with pytest.raises(msgspec.ValidationError):
        options.record(Effort, {"time_s": "soon"})


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'optuna', 'numpy', 'scipy', 'pandas', 'jinja2', 'rich'}"
    code = (
        "import sys; from autotune.cli.main import cli\n"
        "cli.main(['run', '--help'], standalone_mode=False)\n"
        f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
