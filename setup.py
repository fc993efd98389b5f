"""Builds the C parts (guest init, userfaultfd shim, BPF programs) into `architect/artifacts` before the package is built."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithC(build_py):
    """`build_py` that runs `make -C native` first."""

    def run(self) -> None:
        subprocess.run(["make", "--silent", "-C", str(ROOT / "native"), "all"], check=True)
        super().run()


setup(cmdclass={"build_py": BuildWithC})
