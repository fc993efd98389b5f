"""Providers by name: which protocol an agent speaks to its metadata server. Clouds of others join here."""

from __future__ import annotations

from architect.clouds.aws.imds import ImdsReader
from architect.clouds.azure.scheduled_events import ScheduledEventsReader
from architect.clouds.gcp.metadata import MetadataReader
from architect.clouds.notice_source import NoticeReader, NoticeSource
from architect.clouds.notice_watcher import NoticeWatcher
from architect.errors import UsageError
from architect.runtime.clock import Clock


def open_notice_source(provider: str, metadata_url: str, instance: str, clock: Clock) -> NoticeSource:
    """The notices for this host.

    :param provider: aws, gcp or azure.
    :param metadata_url: where the metadata server answers, `http://169.254.169.254` on a real instance.
    :param instance: the instance's own name or id in that cloud.

    Raises:
        UsageError: nobody speaks that provider's protocol.
    """
    reader: NoticeReader
    match provider:
        case "aws":
            reader = ImdsReader(metadata_url, clock)
        case "gcp":
            reader = MetadataReader(metadata_url)
        case "azure":
            reader = ScheduledEventsReader(metadata_url, instance)
        case _:
            raise UsageError(f"provider {provider!r}", "is none of aws, gcp, azure", "give one of them in the configuration")
    return NoticeWatcher(reader, clock)
