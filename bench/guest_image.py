"""The VM that is moved: the memory verifier of native/verify at a given rate, its disk verifier too where the guest is to write its
disk, and an echo of datagrams beside them."""

from __future__ import annotations

from pathlib import Path

from architect.testing.sample_images import VERIFIER_SOURCES
from architect.testing.sample_layout import ImageFile, ImageSettings, write_image
from architect.testing.sample_programs import base_files, busybox_files, compile_static
from bench.guest_contact import GUEST_PORT
from bench.results import Cell

# Of the VM's memory, 5/8 are the verifier's: the rest is for the guest's kernel, and is mostly never written.
FILLED_SHARE = 0.625
SWEEP_MIB_S = 4
DISK_FILE_MIB = 64


def guest_image(layout: Path) -> str:
    """Make the image in an OCI layout; its reference."""
    files = base_files() | busybox_files()
    for name in ("memory", "disk"):
        sources = (VERIFIER_SOURCES / f"{name}.c", VERIFIER_SOURCES / "pattern.c")
        files[f"/usr/bin/{name}-verify"] = ImageFile(compile_static(name, sources), 0o755)
    guest = (Path(__file__).parent / "image" / "guest.c",)
    files["/usr/bin/bench-guest"] = ImageFile(compile_static("guest", guest), 0o755)
    return write_image(layout, "bench", files, ImageSettings(entrypoint=("/usr/bin/bench-guest", str(GUEST_PORT))))


def guest_words(cell: Cell) -> tuple[str, ...]:
    """The arguments of a VM of that cell: the verifiers and their options."""
    size_mib = int(cell.memory_mib * FILLED_SHARE)
    memory = ("memory-verify", *_options({"size-mib": size_mib, "rate-mib": cell.dirty_mib_s, "sweep-mib": SWEEP_MIB_S}))
    if not cell.disk_mib_s:
        return memory
    disk = {"size-mib": DISK_FILE_MIB, "rate-mib": cell.disk_mib_s, "sweep-mib": 0, "flush-every": 64}
    return (*memory, "--", "disk-verify", *_options(disk))


def _options(values: dict[str, int]) -> tuple[str, ...]:
    return tuple(word for name, value in values.items() for word in (f"--{name}", str(value)))
