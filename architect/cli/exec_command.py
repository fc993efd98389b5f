"""`architect exec`: a command in a VM, with our input, output, terminal and exit code.

Output comes as a stream of JSON lines; input goes over a second connection, from a thread, so that neither waits for the other.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any

from architect.cli.client import Client, StreamBrokenError, segment
from architect.cli.output import Output
from architect.errors import ArchitectError, NotFoundError, UsageError

INPUT_BYTES = 64 << 10


def execute(options: argparse.Namespace) -> int:
    """Run it, and return its exit code."""
    if not options.words:
        raise UsageError("architect exec", "no command given", "write it after --, for example `architect exec web -- ls`")
    client, output = Client(options.state_dir), Output(as_json=options.json)
    columns, rows = shutil.get_terminal_size((80, 24))
    body = {"args": options.words, "env": options.env, "tty": options.tty, "rows": rows, "columns": columns}
    stream = client.stream("POST", f"/v1/vms/{segment('vm', options.vm)}/exec", body)
    with _raw_terminal(wanted=options.interactive and options.tty):
        gathered, exit_code = _pump(client, stream, options, output)
    if output.as_json:
        texts = {name: bytes(data).decode(errors="replace") for name, data in gathered.items()}
        output.document({"exit_code": exit_code, **texts})
    return exit_code


def _pump(
    client: Client, stream: Iterator[dict[str, Any]], options: argparse.Namespace, output: Output
) -> tuple[dict[str, bytearray], int]:
    gathered = {"stdout": bytearray(), "stderr": bytearray()}
    for item in stream:
        if "result" in item:
            return gathered, int(item["result"]["exit_code"])
        if "session" in item:
            _start_input(client, item["session"], options)
            continue
        data = base64.b64decode(item["data"])
        name = "stderr" if item["stream"] == 2 else "stdout"
        if output.as_json:
            gathered[name] += data
        else:
            target = sys.stderr.buffer if name == "stderr" else sys.stdout.buffer
            target.write(data)
            target.flush()
    raise StreamBrokenError("control plane", "ended its answer early", "see in the vm what became of the command")


def _start_input(client: Client, session: str, options: argparse.Namespace) -> None:
    path = f"/v1/exec/{session}/input"
    if options.tty and sys.stdout.isatty():
        signal.signal(signal.SIGWINCH, lambda *_: threading.Thread(target=_resize, args=(client, path), daemon=True).start())
    threading.Thread(target=_feed, args=(client, path, options.interactive), daemon=True).start()


def _feed(client: Client, path: str, is_interactive: bool) -> None:
    """Pass our input on until it ends, or the command has."""
    with contextlib.suppress(NotFoundError, OSError):  # the command has ended
        while is_interactive and (data := os.read(sys.stdin.fileno(), INPUT_BYTES)):
            client.post_bytes(path, data)
        client.post_bytes(path, b"", end=True)


def _resize(client: Client, path: str) -> None:
    columns, rows = shutil.get_terminal_size((80, 24))
    with contextlib.suppress(ArchitectError):
        client.post_bytes(path, b"", rows=rows, columns=columns)


@contextlib.contextmanager
def _raw_terminal(*, wanted: bool) -> Iterator[None]:
    """Every key goes to the command while it runs."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin.fileno())
    try:
        tty.setraw(sys.stdin.fileno())
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
