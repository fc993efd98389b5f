"""`tools/venv.sh`: minutes of pip, with a sign of life for each thing that it is at, and pip's own end."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "venv.sh"
SAID = r"""Obtaining file:///work
  Installing build dependencies: started
  Installing build dependencies: finished with status 'done'
Collecting aiohttp==3.14.5 (from architect==0.1.0)
  Downloading aiohttp-3.14.5.whl (1.7 MB)
Collecting *
Building wheels for collected packages: architect
  Building editable for architect (pyproject.toml): started
Installing collected packages: aiohttp, attrs, architect
"""


def run(folder: Path, status: int) -> subprocess.CompletedProcess[str]:
    """With a pip that says its lines, complains, and ends so."""
    (folder / "bin").mkdir()
    pip = f"#!/bin/sh\ncat <<'END'\n{SAID}END\necho 'ERROR: from pip' >&2\nexit {status}\n"
    for name, text in (("python", "#!/bin/sh\n"), ("pip", pip)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return subprocess.run([SCRIPT, folder], capture_output=True, text=True)


def test_each_step_is_a_line(tmp_path: Path) -> None:
    done = run(tmp_path, 0)
    assert done.stdout.splitlines()[1:] == [
        "setup:   preparing the build",
        "setup:   fetching aiohttp==3.14.5",
        "setup:   fetching *",
        "setup:   building the C parts",
        "setup:   installing 3 packages",
        f"setup: {tmp_path} is ready",
    ]
    assert (done.returncode, done.stderr) == (0, "ERROR: from pip\n")


def test_what_pip_could_not_do_is_not_called_ready(tmp_path: Path) -> None:
    done = run(tmp_path, 7)
    assert done.returncode == 7 and "ready" not in done.stdout and done.stderr == "ERROR: from pip\n"
