"""BpfMap: a BPF map as a typed mapping of ctypes structs. Blocking, a few microseconds a call; safe from any thread."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from architect.conduit.libbpf import BatchOptions, bpf_error, check, library

BATCH_ENTRIES = 4096
KeyT = TypeVar("KeyT", bound="ctypes.Structure | ctypes.c_uint32")
ValueT = TypeVar("ValueT", bound="ctypes.Structure | ctypes.c_uint32 | ctypes.c_uint64")


class BpfMap(Generic[KeyT, ValueT]):
    """A map by its file descriptor, which it owns."""

    def __init__(self, descriptor: int, name: str, key: type[KeyT], value: type[ValueT]) -> None:
        self._descriptor = descriptor
        self._name = f"BPF map {name}"
        self._key = key
        self._value = value

    def get(self, key: KeyT) -> ValueT | None:
        """The value, or None.

        Raises:
            BpfError: the kernel refuses.
        """
        value = self._value()
        result = library().bpf_map_lookup_elem(self._descriptor, ctypes.byref(key), ctypes.byref(value))
        if result == -errno.ENOENT:
            return None
        check(result, self._name)
        return value

    def put(self, key: KeyT, value: ValueT) -> None:
        """Set the entry, atomically for the programs that read it.

        Raises:
            BpfError: the map is full, or the kernel refuses.
        """
        check(library().bpf_map_update_elem(self._descriptor, ctypes.byref(key), ctypes.byref(value), 0), self._name)

    def delete(self, key: KeyT) -> bool:
        """Remove the entry; whether there was one.

        Raises:
            BpfError: the kernel refuses.
        """
        result = library().bpf_map_delete_elem(self._descriptor, ctypes.byref(key))
        if result == -errno.ENOENT:
            return False
        check(result, self._name)
        return True

    def entries(self) -> Iterator[tuple[KeyT, ValueT]]:
        """All entries of a hash map, in batches; entries that come and go meanwhile may or may not be among them.

        Raises:
            BpfError: the kernel refuses.
        """
        keys, values = (self._key * BATCH_ENTRIES)(), (self._value * BATCH_ENTRIES)()
        position, before = ctypes.c_uint64(), None
        options = BatchOptions(sz=ctypes.sizeof(BatchOptions))
        while True:
            found = ctypes.c_uint32(BATCH_ENTRIES)
            result = library().bpf_map_lookup_batch(
                self._descriptor,
                before and ctypes.byref(before),
                ctypes.byref(position),
                keys,
                values,
                ctypes.byref(found),
                ctypes.byref(options),
            )
            if result < 0 and result != -errno.ENOENT:
                raise bpf_error(self._name, -result)
            for index in range(found.value):
                key = self._key.from_buffer_copy(keys, index * ctypes.sizeof(self._key))
                value = self._value.from_buffer_copy(values, index * ctypes.sizeof(self._value))
                yield cast("KeyT", key), cast("ValueT", value)
            if result < 0:
                return
            before = ctypes.c_uint64(position.value)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_counters(descriptor: int, count: int) -> list[int]:
    """The sums over all CPUs of a PERCPU_ARRAY of u64.

    Raises:
        BpfError: the kernel refuses.
    """
    cpus = check(library().libbpf_num_possible_cpus(), "number of CPUs")
    values = (ctypes.c_uint64 * cpus)()
    sums = []
    for index in range(count):
        check(
            library().bpf_map_lookup_elem(descriptor, ctypes.byref(ctypes.c_uint32(index)), ctypes.byref(values)),
            "BPF map counters",
        )
        sums.append(sum(values))
    return sums
