"""Commands of the local provider: up, down, host add, local preempt, local kill. Its client is imported only when one runs."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from architect.cli.output import Output
from architect.errors import NotFoundError, UnavailableError

ResultT = TypeVar("ResultT")


def up(options: argparse.Namespace) -> int:
    """`architect up`."""
    output = Output(as_json=options.json)
    _provider().check_wish(options.hosts, options.state_dir)
    output.progress("preparing the guest's kernel")
    _run(_prepare_guest_files())
    fabric = _run(_provider().up(options.hosts, options.state_dir, output.progress))
    if output.as_json:
        output.document(fabric)
    else:
        output.line(f"fabric in {fabric['state_dir']}")
        output.line(f"  hosts    {', '.join(fabric['hosts'])}")
        output.line(f"  edge     {', '.join(fabric['edge']['addresses'])}")
        output.line(f"  outside  {fabric['outside']['address']}")
    return 0


def down(options: argparse.Namespace) -> int:
    """`architect down`."""
    output = Output(as_json=options.json)
    return _tell(output, _run(_provider().down(options.state_dir, output.progress)), lambda _: "the fabric is gone")


def add_host(options: argparse.Namespace) -> int:
    """`architect host add`."""
    host = _run(_provider().add_host(options.state_dir, options.provider, options.name))
    return _tell(
        Output(as_json=options.json), host, lambda told: f"{told['name']} {'added' if told['is_new'] else 'is there already'}"
    )


def preempt(options: argparse.Namespace) -> int:
    """`architect local preempt`."""
    told = _run(_provider().preempt(options.state_dir, options.host, options.notice))
    return _tell(Output(as_json=options.json), told, lambda _: f"{options.host} has its notice")


def kill(options: argparse.Namespace) -> int:
    """`architect local kill`."""
    told = _run(_provider().kill(options.state_dir, options.host))
    return _tell(Output(as_json=options.json), told, lambda _: f"{options.host} is destroyed")


def remove_host(state_dir: Path, host: str) -> bool:
    """Destroy a local host; False if there is none of that name, or no local fabric."""
    try:
        _run(_provider().remove_host(state_dir, host))
    except (NotFoundError, UnavailableError):
        return False
    return True


def _run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    import asyncio

    return asyncio.run(work)


def _provider() -> types.ModuleType:
    from architect.clouds.local import client

    return client


def _tell(output: Output, document: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> int:
    if output.as_json:
        output.document(document)
    else:
        output.line(text(document))
    return 0


async def _prepare_guest_files() -> None:
    from architect.agent.guest_files import prepare_guest_files
    from architect.clouds.local.layout import machine_cache

    await prepare_guest_files(machine_cache())
