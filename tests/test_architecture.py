"""The house plan as data: who may import whom, and what `import gammabeta` must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "gammabeta"

# A module may import a lower level, or its own part. The longest matching name decides.
LEVELS = {
    "gammabeta": 0,
    "gammabeta.errors": 0,
    "gammabeta.equations": 0,
    "gammabeta.equations_act": 1,
    "gammabeta.files": 1,
    "gammabeta.memory": 1,
    "gammabeta.moments": 1,
    "gammabeta.runtime": 1,
    "gammabeta.extras": 1,
    "gammabeta.schema": 1,
    "gammabeta.data": 2,
    "gammabeta.norm": 2,
    "gammabeta.models": 3,
    "gammabeta.probe": 3,
    "gammabeta.surgery": 3,
    "gammabeta.testing": 3,
    "gammabeta.population": 4,
    "gammabeta.training": 4,
    "gammabeta.deploy": 5,
    "gammabeta.bench": 5,
    "gammabeta.insight": 6,
    "gammabeta.cli": 7,
    "gammabeta.__main__": 8,
}


def part(module: str) -> str:
    """Return the entry of LEVELS that a module belongs to."""
    names = [n for n in LEVELS if module == n or module.startswith(n + ".")]
    return max(names, key=len)


def imports(path: Path) -> set[str]:
    """Return every gammabeta module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the level"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "gammabeta"}


def upward(module: str, imported: set[str]) -> list[str]:
    """List imports that point up or sideways out of the module's part."""
    here = part(module)
    return sorted(
        name for name in imported if part(name) != here and LEVELS[part(name)] >= LEVELS[here]
    )


def modules() -> dict[str, Path]:
    """Map module names to files, without the package's own lazy door."""
    named = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC.parent).with_suffix("").parts
        named[".".join(p for p in parts if p != "__init__")] = path
    del named["gammabeta"]
    return named


@pytest.mark.parametrize("module", modules())
def test_imports_point_to_a_lower_level(module):
    assert upward(module, imports(modules()[module])) == []


def test_an_upward_import_inside_a_function_is_caught(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from gammabeta.training import recipe\n", encoding="utf-8")
    assert upward("gammabeta.data.x", imports(file)) == ["gammabeta.training.recipe"]


def test_every_module_has_a_level_of_its_own():
    parts = {name.split(".")[1] for name in modules()}
    assert parts == {name.split(".")[1] for name in LEVELS if "." in name}


def test_importing_the_package_loads_nothing_heavy():
    code = "import gammabeta, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "sklearn", "matplotlib", "PIL", "numpy", "typer", "rich"}
    heavy |= {
        "jinja2",
        "numba",
        "plotly",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "greenlet",
        "pydantic",
    }
    assert not heavy & set(done.stdout.split())
