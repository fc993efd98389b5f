"""The command line's grammar: every command with its arguments, help and examples. Bad usage is a `UsageError`, one line.

A command's function is named, `module:function` in this package, and only imported when it runs.

What follows the first `--` is a command for the VM and is never looked at.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from architect.errors import UsageError
from architect.model.sizes import check_bandwidth, parse_size
from architect.version import VERSION

DEFAULT_STATE_DIR = "/var/lib/architect"
NOTICE_S_MAX = 86_400.0

_EXAMPLES = """examples:
  architect up --hosts 3                              a fabric of three local hosts on this machine
  architect run oci:./web --name web --publish 8080:80
  architect migrate web --to gcp-1                    move it live; connections stay open
  architect local preempt aws-1 --notice 30           what its cloud would do
  architect exec -it web -- sh
  architect logs -f web

exit status: 0 done, 2 usage, 3 not found, 4 conflict, 5 no room, 6 incompatible, 7 unavailable, 8 peer, 9 host, 10 move failed,
11 lost, 70 defect, 130 interrupted; docs/operations/exit-codes.md has them all"""


class _Help(Exception):  # noqa: N818 - it is no error
    """Help or the version was asked for and printed."""


class _Parser(argparse.ArgumentParser):
    """argparse, with our errors, and without words cut short."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        # What argparse takes for a value although it begins with a dash: by itself `-5`, but not `-5M`, which would be an option.
        self._negative_number_matcher = re.compile(r"-\d")

    def error(self, message: str) -> NoReturn:
        thing = self.prog if " " in self.prog else "command line"
        raise UsageError(thing, message, f"see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            sys.stdout.write(message)
        raise _Help


def parse(words: list[str]) -> argparse.Namespace | None:
    """The options of a command line, its function under `command`; None if it only asked for help.

    Raises:
        UsageError: it is not one.
    """
    head, tail = _split(words)
    try:
        # Not by set_defaults: the parsers share the actions, and a subcommand's default would undo what stood before it.
        options = _grammar().parse_args(head, argparse.Namespace(json=False, state_dir=_default_state_dir()))
    except _Help:
        return None
    takes_words = getattr(options, "takes_words", False)
    if tail and not takes_words:
        raise UsageError("command line", f"nothing may follow -- here, but {tail[0]!r} does", "see `architect --help`")
    options.words = tail
    if not options.state_dir:
        raise UsageError("--state-dir", "is empty", "name the fabric's folder")
    options.state_dir = Path(os.path.abspath(options.state_dir))
    return options


def _default_state_dir() -> str:
    return os.environ.get("ARCHITECT_STATE") or DEFAULT_STATE_DIR


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _grammar() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document, or one a line")
    shared.add_argument(
        "--state-dir",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"the fabric's folder (now {_default_state_dir()}; $ARCHITECT_STATE sets it)",
    )
    parser = _Parser(
        prog="architect",
        parents=[shared],
        epilog=_EXAMPLES,
        description="A failure-proof compute fabric: OCI images as VMs that move live.",
    )
    parser.add_argument("--version", action="version", version=f"architect {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _fabric_commands(commands, shared)
    _host_commands(commands, shared)
    _vm_commands(commands, shared)
    _reading_commands(commands, shared)
    return parser


def _fabric_commands(commands: Any, shared: _Parser) -> None:
    up = _command(commands, shared, "up", "local_commands:up", "start a fabric of local hosts on this machine, or mend it")
    up.add_argument("--hosts", type=_count, default=3, metavar="N", help="how many hosts at least (3)")
    _command(commands, shared, "down", "local_commands:down", "take the local fabric apart")
    local = _group(commands, shared, "local", "the local provider's spot market and its failures")
    preempt = _command(local, shared, "preempt", "local_commands:preempt", "post a notice; the host vanishes at its deadline")
    preempt.add_argument("host", metavar="HOST")
    preempt.add_argument(
        "--notice", type=_seconds, metavar="SECONDS", help="how long the host has left (as long as its cloud gives)"
    )
    kill = _command(local, shared, "kill", "local_commands:kill", "destroy a host without notice")
    kill.add_argument("host", metavar="HOST")


def _host_commands(commands: Any, shared: _Parser) -> None:
    hosts = _group(commands, shared, "host", "list, add, empty and remove hosts")
    _command(hosts, shared, "ls", "host_commands:list_hosts", "list the hosts")
    add = _command(hosts, shared, "add", "local_commands:add_host", "add a local host")
    add.add_argument("--provider", choices=("aws", "gcp", "azure"), default="aws", help="whose notices it gets (aws)")
    add.add_argument("--name", help="its name (the provider's and a number)")
    drain = _command(hosts, shared, "drain", "host_commands:drain", "move all VMs away; the host takes none any more")
    drain.add_argument("host", metavar="HOST")
    drain.add_argument("--off", action="store_true", help="take VMs again")
    remove = _command(hosts, shared, "rm", "host_commands:remove", "remove a host that runs nothing")
    remove.add_argument("host", metavar="HOST")
    remove.add_argument("--force", action="store_true", help="also if VMs run on it: they are lost")


def _vm_commands(commands: Any, shared: _Parser) -> None:
    run = _command(
        commands, shared, "run", "vm_commands:run", "run an image as a VM",
        "example: architect run oci:./web --publish 8080:80 --env MODE=fast -- /bin/serve --port 80",
        usage="architect run IMAGE [options] [-- COMMAND…]",
    )  # fmt: skip
    run.add_argument("image", metavar="IMAGE", help="oci:DIR[:TAG], docker-archive:FILE, or a registry reference")
    run.add_argument("--name", default="", help="its name (made from the image's)")
    run.add_argument("--cpus", type=_count, default=1, metavar="N", help="virtual CPUs (1)")
    run.add_argument("--memory", "-m", type=_size("--memory"), default="256M", metavar="SIZE", help="RAM, for example 512M (256M)")
    run.add_argument("--disk", type=_size("--disk"), default="8G", metavar="SIZE", help="disk, for example 4G (8G)")
    run.add_argument(
        "--publish", "-p", action="append", default=[], metavar="PUBLIC:GUEST[/udp]", help="make a port reachable; again for more"
    )
    run.add_argument("--env", "-e", action="append", default=[], metavar="K=V", help="set a variable; again for more")
    run.add_argument("--host", default="", help="run it there (where most memory is free)")
    run.add_argument(
        "--fsync",
        choices=("epoch", "host"),
        default="epoch",
        help="epoch: the guest's fsync survives QEMU and the agent at once, and does not wait for the host's disk; "
        "host: it waits for that disk, too, which is slower (epoch)",
    )
    run.set_defaults(takes_words=True)
    stop = _vm_command(commands, shared, "stop", "vm_commands:stop", "stop a VM; its log and exit code stay")
    stop.add_argument("--grace", type=_seconds, default=10.0, metavar="SECONDS", help="how long it may take to end by itself (10)")
    remove = _vm_command(commands, shared, "rm", "vm_commands:remove", "remove a VM that is over, and all it has")
    remove.add_argument("--force", "-f", action="store_true", help="also if it runs")
    migrate = _vm_command(commands, shared, "migrate", "vm_commands:migrate", "move a VM live to another host")
    migrate.add_argument("--to", type=_name, required=True, metavar="HOST", help="where to")
    migrate.add_argument(
        "--mode",
        choices=("auto", "precopy", "postcopy"),
        default="auto",
        help="copy before the switch, after it, or as time allows (auto)",
    )
    migrate.add_argument(
        "--bandwidth",
        type=_bandwidth,
        metavar="SIZE",
        help="what it may send per second, 1M to 1T, or none (the host's default); a deadline that needs more lifts it",
    )
    migrate.add_argument(
        "--compression",
        choices=("auto", "off", "zstd"),
        default="auto",
        help="compress what is copied: where it makes the move quicker, never, or always (auto)",
    )
    migrate.add_argument("--verify", action="store_true", help="compare the memory of both ends whole; not with --mode postcopy")
    execute = _vm_command(
        commands, shared, "exec", "exec_command:execute", "run a command in a VM; exits with its exit code",
        "example: architect exec -it web -- sh", usage="architect exec [-it] VM -- COMMAND…",
    )  # fmt: skip
    execute.add_argument("-i", dest="interactive", action="store_true", help="pass our input on")
    execute.add_argument("-t", dest="tty", action="store_true", help="give it a terminal")
    execute.add_argument("--env", "-e", action="append", default=[], metavar="K=V", help="set a variable; again for more")
    execute.set_defaults(takes_words=True)


def _reading_commands(commands: Any, shared: _Parser) -> None:
    _command(commands, shared, "ps", "vm_commands:list_vms", "list the VMs")
    _vm_command(commands, shared, "inspect", "vm_commands:inspect", "show everything about a VM")
    logs = _vm_command(commands, shared, "logs", "vm_commands:logs", "print a VM's output")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it comes, over moves, until the VM is over")
    waterfall = _command(
        commands, shared, "waterfall", "waterfall_command:waterfall", "draw how a move spent its time, as SVG",
        "example: architect waterfall web web.svg",
    )  # fmt: skip
    waterfall.add_argument("move", metavar="MOVE", help="a VM's name, for its last move; or a move's id")
    waterfall.add_argument("file", metavar="FILE", nargs="?", help="where to (VM-MOVE.svg)")
    events = _command(commands, shared, "events", "host_commands:events", "print what happened, one line each")
    events.add_argument("-f", "--follow", action="store_true", help="go on as it comes")


def _group(commands: Any, shared: _Parser, name: str, what: str) -> Any:
    parser = commands.add_parser(name, help=what, description=what, parents=[shared])
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)


def _command(commands: Any, shared: _Parser, name: str, function: str, what: str, epilog: str = "", **options: Any) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=what, description=what, epilog=epilog, parents=[shared], **options)
    parser.set_defaults(command=function)
    return parser


def _vm_command(commands: Any, shared: _Parser, name: str, function: str, what: str, epilog: str = "", **options: Any) -> _Parser:
    parser = _command(commands, shared, name, function, what, epilog, **options)
    parser.add_argument("vm", metavar="VM", help="its name or id")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name one")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= NOTICE_S_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds in 0..{NOTICE_S_MAX:.0f}")
    return value


def _bandwidth(text: str) -> int:
    """Bytes per second; 0 is no limit."""
    if text == "none":
        return 0
    try:
        rate_bytes_s = parse_size(text.removesuffix("/s"))
    except UsageError:
        rate_bytes_s = -1
    return check_bandwidth(rate_bytes_s, repr(text))


def _size(option: str) -> Callable[[str], int]:
    return lambda text: parse_size(text, option)
