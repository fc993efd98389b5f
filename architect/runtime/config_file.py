"""A long-running process's configuration in its file: JSON, readable by its owner only, whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from architect.errors import UsageError
from architect.model.config import AgentConfig, ControlConfig, EdgeConfig
from architect.runtime.whole_file import write_whole

ConfigT = TypeVar("ConfigT", ControlConfig, EdgeConfig, AgentConfig)
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ControlConfig, EdgeConfig, AgentConfig)
}


def read_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """The configuration in a JSON file.

    Raises:
        UsageError: the file cannot be read or is no such configuration; names the file and the field.
    """
    try:
        config: ConfigT = _DECODERS[kind].decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"configuration {path}", str(error), "mend the file, or let `architect up` write it anew") from error
    return config


def write_config(path: Path, config: ControlConfig | EdgeConfig | AgentConfig) -> None:
    """Write a configuration. It is not flushed: whoever starts the process writes it anew.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    write_whole(path, msgspec.json.format(msgspec.json.encode(config), indent=2))
