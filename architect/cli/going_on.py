"""Work that goes on without who asked for it: its progress is told, and a control plane that goes away meanwhile is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from architect.cli.client import Client, StreamBrokenError
from architect.cli.output import Output
from architect.cli.patience import PATIENCE_S, asked_again
from architect.errors import OutcomeUnknownError, UnavailableError

CONTROL_AWAY = f"the control plane does not answer; it is waited for, up to {PATIENCE_S:.0f} s"


class Lasting(NamedTuple):
    """A request for such work.

    `thing`: what it is about, as the user calls it, until its first line names the VM; `key`: under which its progress names it.
    `wait` gets the id that it has there and the thing, when the control plane went away; `goes_on` is for who leaves.
    """

    path: str
    body: dict[str, Any]
    thing: str
    key: str
    wait: Callable[[Client, str, str], dict[str, Any]]
    goes_on: str


def followed(client: Client, output: Output, request: Lasting) -> dict[str, Any]:
    """The result.

    Raises:
        ArchitectError: what the control plane reported.
        OutcomeUnknownError: the control plane went away, and either stays away or had not said yet that it takes the request.
    """
    identity = name = ""
    try:
        try:
            for item in client.stream("POST", request.path, request.body):
                if "result" in item:
                    result: dict[str, Any] = item["result"]
                    return result
                identity, name = item.get(request.key) or identity, item.get("name") or name
                output.progress(item["progress"])
        except StreamBrokenError as error:
            if not identity:
                cause = f"{error.thing} went away before it said whether it takes the request"
                raise OutcomeUnknownError(request.thing, cause, "see `architect ps`, and ask again if it has not") from error
        output.progress(CONTROL_AWAY)
        return request.wait(client, identity, f"vm {name}" if name else request.thing)
    except KeyboardInterrupt:
        if identity:
            output.note(request.goes_on.format(id=identity, name=name))
        raise


def known(client: Client, path: str, thing: str, see: str) -> dict[str, Any]:
    """The document at a path, asked for until the control plane is back.

    Raises:
        ArchitectError: what the control plane reported.
        OutcomeUnknownError: it stays away; `see` says what will tell once it is back.
    """
    try:
        found: dict[str, Any] = asked_again(lambda: client.get(path))
    except UnavailableError as error:
        cause = f"what came of it is not known: {error.thing} {error.cause}, and was waited for {PATIENCE_S:.0f} s"
        raise OutcomeUnknownError(thing, cause, f"{error.next_step}; then see {see}") from error
    return found
