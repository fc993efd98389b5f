"""The uncompressed kernel inside a bzImage.

The setup header (Linux, Documentation/arch/x86/boot.rst) says where the payload is; its first bytes say how it is compressed; its
last four are the uncompressed length, which some decompressors must not see.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import subprocess
import zlib
from collections.abc import Callable
from typing import Protocol

from architect.errors import HostError

_HEADER_MAGIC_AT = 0x202
_SECTORS_AT = 0x1F1
_VERSION_AT = 0x206
_PAYLOAD_AT = 0x248
_PAYLOAD_VERSION = 0x0208
_ELF_X86_64 = 62
DECOMPRESS_TIMEOUT_S = 60.0
VMLINUX_BYTES_MAX = 512 << 20


class VmlinuxError(HostError):
    """A file that holds no kernel that we can read."""

    code = "vmlinux"


def extract_vmlinux(image: bytes, name: str) -> bytes:
    """The ELF file in the bzImage `image`; `name` is how errors call it.

    Raises:
        VmlinuxError: it is no bzImage, is compressed in a way that we do not know, or does not hold an x86-64 ELF.
    """
    payload = _payload(image, name)
    for magic, decompress in _DECOMPRESSORS:
        if payload.startswith(magic):
            try:
                vmlinux = decompress(payload)
            except (OSError, lzma.LZMAError, zlib.error, ValueError, subprocess.SubprocessError) as error:
                raise VmlinuxError(f"kernel {name}", f"its payload does not decompress ({error})", "fetch it again") from error
            return _checked(vmlinux, name)
    return _checked(payload, name)


def _payload(image: bytes, name: str) -> bytes:
    if len(image) < 0x260 or image[_HEADER_MAGIC_AT : _HEADER_MAGIC_AT + 4] != b"HdrS":
        raise VmlinuxError(f"kernel {name}", "is no bzImage", "fetch it again")
    (version,) = struct.unpack_from("<H", image, _VERSION_AT)
    if version < _PAYLOAD_VERSION:
        raise VmlinuxError(f"kernel {name}", f"has boot protocol {version:#x}, too old", "use a kernel since 2.6.26")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    start = (image[_SECTORS_AT] + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) != length or length < 8:
        raise VmlinuxError(f"kernel {name}", "is cut short", "fetch it again")
    return payload


def _checked(vmlinux: bytes, name: str) -> bytes:
    if len(vmlinux) < 64 or vmlinux[:6] != b"\x7fELF\x02\x01":
        raise VmlinuxError(f"kernel {name}", "its payload is not a 64-bit ELF file", "report this kernel's packaging")
    (machine,) = struct.unpack_from("<H", vmlinux, 18)
    if machine != _ELF_X86_64:
        raise VmlinuxError(f"kernel {name}", f"is for ELF machine {machine}, not x86-64", "fetch the amd64 package")
    return vmlinux


class _Decompressor(Protocol):
    """What zlib, lzma and bz2 have in common."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _by_library(make: Callable[[], _Decompressor]) -> Callable[[bytes], bytes]:
    def decompress(payload: bytes) -> bytes:
        decompressor = make()
        data = decompressor.decompress(payload, VMLINUX_BYTES_MAX)
        if not decompressor.eof:
            raise ValueError("it ends early or is too long")
        return data

    return decompress


def _by_command(*command: str) -> Callable[[bytes], bytes]:
    def decompress(payload: bytes) -> bytes:
        done = subprocess.run(command, input=payload[:-4], stdout=subprocess.PIPE, timeout=DECOMPRESS_TIMEOUT_S, check=True)
        return done.stdout

    return decompress


_DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b\x08", _by_library(lambda: zlib.decompressobj(wbits=31))),
    (b"\xfd7zXZ\x00", _by_library(lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ))),
    (b"\x5d\x00\x00", _by_library(lambda: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE))),
    (b"BZh", _by_library(bz2.BZ2Decompressor)),
    (b"\x28\xb5\x2f\xfd", _by_command("zstd", "-d", "-c", "-q")),
    (b"\x02\x21\x4c\x18", _by_command("lz4", "-d", "-c", "-q")),
)
