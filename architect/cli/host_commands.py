"""Commands about hosts and events: host ls, drain, rm; events."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from architect.cli.client import Client, StreamBrokenError, segment
from architect.cli.output import HOST_HEAD, Output, event_line, host_row
from architect.cli.patience import resumed
from architect.errors import ConflictError, NotFoundError, OutcomeUnknownError


def list_hosts(options: argparse.Namespace) -> int:
    """`architect host ls`."""
    output = Output(as_json=options.json)
    hosts = Client(options.state_dir).get("/v1/hosts")
    if output.as_json:
        output.document(hosts)
    else:
        output.table(HOST_HEAD, [host_row(host) for host in hosts])
    return 0


def drain(options: argparse.Namespace) -> int:
    """`architect host drain`."""
    client, output = Client(options.state_dir), Output(as_json=options.json)
    path = f"/v1/hosts/{segment('host', options.host)}"
    if options.off:
        host = client.post(f"{path}/open", {})
        return _tell(output, host, f"{host['name']} takes vms again")
    try:
        for item in client.stream("POST", f"{path}/drain", {}):
            if "result" in item:
                moved = ", ".join(item["result"]["moved"])
                return _tell(output, item["result"], f"{options.host} is empty" + (f": moved {moved}" if moved else ""))
            output.progress(item["progress"])
    except StreamBrokenError as error:
        step = f"see `architect host ls`: if {options.host} is draining, it is emptied on, else ask again"
        raise OutcomeUnknownError(f"host {options.host}", f"its drain is lost sight of: {error.thing} went away", step) from error
    return 0


def remove(options: argparse.Namespace) -> int:
    """`architect host rm`: out of the local provider, if it is one of its hosts, and out of the control plane."""
    client, output = Client(options.state_dir), Output(as_json=options.json)
    path = f"/v1/hosts/{segment('host', options.host)}"
    known = next((host for host in client.get("/v1/hosts") if host["name"] == options.host), None)
    if known is not None and known["vms"] and not options.force:
        raise ConflictError(
            f"host {options.host}",
            f"has {known['vms']} vm{'s' if known['vms'] != 1 else ''}",
            f"`architect host drain {options.host}` first, or use --force to lose them",
        )
    was_local = _remove_local(options)
    if known is None and not was_local:
        raise NotFoundError(f"host {options.host}", "does not exist", "see `architect host ls` for those that do")
    host = client.delete(path, force=options.force) if known is not None else {"name": options.host}
    return _tell(output, host, f"{options.host} removed")


def _remove_local(options: argparse.Namespace) -> bool:
    """Whether it was a local host; its machine is gone then."""
    from architect.cli.local_commands import remove_host

    return remove_host(options.state_dir, options.host)


def _tell(output: Output, document: dict[str, Any], text: str) -> int:
    if output.as_json:
        output.document(document)
    else:
        output.line(text)
    return 0


def events(options: argparse.Namespace) -> int:
    """`architect events`."""
    client, output = Client(options.state_dir), Output(as_json=options.json)
    reached = 0

    def stream() -> Iterator[dict[str, Any]]:
        return client.stream("GET", "/v1/events", after=reached, follow=options.follow)

    for event in resumed(stream) if options.follow else stream():
        if "result" in event:
            break
        reached = event["sequence"]
        if output.as_json:
            output.document(event)
        else:
            output.line(event_line(event))
    return 0
