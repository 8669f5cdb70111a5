"""Every error a caller may meet.

AutotuneError
|-- UsageError        bad command line, budget or option             exit 2
|   `-- QuantityError a limit that is not a number with an SI unit
|-- ContractError     the user's model file breaks the contract      exit 2
|-- FormatError       a profile, plan or report file that is wrong   exit 2
|-- OutputError       the output folder cannot be written            exit 2
|-- PluginError       a plug-in was asked for that is not there      exit 2
|-- JobError          raised inside a job; becomes the Failure of that job, never leaves a run
`-- WorkerError       a worker failed where nothing can go on        exit 1

Messages state the value, the rule and the remedy.
"""

DISTRIBUTION = "autotune-torch"
"""What pip installs; the import name, the command and the repository are ``autotune``, a name
that on PyPI belongs to another project."""


def install_hint(extra: str, missing: tuple[str, ...] = ()) -> str:
    """The remedy for a package that an extra brings: ``needs `pip install ...[onnx]```."""
    absent = f" ({', '.join(missing)} missing)" if missing else ""
    return f"needs `pip install {DISTRIBUTION}[{extra}]`{absent}"


class AutotuneError(Exception):
    """Base of all; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(AutotuneError, ValueError):
    exit_code = 2


class QuantityError(UsageError):
    pass


class ContractError(AutotuneError, ValueError):
    exit_code = 2


class FormatError(AutotuneError, ValueError):
    exit_code = 2


class OutputError(AutotuneError, OSError):
    exit_code = 2


class PluginError(AutotuneError, LookupError):
    exit_code = 2


class WorkerError(AutotuneError, RuntimeError):
    exit_code = 1


class JobError(AutotuneError):
    """A job cannot go on.  ``kind`` is that of `records.report.Failure` (nan, unsupported, ...).

    ``least`` maps ``step.parameter`` to the value below which no build can succeed either.
    ``never`` is a form that the model cannot become, or a step that it cannot have.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        least: dict[str, float] | None = None,
        never: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.least = least or {}
        self.never = never
