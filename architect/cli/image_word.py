"""IMAGE as the command line hands it on: a local path made absolute, for those who open it elsewhere, and seen to be there.

What is in it is the host's to say, which unpacks it (`architect.images`). A path that leads nowhere would be refused there, too,
but only after a VM had been placed.
"""

from __future__ import annotations

import os

from architect.errors import InvalidImageError


def absolute_image(image: str) -> str:
    """The same image, its path as seen from everywhere.

    Raises:
        InvalidImageError: `oci:` of what is no directory, `docker-archive:` of what is no file.
    """
    scheme, _, rest = image.partition(":")
    if not rest or scheme not in ("oci", "docker-archive"):
        return image
    path, separator, name = rest.partition(":")  # a path may not contain a colon, as in skopeo
    path = os.path.abspath(path)
    is_there, kind = (os.path.isdir(path), "directory") if scheme == "oci" else (os.path.isfile(path), "file")
    if not is_there:
        raise InvalidImageError(f"image {image}", f"{path} is not a {kind} that exists", "check the path")
    return f"{scheme}:{path}{separator}{name}"
