"""Clouds: notices that a host goes, and the local provider that plays three clouds on one machine (`clouds.local`)."""

from architect.clouds.instance_source import InstanceSource
from architect.clouds.notice_source import NoticeHealth, NoticeSource
from architect.clouds.providers import open_notice_source

__all__ = ["InstanceSource", "NoticeHealth", "NoticeSource", "open_notice_source"]
