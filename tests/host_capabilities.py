"""What a test of kind `host` needs of the machine, tried once a run; what is missing is named where tests are skipped."""

from __future__ import annotations

import functools
from collections.abc import Callable

from architect.clouds.local import preflight
from architect.errors import HostError

CHECKS: dict[str, Callable[[], None]] = {
    "root": preflight.check_root,
    "kernel": preflight.check_kernel,
    "namespaces": preflight.check_namespaces,
    "tun": preflight.check_tun,
    "userfaultfd": preflight.check_userfaultfd,
    "pagemap_scan": preflight.check_pagemap_scan,
    "bpf": preflight.check_bpf,
    "qemu": preflight.check_qemu,
}


@functools.cache
def missing(capability: str) -> str:
    """Why the machine lacks a capability; "" if it has it."""
    try:
        CHECKS[capability]()
    except HostError as error:
        return f"{error.thing} {error.cause}"
    return ""


def first_missing(capabilities: tuple[str, ...]) -> tuple[str, str]:
    """The first of these (none given: of all) that the machine lacks, and why; two empty texts if it has them all."""
    for capability in capabilities or tuple(CHECKS):
        if cause := missing(capability):
            return capability, cause
    return "", ""
