"""The guest kernel: the distribution's own cloud kernel, unpacked beside the host's, never installed.

`apt-get download` fetches the concrete image package (apt checks signature and hash), `dpkg-deb` unpacks it into a cache, the
uncompressed ELF is cut out of the bzImage: QEMU enters it directly (PVH), which spares every boot the decompression. One folder a
kernel, made under another name, flushed and renamed: whoever finds it finds it whole, after a crash of the host, too. A lock keeps
two makers apart. The first kernel in the cache is taken before any network is asked: a fleet keeps its kernel until somebody
empties the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from pathlib import Path

import msgspec

from architect.drafter.folder_lock import folder_lock
from architect.drafter.vmlinux import extract_vmlinux
from architect.errors import HostError
from architect.runtime.file_system_flush import flush_file_system

# - quiet: each line on the serial console is an exit of the VM; what is left on it is a panic.
# - panic=-1: a kernel that cannot go on restarts at once, which QEMU reports to its owner.
# - random.trust_cpu=off: the seed that CONFIGURE brings counts, not what an emulated CPU calls random.
# - no_timer_check: on a busy host the check that a timer interrupt comes in time fails and panics.
# - cryptomgr.notests: self-tests of ciphers cost 0.5 s of boot under TCG.
_COMMON_ARGUMENTS = (
    "quiet loglevel=1 console=ttyS0 panic=-1 random.trust_cpu=off no_timer_check cryptomgr.notests "
    "rcupdate.rcu_expedited=1 audit=0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd"
)
# - clocksource=hpet, tsc=unstable: under TCG the TSC is the host's; on a host of another frequency the guest's time would run at
#   another speed. Reading the HPET costs 0.8 us more than the TSC.
# - nopti: each switch of page tables empties TCG's TLB: a system call costs 27 us with it, 1.6 us without, and an emulated CPU
#   does not speculate. mitigations=off gains nothing more here and patches for another 0.3 s at boot.
KERNEL_ARGUMENTS = f"{_COMMON_ARGUMENTS} clocksource=hpet tsc=unstable nopti"
KVM_KERNEL_ARGUMENTS = _COMMON_ARGUMENTS
DOWNLOAD_TIMEOUT_S = 300.0
UNPACK_TIMEOUT_S = 120.0
_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")


def kernel_arguments(accelerator: str) -> str:
    """The guest kernel's command line under ``tcg`` or ``kvm``."""
    return KERNEL_ARGUMENTS if accelerator == "tcg" else KVM_KERNEL_ARGUMENTS


class KernelError(HostError):
    """No guest kernel could be had."""

    code = "kernel"


class GuestKernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kernel in the cache. `modules_dir` is its lib/modules/<version>; `sha256` is that of the uncompressed `vmlinux`."""

    version: str
    vmlinux: Path
    modules_dir: Path
    sha256: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kernel.json` in a kernel's folder: what `GuestKernel` says, without places."""

    version: str
    sha256: str


_RECORD_DECODER = msgspec.json.Decoder(_Record)


