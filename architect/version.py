"""The version of this package; it is part of every Hello and of `architect --version`."""

VERSION = "0.1.0"
