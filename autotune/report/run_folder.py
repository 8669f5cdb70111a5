"""A run's folder, and reports and plans read from one.  Every write is atomic.

    <out>/
      report.json report.html report.md trials.csv plan.json study.journal
      artifact/                    what was verified
      work/                        recording, builds, logs; removed when the run is complete

A file is written beside its place and renamed into it, so an earlier one is never half overwritten.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from autotune.errors import OutputError, UsageError
from autotune.records import codec
from autotune.records.plan import Plan
from autotune.records.report import Artifact, Report

_LEAST_FREE_BYTES = 200 * 1024**2


def now_utc() -> str:
    """ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = (path / "work").resolve()  # jobs may change their working folder

    @classmethod
    def create(cls, out: Path | None, name: str) -> "RunFolder":
        """A new folder: ``out``, or ``reports/<name>-<UTC time>``.

        Raises:
            OutputError: it cannot be made or written, holds another run, or the disk is full.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = out or Path("reports") / f"{name}-{stamp}"
        if out is None and path.exists():
            path = path.with_name(f"{path.name}-{os.getpid()}")
        if (path / "report.json").exists() or (path / "work").exists():
            raise OutputError(
                f"{path} already holds a run; give another --out, or --resume {path} to go on"
            )
        folder = cls(path)
        folder._prepare()
        return folder

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """The folder of an interrupted run.

        Raises:
            OutputError: it holds no run that can be resumed.
        """
        if not (path / "work" / "recording.jsonl").exists():
            raise OutputError(
                f"{path} holds no interrupted run (no work/recording.jsonl); "
                "a complete run has nothing to resume"
            )
        return cls(path)

    def _prepare(self) -> None:
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            probe = self.work / ".probe"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except OSError as error:
            raise OutputError(
                f"the output folder {self.path} cannot be written ({error.strerror}); "
                "give another one with --out"
            ) from None
        free = shutil.disk_usage(self.work).free
        if free < _LEAST_FREE_BYTES:
            raise OutputError(
                f"{self.path} has {free // 1024**2} MB free, a run needs at least "
                f"{_LEAST_FREE_BYTES // 1024**2} MB; free some or give another --out"
            )

    @property
    def recording(self) -> Path:
        return self.work / "recording.jsonl"

    def save(self, report: Report, rendered: Mapping[str, str]) -> None:
        """Write report.json, plan.json, and the files that were rendered from the report.

        Args:
            report: the truth.
            rendered: texts by file name, such as those of `report.text.files`.
        """
        self.checkpoint(report)
        for name, text in rendered.items():
            write(self.path / name, text)
        if report.chosen is not None:
            self.save_plan(report.chosen.plan)

    def save_plan(self, plan: Plan) -> None:
        write(self.path / "plan.json", codec.encode(plan, indent=2).decode())

    def new_journal(self) -> Path:
        """Where this run's studies are kept (`optuna-dashboard study.journal` shows them).  A
        resumed run adds all of its trials again, so it starts a new one.
        """
        path = self.path / "study.journal"
        for old in self.path.glob("study.journal*"):
            old.unlink()
        return path

    def checkpoint(self, report: Report) -> None:
        """Write report.json alone (cheap; after every trial)."""
        write(self.path / "report.json", codec.encode(report, indent=2).decode())

    def ship(self, built: str, sha: str) -> None:
        """Copy a verified build to ``artifact/``.

        Raises:
            OutputError: the copy's bytes are not those that were verified.
        """
        target = self.path / "artifact"
        scratch = self.path / ".artifact.part"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            shutil.copytree(self.work / built, scratch)
            copied = check_artifact(scratch)
            if copied != sha:
                raise OutputError(f"the copied artifact has sha256 {copied}, verified was {sha}")
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written ({error.strerror or error})") from None

    def clean(self) -> None:
        """Remove what only an interrupted run needs."""
        shutil.rmtree(self.work, ignore_errors=True)


def write(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); what was there is unchanged"
        ) from None


def check_artifact(folder: Path) -> str:
    """Verify every file against ``checksums``; return the artifact's sha256.

    Raises:
        OutputError: a file is missing or has changed.
    """
    listing = folder / "checksums"
    if not listing.exists():
        raise OutputError(f"{folder} is no artifact: it has no checksums file")
    text = listing.read_text()
    for line in text.splitlines():
        expected, _, name = line.partition("  ")
        file = folder / name
        if not file.exists():
            raise OutputError(f"{folder}: {name} is missing")
        if sha256(file.read_bytes()).hexdigest() != expected:
            raise OutputError(f"{folder}: {name} has changed since it was verified")
    return sha256(text.encode()).hexdigest()


def artifact(folder: Path, runtime: str) -> Artifact:
    """Describe a shipped artifact."""
    sha = check_artifact(folder)
    lines = (folder / "checksums").read_text().splitlines()
    files = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    size = sum((folder / name).stat().st_size for name in files)
    return Artifact(folder="artifact", runtime=runtime, files=files, sha256=sha, size_bytes=size)


def load_report(folder: Path) -> Report:
    """Read a report folder (or a report.json).

    Raises:
        UsageError: there is none.  FormatError: it is wrong.
    """
    path = folder / "report.json" if folder.is_dir() else folder
    return codec.decode(_read(path, "report"), Report, what=str(path))


def verified(folder: Path) -> Report:
    """The report of a finished run whose artifact is still the one that it verified.

    Raises:
        UsageError: the folder holds no finished report.
        OutputError: the artifact's bytes are others.
    """
    report = load_report(folder)
    if report.chosen is None or report.artifact is None:
        raise UsageError(f"{folder} is the report of an interrupted run: there is no artifact yet")
    sha = check_artifact(folder / "artifact")
    if sha != report.artifact.sha256:
        raise OutputError(
            f"{folder}/artifact is not the one that this report verified (sha256 {sha[:12]}..., "
            f"verified was {report.artifact.sha256[:12]}...)"
        )
    return report


def load_plan(path: Path) -> Plan:
    """Read a plan.json, or that of a report folder."""
    path = path / "plan.json" if path.is_dir() else path
    return codec.decode(_read(path, "plan"), Plan, what=str(path))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"no {what} at {path} ({error.strerror})") from None
