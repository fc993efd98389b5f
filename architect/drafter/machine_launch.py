"""Opens everything that a QEMU inherits and makes its command line; closes our copies once it has been started."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

from architect.drafter.machine_options import MachineOptions
from architect.drafter.qemu_command import DiskFiles, QemuDescriptors, QemuLaunch, qemu_command
from architect.drafter.qmp import listening_socket
from architect.errors import HostError


class InheritedFiles:
    """The open descriptors of one start, as a context; `command` and `numbers` are for `spawn`.

    Raises:
        HostError: a file cannot be opened, or the VM's uid could not read kernel or initramfs.
    """

    def __init__(self, options: MachineOptions) -> None:
        self._stack = contextlib.ExitStack()
        self._options = options
        self.numbers: list[int] = []
        try:
            self.command = self._open()
        except OSError as error:
            self._stack.close()
            raise HostError(f"{options.called}: {error.filename or options.run_dir}", str(error), "see that it exists") from error
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> InheritedFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _open(self) -> list[str]:
        options = self._options
        run_dir = options.run_dir
        disk = None
        if (paths := options.disk) is not None:
            disk = DiskFiles(
                self._file(paths.overlay, os.O_RDWR),
                self._file(paths.overlay, os.O_RDONLY),
                self._file(paths.base, os.O_RDONLY) if paths.base is not None else None,
            )
        descriptors = QemuDescriptors(
            ram=self._own(os.dup(options.ram_fd)),
            qmp=self._listener(run_dir / "qmp.sock"),
            channel=self._listener(run_dir / "channel.sock"),
            console=self._file(run_dir / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            kernel=self._readable_by_all(options.boot.kernel),
            initramfs=self._readable_by_all(options.boot.initramfs),
            disk=disk,
            tap=self._own(os.dup(options.tap_fd)) if options.tap_fd is not None else None,
        )
        launch = QemuLaunch(
            name=options.name,
            mac=options.mac,
            kernel_arguments=options.boot.arguments,
            vm_generation_id=options.vm_generation_id,
            incoming=options.incoming,
            paused=options.paused,
            host_fsync=paths.host_fsync if paths is not None else False,
            binary=options.binary,
        )
        return qemu_command(options.spec, launch, descriptors)

    def _own(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        self.numbers.append(descriptor)
        return descriptor

    def _file(self, path: Path, flags: int) -> int:
        return self._own(os.open(path, flags | os.O_CLOEXEC, 0o600))

    def _readable_by_all(self, path: Path) -> int:
        # QEMU opens it again by /proc/self/fd, as its own uid.
        descriptor = self._file(path, os.O_RDONLY)
        if not os.fstat(descriptor).st_mode & 0o004:
            raise HostError(f"{self._options.called}: {path}", "not readable by the VM's user", f"chmod a+r {path}")
        return descriptor

    def _listener(self, path: Path) -> int:
        with listening_socket(path) as sock:
            return self._own(os.dup(sock.fileno()))
