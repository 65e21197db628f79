"""The code is as `ruff format` and `ruff check` leave it, and markers of tests are those of pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(command):
    done = subprocess.run([RUFF, *command, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_marker_is_refused(tmp_path):
    """`pytest -m "not slow"` would run what is marked "slwo"."""
    file = tmp_path / "test_marks.py"
    for name, code in (("slow", 0), ("slwo", 2)):
        file.write_text(f"import pytest\n\n\n@pytest.mark.{name}\ndef test_nothing():\n    pass\n")
        options = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-n", "0", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, file], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stdout
        assert code == 0 or "'slwo' not found in `markers`" in done.stdout
