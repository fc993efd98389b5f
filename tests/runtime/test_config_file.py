"""A configuration is read as it was written, by its owner only; one that cannot be believed is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from architect.errors import UsageError
from architect.model.config import ControlConfig, EdgeConfig
from architect.runtime.config_file import read_config, write_config

CONFIG = EdgeConfig("00beef", "edge-1", "eth0", "192.0.2.10", ("203.0.113.10",), 7000, "/state", "/tls")


def test_a_configuration_is_read_as_it_was_written_and_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(path, CONFIG)
    assert read_config(path, EdgeConfig) == CONFIG
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_such_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(UsageError, match=r"config\.json"):
        read_config(path, EdgeConfig)
    write_config(path, CONFIG)
    with pytest.raises(UsageError, match="unknown field"):
        read_config(path, ControlConfig)
