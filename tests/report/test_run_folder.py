"""Folders, reports and profiles: atomic, strict, and never a good file lost."""

from hashlib import sha256
from pathlib import Path

import pytest

from autotune.errors import OutputError, UsageError
from autotune.report import run_folder


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    run_folder.write(path, "good")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"No space left.*unchanged"):
        run_folder.write(path, "half")
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"):
        run_folder.RunFolder.create(tmp_path / "file" / "below", "m")


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match="--resume"):
        run_folder.RunFolder.create(tmp_path, "m")


def test_too_little_disk_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    with pytest.raises(OutputError, match="MB free"):
        run_folder.RunFolder.create(tmp_path / "out", "m")


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no interrupted run"):
        run_folder.RunFolder.reopen(tmp_path)


def _artifact(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    text = f"{sha256(b'model').hexdigest()}  model.onnx\n"
    (folder / "checksums").write_text(text)
    return sha256(text.encode()).hexdigest()


def test_an_artifact_is_shipped_as_verified(tmp_path: Path) -> None:
    folder = run_folder.RunFolder.create(tmp_path / "out", "m")
    sha = _artifact(folder.work / "builds" / "a")
    folder.ship("builds/a", sha)
    assert run_folder.artifact(folder.path / "artifact", "onnxruntime").sha256 == sha
    with pytest.raises(OutputError, match="verified was"):
        folder.ship("builds/a", "0" * 64)
    assert run_folder.check_artifact(folder.path / "artifact") == sha


@pytest.mark.parametrize(("damage", "said"), [("change", "has changed"), ("remove", "is missing")])
def test_a_damaged_artifact_is_refused(tmp_path: Path, damage: str, said: str) -> None:
    _artifact(tmp_path / "a")
    model = tmp_path / "a" / "model.onnx"
    if damage == "change":
        model.write_bytes(b"other")
    else:
        model.unlink()
    with pytest.raises(OutputError, match=said):
        run_folder.check_artifact(tmp_path / "a")


def test_no_report_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no report at"):
        run_folder.load_report(tmp_path)
