"""Fork server: a process that has imported a program and forks it: one starts in ten milliseconds, not in half a second.

    server = ForkServer("architect.silo.memory_main", label="/var/lib/architect/hosts/aws-1")
    await server.start()                                  # imports; later forks wait for it
    child = await server.fork(["--run-dir", …], log_fd)   # runs memory_main.main([...]) in a session of its own
    server.close()                                        # ends the server; what it forked runs on

The children share the memory of what was imported. They outlive the server, and the server ends with its client, however that ends.
A server that was killed is started again by the next `fork`. Why not multiprocessing's: its children import the parent's main
module again, and its resource tracker outlives both.

Protocol: one request a packet (SOCK_SEQPACKET on the server's standard input): a JSON list of arguments, with the descriptor for
the child's output; the answer is the pid, with a pidfd. The server says `ready` first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from architect.errors import HostError
from architect.runtime.process_end import has_ended, known_exit_status

READY = b"ready"
REQUEST_BYTES_MAX = 64 << 10
START_TIMEOUT_S = 20.0
FORK_TIMEOUT_S = 5.0
_NAME_BYTES_MAX = 15
_ARGUMENTS_DECODER = msgspec.json.Decoder(list[str])


class ForkedProcess:
    """A child of the server. `close` lets go of it; it runs on."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def has_ended(self) -> bool:
        """Whether it is gone."""
        return has_ended(self._pidfd)

    async def exit_status(self) -> int | None:
        """How it has ended, as `Popen.returncode`, once its end is known; None: that does not become known."""
        return await known_exit_status(self._pidfd)

    def kill(self) -> None:
        """SIGKILL, to exactly this process. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it. Once."""
        os.close(self._pidfd)


class ForkServer:
    """The client's side; one for each program. Not thread-safe.

    :param module: has `main(argv: list[str]) -> int`.
    :param label: stands in the command line of the server and its children, for who looks at `ps`.
    :param prefix: a command that the server is started by, such as `ip netns exec NAME`.
    """

    def __init__(self, module: str, label: str, prefix: tuple[str, ...] = ()) -> None:
        self._module = module
        self._call = (*prefix, sys.executable, "-m", "architect.runtime.fork_server", module, "--label", label)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the server if it does not run, and wait until it can fork. Idempotent.

        Raises:
            HostError: it does not start.
        """
        async with self._starting:
            if self._process is not None and self._process.poll() is None and self._socket is not None:
                return
            self.close()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # BLAS would start threads that do nothing here, and a process with threads should not fork.
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            with theirs:
                self._process = subprocess.Popen(self._call, stdin=theirs.fileno(), env=environment, start_new_session=True)  # noqa: ASYNC220
            ours.setblocking(False)
            self._socket = ours
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    if await asyncio.get_running_loop().sock_recv(ours, len(READY)) != READY:
                        raise ConnectionResetError("it ended")
            except OSError as error:  # a TimeoutError is one, and has no words
                self.close()
                cause = str(error) or f"no answer in {START_TIMEOUT_S:g} s"
                raise HostError(f"fork server of {self._module}", f"does not start: {cause}", "see the agent's log") from error
            except BaseException:
                self.close()
                raise

    async def fork(self, arguments: list[str], log_fd: int) -> ForkedProcess:
        """Start the program with these arguments, its output to `log_fd`. Blocks for the length of a fork.

        Raises:
            HostError: the server cannot be started, or answers nothing.
        """
        for is_last in (False, True):
            await self.start()
            try:
                return self._ask(arguments, log_fd)
            except OSError as error:  # it was killed
                self.close()
                if is_last:
                    raise HostError(f"fork server of {self._module}", str(error), "see the agent's log") from error
        raise AssertionError("not reached")

    def close(self) -> None:
        """End the server. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, arguments: list[str], log_fd: int) -> ForkedProcess:
        assert self._socket is not None
        self._socket.settimeout(FORK_TIMEOUT_S)
        try:
            socket.send_fds(self._socket, [msgspec.json.encode(arguments)], [log_fd])
            answer, descriptors, _, _ = socket.recv_fds(self._socket, 64, 1)
        finally:
            self._socket.setblocking(False)
        if not answer or not descriptors:
            raise ConnectionResetError("it ended")
        return ForkedProcess(int(answer), descriptors[0])


def main(argv: list[str]) -> int:
    """Import, then fork for each request until the client is gone; returns the exit status, of the server or of a child."""
    parser = argparse.ArgumentParser(prog="architect fork server", description="Started by the agent.")
    parser.add_argument("module")
    parser.add_argument("--label", default="")
    options = parser.parse_args(argv)
    program: Callable[[list[str]], int] = importlib.import_module(options.module).main
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, all of it
    client = socket.socket(fileno=os.dup(0))
    client.send(READY)
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    while True:
        readable = {descriptor for descriptor, _ in poll.poll()}
        for pidfd in readable & children.keys():
            poll.unregister(pidfd)
            os.waitpid(children.pop(pidfd), 0)
            os.close(pidfd)
        if client.fileno() not in readable:
            continue
        request, descriptors, _, _ = socket.recv_fds(client, REQUEST_BYTES_MAX, 1)
        if not request:
            return 0
        if (pid := os.fork()) == 0:
            _become(options.module, client, list(children), descriptors[0])
            return program(_ARGUMENTS_DECODER.decode(request))
        os.close(descriptors[0])
        pidfd = os.pidfd_open(pid)
        children[pidfd] = pid
        poll.register(pidfd, select.POLLIN)
        socket.send_fds(client, [str(pid).encode()], [pidfd])


def _become(module: str, client: socket.socket, others: list[int], log_fd: int) -> None:
    """A process of its own: session, name, output; nothing of the server's is kept open."""
    os.setsid()
    client.close()
    for descriptor in others:
        os.close(descriptor)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    with open("/proc/self/comm", "wb") as name:
        name.write(module.rpartition(".")[2].encode()[:_NAME_BYTES_MAX])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
