"""Programs of this machine work inside an image: their libraries came along."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from architect.errors import HostError
from architect.testing.sample_images import debian_image
from architect.testing.sample_programs import package_files

pytestmark = pytest.mark.host


def test_packages_and_programs_run_with_their_libraries(tmp_path: Path) -> None:
    debian_image(tmp_path / "layout", packages=("curl", "perl-base"), programs=("bash", "redis-cli"))
    unpack = ["umoci", "raw", "unpack", "--image", f"{tmp_path}/layout:debian", f"{tmp_path}/root"]
    subprocess.run(unpack, check=True, capture_output=True)
    os.mknod(tmp_path / "root" / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    script = """
        curl --version | head -1
        perl -MSocket -e 'print 6 * 7, chr 10'
        redis-cli --version
        test -d /usr/share/doc || echo no documentation
    """
    command = ["/usr/sbin/chroot", f"{tmp_path}/root", "/bin/bash", "-ec", script]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"}).stdout
    assert output.startswith("curl ") and "42\n" in output and "redis-cli " in output and "no documentation" in output


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(HostError, match="package no-such-package: not installed"):
        package_files("no-such-package")
