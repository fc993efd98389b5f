"""Clouds: notices that a host goes (`providers` opens a source), and the local provider that plays three clouds on one machine
(`clouds.local`)."""

from architect.clouds.instance_source import InstanceSource
from architect.clouds.notice_source import NoticeHealth, NoticeSource

__all__ = ["InstanceSource", "NoticeHealth", "NoticeSource"]
