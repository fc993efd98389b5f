"""Runs code in a throw-away VM through /dev/kvm: is this KVM one that runs kernels at the CPU's speed?

A device that opens proves nothing. On a host whose KVM is backed by PVM every ioctl succeeds, and an unmodified guest kernel is
emulated instruction by instruction until it meets one that is not emulated (research/accelerators.md). So two things are tried in
64-bit mode, in a VM of one CPU and 2 MiB: a loop at CPL 0 is timed, and a SYSCALL from CPL 3 has to arrive at CPL 0.

`main` prints a `KvmProbe` as JSON; `accelerator` runs it in a process of its own, because a broken KVM may never come back from
KVM_RUN.

Sources: Linux, Documentation/virt/kvm/api.rst; Intel SDM vol. 3, 5.8.8 (SYSCALL) and 27.3.1 (guest segment state).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time

import msgspec

DEVICE = "/dev/kvm"
ITERATIONS = 10_000
RUNS = 3

_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_GET_VCPU_MMAP_SIZE, _KVM_CREATE_VCPU, _KVM_RUN = 0xAE00, 0xAE01, 0xAE04, 0xAE41, 0xAE80
_KVM_GET_SUPPORTED_CPUID, _KVM_SET_CPUID2, _KVM_SET_USER_MEMORY_REGION = 0xC008AE05, 0x4008AE90, 0x4020AE46
_KVM_SET_TSS_ADDR, _TSS_ADDRESS = 0xAE47, 0x7FFBD000
_KVM_SET_REGS, _KVM_GET_SREGS, _KVM_SET_SREGS, _KVM_SET_MSRS = 0x4090AE82, 0x8138AE83, 0x4138AE84, 0x4008AE89
_EXIT_IO, _EXIT_REASON_AT, _EXIT_IO_AT = 2, 8, 32
_EXIT_NAMES = {5: "HLT", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}

_MEMORY_BYTES = 2 << 20
_PML4, _PDPT, _PD, _LOOP, _USER, _ENTRY, _STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x8000
_LOOP_PORT, _ENTRY_PORT = 0x10, 0x11
_LOOP_CODE = bytes([0xFF, 0xC9, 0x75, 0xFC, 0xE6, _LOOP_PORT])  # 1: dec ecx; jnz 1b; out 0x10, al
_USER_CODE = bytes([0x0F, 0x05])  # syscall
_ENTRY_CODE = bytes([0x66, 0x8C, 0xC8, 0xE6, _ENTRY_PORT])  # mov ax, cs; out 0x11, al
_MSR_STAR, _MSR_LSTAR, _MSR_FMASK = 0xC0000081, 0xC0000082, 0xC0000084
_CR0_PE_MP_ET_NE_WP_PG, _CR4_PAE, _EFER_SCE_LME_LMA = 0x80010033, 0x20, 0x501

_SEGMENT = struct.Struct("<QIHBBBBBBBBBx")
_SREGS_BYTES = 312


class KvmProbe(msgspec.Struct, frozen=True):
    """What the throw-away VM showed. `error` is empty if both questions were answered."""

    loop_ns: float = 0.0
    syscall_arrives: bool = False
    error: str = ""


class _ProbeError(Exception):
    pass


def probe_kvm(device: str = DEVICE) -> KvmProbe:
    """Try this host's KVM. Never raises for what KVM does; may never return on a broken one."""
    try:
        with open(device, "r+b", buffering=0) as kvm:
            if fcntl.ioctl(kvm, _KVM_GET_API_VERSION) != 12:
                return KvmProbe(error="its API is not version 12")
            vm = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
            try:
                return _probe_vm(kvm.fileno(), vm)
            finally:
                os.close(vm)
    except (OSError, _ProbeError) as error:
        return KvmProbe(error=str(error))


