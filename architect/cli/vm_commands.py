"""Commands about VMs: run, ps, inspect, logs, stop, rm, migrate."""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from architect.cli.client import Client, segment
from architect.cli.going_on import Lasting, followed, known
from architect.cli.image_word import absolute_image
from architect.cli.output import VM_HEAD, Output, endpoint_text, fields, pause_text, vm_row
from architect.cli.patience import asked_again, resumed
from architect.errors import ArchitectError, HandoverError, LostError, NotFoundError, OutcomeUnknownError
from architect.model.handover_state import BEFORE_COMMIT
from architect.model.sizes import OUTPUT_BYTES_MAX, format_size

POLL_S = 0.3
LOSS_LOOKS = 3


def run(options: argparse.Namespace) -> int:
    """`architect run`."""
    client, output = Client(options.state_dir), Output(as_json=options.json)
    from architect.model.endpoints import parse_publish

    publish = [parse_publish(text) for text in options.publish]
    body = {
        "image": absolute_image(options.image),
        "name": options.name,
        "cpus": options.cpus,
        "memory_bytes": options.memory,
        "disk_bytes": options.disk,
        "publish": [
            {"public_port": port.public_port, "guest_port": port.guest_port, "protocol": port.protocol.value} for port in publish
        ],
        "env": options.env,
        "args": options.words,
        "host": options.host,
        "host_fsync": options.fsync == "host",
    }
    thing = f"vm {options.name}" if options.name else f"run of {options.image}"
    goes_on = "vm {name} is made all the same; see `architect ps`"
    vm = followed(client, output, Lasting("/v1/vms", body, thing, "vm", _wait_created, goes_on))
    if output.as_json:
        output.document(vm)
    else:
        output.line(f"{vm['name']}  {vm['id']}  {vm['state']} on {vm['host']}")
        for endpoint in vm["endpoints"]:
            output.line(f"  {endpoint_text(endpoint)}")
    return 0


def _wait_created(client: Client, identity: str, thing: str) -> dict[str, Any]:
    while True:
        try:
            vm = known(client, f"/v1/vms/{identity}", thing, "`architect ps`")
        except NotFoundError as error:
            raise _why_not_created(client, identity, thing) from error
        if vm["state"] != "creating":
            return vm
        time.sleep(POLL_S)


def _why_not_created(client: Client, identity: str, thing: str) -> ArchitectError:
    """The control plane that has told the failure to nobody has written it down."""
    why, step = "", "see `architect events` for why"
    with contextlib.suppress(ArchitectError):
        for event in client.stream("GET", "/v1/events", after=0, follow=False):
            if event.get("vm_id") == identity and event["kind"] == "vm-creation-failed":
                why, _, step = event["message"].rpartition("; ")
    return OutcomeUnknownError(thing, f"its creation failed: {why}" if why else "its creation failed", step)


def list_vms(options: argparse.Namespace) -> int:
    """`architect ps`."""
    output = Output(as_json=options.json)
    vms = Client(options.state_dir).get("/v1/vms")
    if output.as_json:
        output.document(vms)
    else:
        output.table(VM_HEAD, [vm_row(vm) for vm in vms])
    return 0


def inspect(options: argparse.Namespace) -> int:
    """`architect inspect`."""
    return _show(options, Client(options.state_dir).get(f"/v1/vms/{segment('vm', options.vm)}"))


def stop(options: argparse.Namespace) -> int:
    """`architect stop`."""
    client = Client(options.state_dir)
    _say_what_is_waited_for(client, options)
    vm = client.post(f"/v1/vms/{segment('vm', options.vm)}/stop", {"grace_s": options.grace})
    return _show(options, vm, f"{vm['name']} {vm['state']}")


def remove(options: argparse.Namespace) -> int:
    """`architect rm`."""
    client = Client(options.state_dir)
    if options.force:
        _say_what_is_waited_for(client, options)
    vm = client.delete(f"/v1/vms/{segment('vm', options.vm)}", force=options.force)
    return _show(options, vm, f"{vm['name']} removed")


