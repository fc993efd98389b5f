"""The VM that is moved: the memory verifier of native/verify at a given rate, and an echo of datagrams beside it."""

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


def guest_image(layout: Path) -> str:
    """Make the image in an OCI layout; its reference."""
    files = base_files() | busybox_files()
    verifier = (VERIFIER_SOURCES / "memory.c", VERIFIER_SOURCES / "pattern.c")
    files["/usr/bin/memory-verify"] = ImageFile(compile_static("memory", verifier), 0o755)
    guest = (Path(__file__).parent / "image" / "guest.c",)
    files["/usr/bin/bench-guest"] = ImageFile(compile_static("guest", guest), 0o755)
    return write_image(layout, "bench", files, ImageSettings(entrypoint=("/usr/bin/bench-guest", str(GUEST_PORT))))


def guest_words(cell: Cell) -> tuple[str, ...]:
    """The arguments of a VM of that cell: the verifier and its options."""
    size_mib = int(cell.memory_mib * FILLED_SHARE)
    options = {"size-mib": size_mib, "rate-mib": cell.dirty_mib_s, "sweep-mib": SWEEP_MIB_S}
    return ("memory-verify", *(word for name, value in options.items() for word in (f"--{name}", str(value))))
