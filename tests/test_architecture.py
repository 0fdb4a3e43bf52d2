"""Who may import whom (docs/architecture.md), and what may be loaded at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "labelproof"

#: Package -> what of ours it may import. Nothing else, at any depth of any function.
ALLOWED = {
    "functional": set(),
    "issues": set(),
    "report": set(),
    "core": {"functional"},
    "networks": {"core", "data"},
    "data": {"core", "functional"},
    "procedures": {"core", "data", "functional", "issues"},
    "methods": {"core", "functional", "procedures"},
    "losses": {"core", "functional"},
    "engine": {"core", "data", "functional"},
    "folders": {"engine"},
    "runs": {"core", "data", "engine", "folders", "issues", "methods", "networks", "report"},
    "estimators": {"core", "data", "engine", "methods", "networks", "runs"},
    "integrations": {"core", "data", "functional", "losses"},
    "recipes": {"core"},
    "bench": {"core", "data", "engine", "recipes", "report"},
    "demo": {"core", "data", "engine", "methods", "report", "runs"},
    "__main__": {"cli"},
    "flags": {"core", "data", "engine", "methods", "procedures", "recipes"},
    "studies": {"core", "data", "engine", "folders", "issues", "methods", "networks", "procedures", "runs"},
    "asked": {"data", "engine", "flags", "methods", "networks", "procedures"},
    "screens": set(),
    "cli": {
        *("asked", "bench", "core", "data", "demo", "engine", "flags", "folders", "issues", "methods", "recipes"),
        *("report", "runs", "screens", "studies"),
    },
}
FABRIC = {"engine"}


def modules() -> list[tuple[str, Path]]:
    return [
        (p.relative_to(SRC).parts[0].removesuffix(".py"), p)
        for p in SRC.rglob("*.py")
        if p.parent != SRC or p.stem != "__init__"
    ]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "labelproof" else {f"labelproof.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize(
    ("package", "path"), modules(), ids=lambda v: v if isinstance(v, str) else str(v.relative_to(SRC))
)
def test_imports_follow_the_arrows(package: str, path: Path) -> None:
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("labelproof.")}
    assert ours <= ALLOWED[package] | {package}, (
        f"{path.relative_to(SRC)} imports {ours - ALLOWED[package] - {package}}"
    )
    if package not in FABRIC:
        assert not any(name.startswith("lightning_fabric") for name in imports(path)), "only the engine knows Fabric"


@pytest.mark.parametrize("path", sorted((SRC / "methods").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_methods_stand_alone(path: Path) -> None:
    ours = {name for name in imports(path) if name.startswith("labelproof.methods")}
    assert not ours, "a method never imports another"
    assert len(path.read_text().splitlines()) <= 120


def test_the_loop_stays_short() -> None:
    assert len((SRC / "engine" / "loop.py").read_text().splitlines()) <= 250


def test_importing_labelproof_loads_nothing_heavy() -> None:
    code = "import sys, time; t = time.perf_counter(); import labelproof; print(time.perf_counter() - t, *sys.modules)"
    seconds, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 1
    heavy = {"torch", "lightning_fabric", "sklearn", "matplotlib", "pandas", "numpy", "jsonargparse", "rich"}
    assert not heavy & set(loaded)
