"""What a person means by ``head.*``."""

import pytest

from autotune.patterns import matches


@pytest.mark.parametrize(
    ("name", "pattern", "meant"),
    [
        ("head", "head", True),
        ("head.0", "head", True),
        ("head", "head.*", True),
        ("head.0.fc", "head.*", True),
        ("heads", "head", False),
        ("body.head", "head", False),
        ("body.head", "*head", True),
        ("layers.11.mlp.fc1", "layers.1?.mlp", True),
        ("layers.1.mlp", "layers.1?.mlp", False),
        ("", "*", False),
    ],
)
def test_matches(name: str, pattern: str, meant: bool) -> None:
    assert matches(name, [" other", pattern]) is meant
