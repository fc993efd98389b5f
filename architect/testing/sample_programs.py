"""Files of images taken from this machine: programs with the libraries that they load, whole Debian packages, and C compiled here.

The layout is Debian's merged one: `/bin`, `/sbin`, `/lib` and `/lib64` are links into `/usr`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from architect.errors import HostError
from architect.testing.sample_layout import ImageFile, directory, link, program, text

REPOSITORY = Path(__file__).resolve().parents[2]
# The CPU model of our VMs is Nehalem, and a compiler that is told nothing may be configured for newer ones. TCG runs vector
# instructions through slow helpers.
CPU_FLAGS = ("-march=nehalem", "-mtune=generic", "-fno-tree-vectorize", "-fno-tree-slp-vectorize")
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+) \(0x")
_LEFT_OUT = re.compile(r"/usr/share/(?:doc|man|locale|lintian|info|bash-completion|bug)(?:/|$)")
_MERGED = ("bin", "sbin", "lib", "lib64")


def base_files() -> dict[str, ImageFile]:
    """What every image has: the merged directories, root and nobody, names."""
    files: dict[str, ImageFile] = {f"/{name}": link(f"usr/{name}") for name in _MERGED}
    files |= {f"/usr/{name}": directory() for name in _MERGED}
    files |= {f"/{name}": directory() for name in ("etc", "root", "var", "proc", "sys", "dev", "run")}
    files["/tmp"] = directory(0o1777)
    files["/etc/passwd"] = text(
        "root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        "app:*:1000:1000:app:/home/app:/bin/sh\nsshd:*:110:65534::/run/sshd:/usr/sbin/nologin\n"
    )
    files["/etc/group"] = text("root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:1001:app\n")
    files["/etc/nsswitch.conf"] = text("passwd: files\ngroup: files\nhosts: files dns\n")
    return files


def busybox_files() -> dict[str, ImageFile]:
    """A static busybox under all its names in /bin."""
    path = host_program("busybox")
    names = subprocess.run([path, "--list"], check=True, capture_output=True, text=True, timeout=30).stdout.split()
    files = {f"/usr/bin/{name}": link("busybox") for name in names if name != "busybox"}
    return files | {"/usr/bin/busybox": program(path)}


def program_files(*names: str) -> dict[str, ImageFile]:
    """Programs of this machine, each where it is here, and the libraries that they load."""
    files: dict[str, ImageFile] = {}
    for name in names:
        path = host_program(name)
        files[_merged(path)] = program(path.resolve())
        files |= library_files(path)
    return files


def package_files(*packages: str) -> dict[str, ImageFile]:
    """The files of installed Debian packages, without documentation, and the libraries that their programs load."""
    files: dict[str, ImageFile] = {}
    for package in packages:
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, timeout=60)
        if listed.returncode:
            raise HostError(f"package {package}", "not installed on this machine", "install it with tools/packages.sh")
        for path in map(Path, listed.stdout.splitlines()):
            if not _LEFT_OUT.match(str(path)):
                files |= _package_file(path)
    return files


def library_files(path: Path) -> dict[str, ImageFile]:
    """The libraries that a program loads, and its loader; nothing for a static one."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=60).stdout
    libraries = [Path(match) for match in _LIBRARY.findall(listed)]
    return {_merged(library): program(library.resolve()) for library in libraries}


def compile_static(name: str, sources: Sequence[Path], compiler: str = "gcc", flags: Sequence[str] = ()) -> bytes:
    """A static program of C sources, for the CPU model of our VMs.

    Raises:
        HostError: it does not compile.
    """
    with tempfile.TemporaryDirectory(prefix="architect-compile-") as scratch:
        output = Path(scratch) / name
        command = [compiler, "-O2", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *CPU_FLAGS, *flags, "-static"]
        result = subprocess.run(
            [*command, "-o", output, *sources], capture_output=True, text=True, timeout=300, env=os.environ | {"AFL_QUIET": "1"}
        )
        if result.returncode:
            raise HostError(f"program {name}", f"{compiler}: {result.stderr[-500:]}", "mend the source")
        return output.read_bytes()


def host_program(name: str) -> Path:
    """Where a program of this machine is.

    Raises:
        HostError: it is not installed.
    """
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin")
    if found is None:
        raise HostError(f"program {name}", "not installed on this machine", "install it with tools/packages.sh")
    return Path(found)


def _package_file(path: Path) -> dict[str, ImageFile]:
    if len(path.parts) < 3:
        return {}  # The root and what lies in it are base_files'.
    if path.is_symlink():
        return {_merged(path): link(os.readlink(path))} if path.exists() else {}
    if path.is_dir():
        return {_merged(path): directory()}
    if not path.is_file():
        return {}
    mode = path.stat().st_mode & 0o7777
    libraries = library_files(path) if mode & 0o111 or ".so" in path.name else {}
    return libraries | {_merged(path): ImageFile(mode=mode, source=path)}


def _merged(path: Path) -> str:
    """The path under /usr, where the image has the file."""
    return f"/usr{path}" if path.parts[1] in _MERGED else str(path)
