"""The ownership protocol as a model: explored in full, and compared with what the simulation's engines do."""

from architect.testing.ownership.explorer import Finding, explore
from architect.testing.ownership.model import Bounds, Rules

__all__ = ["Bounds", "Finding", "Rules", "explore"]
