"""No table of plug-in names stands outside the plug-ins: each declares what the search must know.

A string that equals a plug-in's name may stand in ``autotune/``

- in the folders of plug-ins and of the forms that they share, and
- as the two baseline runtimes and the single process (`ALLOWED`);
- where it is another word: a number format (``bf16``), a package among other packages
  (``("onnx", "onnxruntime")``), or a class of runtimes in plans for other machines (`CLASSES`).
"""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import autotune
from autotune import plugins
from autotune.records.outlook import RuntimeClass

ROOT = Path(autotune.__file__).parent
FOLDERS = ("compress", "runtimes", "parallel", "meters")
NAMES = {name for folder in FOLDERS for name in plugins.names(folder)}
NUMBER_FORMATS = {"fp32", "tf32", "bf16", "fp16"}
PACKAGES = {"torch", "numpy", "onnx", "optuna"}
CLASSES = ("planning/", "records/outlook.py")
ALLOWED = {("records/plan.py", name) for name in ("eager", "cuda_eager", "single")}


def strings(tree: ast.AST) -> Iterator[str]:
    """String constants, but for those of tuples that list packages."""
    if isinstance(tree, ast.Tuple):
        listed = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        if listed & PACKAGES:
            return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    for child in ast.iter_child_nodes(tree):
        yield from strings(child)


def found() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        if where.startswith((*(f"{folder}/" for folder in FOLDERS), "forms/")):
            continue
        own = NAMES - NUMBER_FORMATS
        own -= set(get_args(RuntimeClass)) if where.startswith(CLASSES) else set()
        yield from ((where, text) for text in strings(ast.parse(path.read_text())) if text in own)


def test_no_plugin_is_named_outside_its_file() -> None:
    assert set(found()) == ALLOWED


def test_the_search_for_names_sees_them() -> None:
    assert list(strings(ast.parse('x = {"eager": 1, "y": ("onnx", "onnxruntime")}'))) == [
        "eager",
        "y",
    ]
    assert all(find_spec(name) is not None for name in PACKAGES)
