"""Named network namespaces of this kernel: made, entered, told apart, deleted."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from architect.errors import HostError
from architect.runtime.namespaces import (
    create_namespace,
    current_namespace,
    delete_namespace,
    identify_namespace,
    namespace_names,
    namespace_path,
    run_in_namespace,
    temporary_namespace,
)
from tests.leftovers import find

pytestmark = pytest.mark.host("root", "namespaces")

NAME = f"arctest-{os.getpid()}-ns"


def test_a_namespace_exists_from_create_to_delete_and_both_may_be_repeated() -> None:
    before = current_namespace()
    path = create_namespace(NAME)
    identity = identify_namespace(path)
    assert identity is not None and identity != before
    assert create_namespace(NAME) == path and identify_namespace(path) == identity
    assert NAME in namespace_names("arctest-")
    assert current_namespace() == before
    delete_namespace(NAME)
    delete_namespace(NAME)
    assert identify_namespace(path) is None and NAME not in namespace_names("arctest-")


def test_code_runs_inside_and_what_it_opens_and_starts_stays_there() -> None:
    with temporary_namespace(NAME) as path:
        assert run_in_namespace(path, current_namespace) == identify_namespace(path)
        assert run_in_namespace(None, current_namespace) == current_namespace()
        names = run_in_namespace(path, lambda: [name for _, name in socket.if_nameindex()])
        assert names == ["lo"]
        started = run_in_namespace(path, lambda: subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, check=True))
        identity = identify_namespace(path)
        assert identity is not None and f"[{identity.inode}]" in started.stdout.decode()


def test_an_error_inside_is_raised_outside() -> None:
    def fail() -> None:
        raise ValueError("inside")

    with temporary_namespace(NAME) as path:
        with pytest.raises(ValueError, match="inside"):
            run_in_namespace(path, fail)


def test_a_name_that_names_nothing_cannot_be_entered() -> None:
    with pytest.raises(HostError, match=NAME):
        run_in_namespace(namespace_path(NAME), current_namespace)
    path = namespace_path(NAME)
    path.touch()
    try:
        assert identify_namespace(path) is None
        with pytest.raises(HostError, match=NAME):
            run_in_namespace(path, current_namespace)
        assert identify_namespace(create_namespace(NAME)) is not None
    finally:
        delete_namespace(NAME)


def test_the_guard_names_a_namespace_that_is_left() -> None:
    with temporary_namespace(NAME):
        assert f"network namespace {NAME}" in find()
    assert f"network namespace {NAME}" not in find()
