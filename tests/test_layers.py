"""The layers of the package, drawn from its imports: a part imports only from layers below it; siblings do not meet."""

import ast
from pathlib import Path

import pytest

LAYERS = [
    {"__main__"},
    {"arguments"},
    {"study"},
    {"report"},
    {"train", "evaluate"},
    {"loss", "data", "model"},
    {"batch", "dist", "workers", "progress", "restart"},
    {"config", "families", "atomic", "lock", "signals"},
    {"sections"},
    {"errors"},
]
LEVEL = {part: -level for level, parts in enumerate(LAYERS) for part in parts}
MAY_MEET = {frozenset(pair) for pair in [("families", "config")]}
"""Plain values may name each other's types."""


def part_of(module: str) -> str:
    """`dft_mm.loss.head` → `loss`; the package itself, which holds the version, → ``."""
    return (module.split(".") + [""])[1]


def imports_of(file: Path, package: Path) -> set[str]:
    """Absolute names of all modules that a file imports anywhere, inside functions too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = file.relative_to(package.parent).parent.parts
            base = [*folder[: len(folder) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from dft_mm import dist` names the part last; `from dft_mm.batch import Batch` names a thing in it.
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def breaches(package: Path) -> list[str]:
    found = []
    for file in sorted(package.rglob("*.py")):
        part = file.relative_to(package).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for name in imports_of(file, package):
            other = part_of(name)
            if not name.startswith(f"{package.name}.") or other in (part, "__version__"):
                continue
            unknown = {part, other} - LEVEL.keys()
            if unknown:
                found.append(f"{file.name}: {unknown} has no layer; give it one here and in the design")
            elif LEVEL[other] >= LEVEL[part] and frozenset((part, other)) not in MAY_MEET:
                found.append(f"{file.relative_to(package)} ({part}) imports {name}")
    return found


def test_parts_import_only_from_layers_below(repo):
    assert breaches(repo / "dft_mm") == []


def test_plain_values_import_no_torch(repo):
    for part in LAYERS[-1] | LAYERS[-2] | {"restart"}:
        heavy = {name.split(".")[0] for name in imports_of(repo / "dft_mm" / f"{part}.py", repo / "dft_mm")}
        assert not heavy & {"torch", "transformers", "deepspeed", "numpy"}, part


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("loss/head.py", "from dft_mm.data.layouts.rows import read"),
        ("loss/head.py", "from dft_mm import train"),
        ("data/layouts/rows.py", "def f():\n    import dft_mm.model.load"),
        ("config.py", "from dft_mm.batch import IGNORE_INDEX"),
        ("model/load.py", "from ..study import demo"),
        ("surprise.py", "from dft_mm.errors import InputError"),
    ],
)
def test_a_breach_is_seen(tmp_path, file, line):
    path = tmp_path / "dft_mm" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(breaches(tmp_path / "dft_mm")) == 1