def _probe_vm(kvm: int, vm: int) -> KvmProbe:
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at, code in ((_LOOP, _LOOP_CODE), (_USER, _USER_CODE), (_ENTRY, _ENTRY_CODE)):
        memory[at : at + len(code)] = code
    # Identity mapping of the first 2 MiB, present, writable, for user mode too; the last level is one large page.
    for at, entry in ((_PML4, _PDPT | 7), (_PDPT, _PD | 7), (_PD, 0x87)):
        memory[at : at + 8] = struct.pack("<Q", entry)
    fcntl.ioctl(vm, _KVM_SET_TSS_ADDR, _TSS_ADDRESS)  # old Intel CPUs want it
    fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))
    vcpu = fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0)
    try:
        _give_cpuid(kvm, vcpu)
        run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE))
        _time_loop(vcpu, run, 1)  # brings the pages in
        loop_ns = min(_time_loop(vcpu, run, ITERATIONS) for _ in range(RUNS)) * 1e9 / ITERATIONS
        return KvmProbe(loop_ns, _syscall_arrives(vcpu, run))
    finally:
        os.close(vcpu)


def _give_cpuid(kvm: int, vcpu: int) -> None:
    table = bytearray(struct.pack("<II", 256, 0) + bytes(256 * 40))
    fcntl.ioctl(kvm, _KVM_GET_SUPPORTED_CPUID, table)
    fcntl.ioctl(vcpu, _KVM_SET_CPUID2, table)


def _time_loop(vcpu: int, run: mmap.mmap, iterations: int) -> float:
    _set_state(vcpu, _LOOP, 0, iterations)
    began = time.perf_counter()
    _run_until_port(vcpu, run, _LOOP_PORT)
    return time.perf_counter() - began


def _syscall_arrives(vcpu: int, run: mmap.mmap) -> bool:
    # STAR: SYSCALL loads CS with 0x10 and SS with 0x18, whatever a descriptor table says.
    msrs = ((_MSR_STAR, 0x10 << 32), (_MSR_LSTAR, _ENTRY), (_MSR_FMASK, 0x200))
    entries = b"".join(struct.pack("<IIQ", index, 0, value) for index, value in msrs)
    if fcntl.ioctl(vcpu, _KVM_SET_MSRS, bytearray(struct.pack("<II", len(msrs), 0) + entries)) != len(msrs):
        return False
    _set_state(vcpu, _USER, 3, 0)
    try:
        data = _run_until_port(vcpu, run, _ENTRY_PORT)
    except _ProbeError:
        return False
    return data & 3 == 0


def _set_state(vcpu: int, instruction: int, level: int, counter: int) -> None:
    sregs = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
    code = _SEGMENT.pack(0, 0xFFFFFFFF, 0x10 | level, 11, 1, level, 0, 1, 1, 1, 0, 0)
    data = _SEGMENT.pack(0, 0xFFFFFFFF, 0x18 | level, 3, 1, level, 1, 1, 0, 1, 0, 0)
    task = _SEGMENT.pack(0, 0x67, 0x20, 11, 1, 0, 0, 0, 0, 0, 0, 0)
    none = _SEGMENT.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    sregs[: 8 * 24] = b"".join((code, data, data, data, data, data, task, none))
    control = (_CR0_PE_MP_ET_NE_WP_PG, 0, _PML4, _CR4_PAE, 0, _EFER_SCE_LME_LMA)
    struct.pack_into("<6Q", sregs, 8 * 24 + 2 * 16, *control)  # cr0, cr2, cr3, cr4, cr8, efer
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, bytes(sregs))
    registers = [0] * 18
    registers[2], registers[6], registers[16], registers[17] = counter, _STACK, instruction, 2  # rcx, rsp, rip, rflags
    fcntl.ioctl(vcpu, _KVM_SET_REGS, struct.pack("<18Q", *registers))


def _run_until_port(vcpu: int, run: mmap.mmap, port: int) -> int:
    fcntl.ioctl(vcpu, _KVM_RUN, 0)
    (reason,) = struct.unpack_from("<I", run, _EXIT_REASON_AT)
    if reason != _EXIT_IO:
        raise _ProbeError(f"a guest ended with {_EXIT_NAMES.get(reason, reason)}")
    _, _, found, _, data_at = struct.unpack_from("<BBHIQ", run, _EXIT_IO_AT)
    if found != port:
        raise _ProbeError(f"a guest wrote to port {found:#x} instead of {port:#x}")
    return int(run[data_at])


def main() -> None:
    """Print the outcome as JSON."""
    print(msgspec.json.encode(probe_kvm()).decode())
