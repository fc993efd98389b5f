"""The modules of a kernel and their dependencies.

A package that was unpacked and not installed has no `modules.dep` (depmod makes it), so dependencies are read where depmod reads
some of them: the `depends=` of each module's `.modinfo`. Names are the kernel's own, with underscores.
"""

from __future__ import annotations

import lzma
import re
import subprocess
import zlib
from pathlib import Path

from architect.errors import HostError

_SUFFIX = re.compile(r"\.ko(\.xz|\.zst|\.gz)?$")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
DECOMPRESS_TIMEOUT_S = 30.0


class KernelModuleError(HostError):
    """A module is missing or cannot be read."""

    code = "kernel-module"


class KernelModules:
    """The modules under a lib/modules/<version> folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = {kernel_name(path): path for path in sorted(folder.rglob("*.ko*")) if _SUFFIX.search(path.name)}
        self._builtin = _read_builtin(folder)

    def load_order(self, wanted: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
        """`wanted` and all that they need, each behind what it depends on; built-in ones left out, `optional` ones if they exist.

        Raises:
            KernelModuleError: a module is neither here nor built in.
        """
        order: list[str] = []
        for name in (*wanted, *(name for name in optional if name in self._paths)):
            self._visit(name, order, ())
        return order

    def read(self, name: str) -> bytes:
        """The module, uncompressed.

        Raises:
            KernelModuleError: it cannot be read or decompressed.
        """
        path = self._paths[name]
        try:
            return _decompress(path)
        except (OSError, lzma.LZMAError, zlib.error, subprocess.SubprocessError) as error:
            raise KernelModuleError(
                str(path), f"cannot be read ({error})", "remove this kernel from the cache and fetch it again"
            ) from error

    def _visit(self, name: str, order: list[str], visiting: tuple[str, ...]) -> None:
        if name in order or name in visiting:
            return
        if name not in self._paths:
            if name in self._builtin:
                return
            raise KernelModuleError(
                f"module {name}", f"is not in {self._folder}", "use a kernel of Debian's or Ubuntu's cloud flavour"
            )
        for dependency in self._dependencies(name):
            self._visit(dependency, order, (*visiting, name))
        order.append(name)

    def _dependencies(self, name: str) -> list[str]:
        found = _DEPENDS.search(self.read(name))
        if found is None:
            raise KernelModuleError(str(self._paths[name]), "says nothing of its dependencies", "fetch this kernel again")
        return [part.replace("-", "_") for part in found.group(1).decode().split(",") if part]


def kernel_name(path: Path) -> str:
    """The kernel's name of a module file."""
    return _SUFFIX.sub("", path.name).replace("-", "_")


def _read_builtin(folder: Path) -> frozenset[str]:
    try:
        lines = (folder / "modules.builtin").read_text().splitlines()
    except FileNotFoundError:
        return frozenset()
    return frozenset(kernel_name(Path(line)) for line in lines)


def _decompress(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return zlib.decompress(data, wbits=31)
        case ".zst":
            return subprocess.run(
                ("zstd", "-dcq"), input=data, stdout=subprocess.PIPE, timeout=DECOMPRESS_TIMEOUT_S, check=True
            ).stdout
        case _:
            return data