async def fetch_guest_kernel(cache_dir: Path) -> GuestKernel:
    """The guest kernel, from the cache or, for the first time, from the distribution.

    Idempotent; two processes may call it at once. A cancelled call leaves no kernel and at most a temporary folder, which the next
    one removes.

    Raises:
        KernelError: apt or dpkg failed, or the package holds no kernel that we can read.
    """
    await asyncio.to_thread(cache_dir.mkdir, parents=True, exist_ok=True)
    found = _find_cached(cache_dir)
    if found is not None:
        return found
    async with folder_lock(cache_dir):
        found = _find_cached(cache_dir)
        if found is not None:
            return found
        for stale in cache_dir.glob(".kernel-*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=".kernel-", dir=cache_dir))
        try:
            return await _make(cache_dir, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _find_cached(cache_dir: Path) -> GuestKernel | None:
    for record_path in sorted(cache_dir.glob("kernel-*/kernel.json")):
        try:
            record = _RECORD_DECODER.decode(record_path.read_bytes())
        except (OSError, msgspec.DecodeError):
            continue
        return _in_folder(record_path.parent, record)
    return None


def _in_folder(folder: Path, record: _Record) -> GuestKernel:
    return GuestKernel(
        version=record.version,
        vmlinux=folder / "vmlinux",
        modules_dir=folder / "modules" / record.version,
        sha256=record.sha256,
    )


async def _make(cache_dir: Path, work: Path) -> GuestKernel:
    packages = await _resolve_packages()
    await _run(("apt-get", "download", *packages), work, DOWNLOAD_TIMEOUT_S)
    unpacked = work / "unpacked"
    for archive in sorted(work.glob("*.deb")):
        await _run(("dpkg-deb", "-x", str(archive), str(unpacked)), work, UNPACK_TIMEOUT_S)
    result = work / "result"
    record = await asyncio.to_thread(_assemble, unpacked, result)
    final = cache_dir / f"kernel-{record.version}-{record.sha256[:12]}"
    try:
        await asyncio.to_thread(flush_file_system, work)
        result.rename(final)
    except OSError as error:
        raise KernelError(f"kernel {record.version}", str(error), f"see that {cache_dir} has space") from error
    return _in_folder(final, record)


def _assemble(unpacked: Path, result: Path) -> _Record:
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise KernelError("the kernel package", f"holds {len(images)} kernels instead of one", "report this distribution")
    version = images[0].name.removeprefix("vmlinuz-")
    candidates = [folder for folder in unpacked.glob(f"**/lib/modules/{version}") if folder.is_dir()]
    if not candidates:
        raise KernelError(f"kernel {version}", "comes without its modules", "report this distribution")
    vmlinux = extract_vmlinux(images[0].read_bytes(), version)
    (result / "modules").mkdir(parents=True)
    (result / "vmlinux").write_bytes(vmlinux)
    candidates[0].rename(result / "modules" / version)
    record = _Record(version, hashlib.sha256(vmlinux).hexdigest())
    (result / "kernel.json").write_bytes(msgspec.json.encode(record))
    return record


async def _resolve_packages() -> tuple[str, ...]:
    """The concrete image package that the first known meta package depends on; on Ubuntu its modules package too."""
    for meta in _META_PACKAGES:
        depends = await _depends_of(meta)
        images = [name for name in depends if name.startswith("linux-image-") and name != meta]
        if images:
            modules = [name for name in await _depends_of(images[0]) if name.startswith("linux-modules-")]
            return (images[0], *modules)
    raise KernelError(
        "the guest kernel",
        f"apt knows none of {', '.join(_META_PACKAGES)}",
        "run: apt-get update",
    )


async def _depends_of(package: str) -> tuple[str, ...]:
    output = await _run(("apt-cache", "show", "--no-all-versions", package), Path("/"), UNPACK_TIMEOUT_S, must_succeed=False)
    return parse_depends(output)


def parse_depends(control_text: str) -> tuple[str, ...]:
    """The package names in the first `Depends:` field, first alternatives only, versions dropped."""
    for line in control_text.splitlines():
        if line.startswith("Depends:"):
            fields = line.removeprefix("Depends:").split(",")
            return tuple(field.split("|")[0].split("(")[0].strip().split(":")[0] for field in fields if field.strip())
    return ()


async def _run(command: tuple[str, ...], work: Path, timeout_s: float, *, must_succeed: bool = True) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=work,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise KernelError(
            command[0], "is not on this host", "use a Debian or Ubuntu host, or fill the kernel cache by hand"
        ) from error
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate()
    except TimeoutError as error:
        raise KernelError(
            " ".join(command), f"did not end within {timeout_s:.0f} s", "check the network, run it by hand"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0 and must_succeed:
        cause = errors.decode(errors="replace").strip().splitlines()
        raise KernelError(
            "the guest kernel",
            f"{' '.join(command[:2])} failed: {cause[-1] if cause else process.returncode}",
            f"check the network, then run: apt-get update && {' '.join(command)}",
        )
    return output.decode(errors="replace")