def _say_what_is_waited_for(client: Client, options: argparse.Namespace) -> None:
    """A VM that moves ends after its move, which is undone, or goes on where it is too late for that."""
    vm = client.get(f"/v1/vms/{segment('vm', options.vm)}")
    if vm["state"] != "migrating":
        return
    for move in client.get("/v1/migrations", of=vm["name"]):
        if not move["outcome"]:
            way = f"{vm['name']} is moving from {move['source']} to {move['target']}"
            is_over = move["state"] not in BEFORE_COMMIT
            what = f"{move['target']} has it already, so the move is waited for" if is_over else "the move is given up first"
            Output(as_json=options.json).progress(f"{way}: {what}")


def _show(options: argparse.Namespace, value: dict[str, Any], text: str = "") -> int:
    output = Output(as_json=options.json)
    if output.as_json:
        output.document(value)
    else:
        for line in [text] if text else fields(value):
            output.line(line)
    return 0


def logs(options: argparse.Namespace) -> int:
    """`architect logs`."""
    client, output = Client(options.state_dir), Output(as_json=options.json)
    path = f"/v1/vms/{segment('vm', options.vm)}/logs"
    first, reached = 0, 0

    def parts() -> Iterator[dict[str, Any]]:
        return client.stream("GET", path, offset=reached, follow=options.follow)

    gathered = bytearray()
    for part in resumed(parts) if options.follow else parts():
        if "result" in part:
            break
        data = base64.b64decode(part["data"])
        if part["offset"] > reached:
            dropped, kept = format_size(part["offset"] - reached), format_size(OUTPUT_BYTES_MAX // 2)
            output.note(
                f"{dropped} of what {options.vm} printed is gone here: its host keeps the newest output only, at least {kept}"
            )
            first = first if gathered else part["offset"]
        reached = part["offset"] + len(data)
        if not output.as_json:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif options.follow:
            output.document({"offset": part["offset"], "text": data.decode(errors="replace")})
        else:
            gathered += data
    if output.as_json and not options.follow:
        output.document({"offset": first, "text": gathered.decode(errors="replace")})
    return 0


def migrate(options: argparse.Namespace) -> int:
    """`architect migrate`. A move that failed is printed like one that went well, and is an error."""
    client, output = Client(options.state_dir), Output(as_json=options.json)
    body = {"to": options.to, "mode": options.mode, "verify": options.verify, "bandwidth_bytes_s": options.bandwidth}
    body["compression"] = options.compression
    path = f"/v1/vms/{segment('vm', options.vm)}/migrate"
    goes_on = "the move {id} goes on; `architect events -f` shows it"
    move = followed(client, output, Lasting(path, body, f"move of {options.vm}", "migration", _wait_moved, goes_on))
    if output.as_json:
        output.document(move)
    if move["outcome"] != "done":
        raise _failure(client, move)
    if options.verify and not move.get("verified"):
        output.note("the memory of both ends was not compared whole: a move that becomes a post-copy proves its root instead")
    if not output.as_json:
        output.line(
            f"{move['vm']} moved {move['source']} to {move['target']} in {move['total_s']:.2f} s: "
            f"{pause_text(move)}, {move['rounds']} rounds, {format_size(move['bytes_sent'])}"
            + (f" ({move['compression_ratio']:g} times that before compression)" if move.get("bytes_saved") else "")
            + (", memory verified" if move.get("verified") else "")
            + ("" if move["is_complete"] else " (as its source told before it fell silent)")
        )
    return 0


def _failure(client: Client, move: dict[str, Any]) -> ArchitectError:
    """What a move that is not done means for the VM: it runs on, or is lost. Its host tells that a moment after the move."""
    name, reason = move["vm"], move["reason"] or "failed"
    for _ in range(LOSS_LOOKS):
        try:
            vm: dict[str, Any] = asked_again(lambda: client.get(f"/v1/vms/{segment('vm', name)}"))
        except NotFoundError:
            break
        if vm["state"] == "lost":
            return LostError(f"vm {name}", vm["reason"] or reason, f"`architect rm {name}` forgets it")
        time.sleep(POLL_S)
    return HandoverError(f"move of {name}", reason, f"see `architect inspect {name}` and try again")


def _wait_moved(client: Client, identity: str, thing: str) -> dict[str, Any]:
    while True:
        found = known(client, f"/v1/migrations/{identity}", thing, "`architect events`")
        if found["outcome"]:
            return found
        time.sleep(POLL_S)
