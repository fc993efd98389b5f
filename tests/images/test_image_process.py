"""docker's rules for arguments, environment and stop signals."""

from __future__ import annotations

import msgspec
import pytest

from architect.errors import InvalidImageError, UsageError
from architect.images.image_process import ImageProcess, merge_environment, process_config, stop_signal_name

IMAGE = ImageProcess(("/entry",), ("a", "b"), ("PATH=/bin", "X=1"), "/srv", 1000, 1001, (5,), "SIGQUIT")


def test_arguments_replace_the_cmd_and_keep_the_entrypoint() -> None:
    assert process_config(IMAGE, ("c",), (), "image x").args == ("/entry", "c")
    assert process_config(IMAGE, (), (), "image x").args == ("/entry", "a", "b")


def test_the_rest_of_the_process_is_the_images() -> None:
    process = process_config(IMAGE, (), ("X=2", "Y=a=b"), "image x")
    assert process.env == ("PATH=/bin", "X=2", "Y=a=b")
    assert (process.cwd, process.uid, process.gid, process.groups, process.stop_signal) == ("/srv", 1000, 1001, (5,), "SIGQUIT")


def test_an_image_without_a_command_needs_one() -> None:
    empty = msgspec.structs.replace(IMAGE, entrypoint=(), cmd=())
    with pytest.raises(InvalidImageError, match=r"no entrypoint and no cmd.*-- COMMAND"):
        process_config(empty, (), (), "image x")
    assert process_config(empty, ("sh",), (), "image x").args == ("sh",)


@pytest.mark.parametrize("entry", ["X", "=1", "", "X=\0"])
def test_an_environment_entry_is_a_name_and_a_value(entry: str) -> None:
    with pytest.raises(UsageError, match="not K=V"):
        merge_environment((), (entry,))


def test_the_last_of_equal_names_wins_at_the_place_of_the_first() -> None:
    assert merge_environment(("A=1", "B=2", "A=3"), ("B=4",)) == ("A=3", "B=4")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (None, "SIGTERM"),
        ("", "SIGTERM"),
        ("quit", "SIGQUIT"),
        ("SIGUSR1", "SIGUSR1"),
        ("9", "SIGKILL"),
        ("SIGRTMIN+3", "SIGRTMIN+3"),
    ],
)
def test_a_stop_signal_is_a_name_or_a_number(text: str | None, name: str) -> None:
    assert stop_signal_name(text, "image x") == name


@pytest.mark.parametrize("text", ["SIGNOPE", "0", "999", "SIGRTMIN+", "1.5"])
def test_a_stop_signal_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InvalidImageError, match="stop signal"):
        stop_signal_name(text, "image x")
