"""OCI image to base disk: a read-only ext4 file named by its content, and the process that a VM of the image runs."""

from architect.images.base_disk import PreparedImage, prepare_image
from architect.images.base_store import BaseStore, WrongBaseError
from architect.images.image_process import merge_environment
from architect.images.reference import ImageReference, absolute_reference, parse_reference

__all__ = [
    "BaseStore",
    "ImageReference",
    "PreparedImage",
    "WrongBaseError",
    "absolute_reference",
    "merge_environment",
    "parse_reference",
    "prepare_image",
]
