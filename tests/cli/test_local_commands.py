"""`up` and `host add` from the command line, as far as no fabric is needed: what cannot be is said before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from architect.cli.main import main
from architect.clouds.local.layout import HOSTS_MAX
from architect.errors import HostError


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tells when the guest's kernel is prepared, which takes long the first time."""
    done: list[str] = []

    async def prepare(cache: Path) -> None:
        done.append(str(cache))

    monkeypatch.setattr("architect.agent.guest_files.prepare_guest_files", prepare)
    return done


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--hosts", str(HOSTS_MAX + 1)],
            f"architect: {HOSTS_MAX + 1} hosts: a local fabric has 0 to {HOSTS_MAX}; give --hosts 3\n",
        ),
        (["--state-dir", "FILE"], "architect: state folder FILE: FILE is not a folder; give another one with --state-dir\n"),
        (["--state-dir", "FILE/x"], "architect: state folder FILE/x: FILE is not a folder; give another one with --state-dir\n"),
    ],
)
def test_up_looks_at_its_words_before_it_prepares_anything(
    prepared: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["up", *(word.replace("FILE", str(file)) for word in words)]) == 2
    assert capsys.readouterr() == ("", line.replace("FILE", str(file)))
    assert prepared == []


def test_a_machine_that_lacks_something_says_so_first(
    prepared: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks() -> None:
        raise HostError("kernel", "is older than 6.7", "run a newer one")

    monkeypatch.setattr("architect.clouds.local.client.check_machine", lacks)
    assert main(["up", "--state-dir", str(tmp_path / "state")]) == 9
    assert "older than 6.7" in capsys.readouterr().err
    assert prepared == [] and not (tmp_path / "state").exists()


@pytest.mark.parametrize(("is_new", "text"), [(True, "aws-1 added\n"), (False, "aws-1 is there already\n")])
def test_a_host_that_was_there_is_not_called_added(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_new: bool, text: str
) -> None:
    async def add_host(state_dir: Path, provider: str, name: str | None) -> dict[str, Any]:
        return {"name": name, "provider": provider, "is_new": is_new}

    monkeypatch.setattr("architect.clouds.local.client.add_host", add_host)
    assert main(["host", "add", "--name", "aws-1", "--state-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == text
