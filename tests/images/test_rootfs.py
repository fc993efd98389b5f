"""Mount points inside an image's own tree, and times that repeat."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from architect.errors import InvalidImageError
from architect.images.rootfs import IMAGE_EPOCH_S, TreeSize, add_mount_points, settle_times


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_missing_mount_points_and_the_working_directory_are_made(tmp_path: Path) -> None:
    add_mount_points(tmp_path, "/srv/app/x", "image x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev", "etc", "proc", "run", "srv", "sys", "tmp"]
    assert mode(tmp_path / "tmp") == 0o1777 and (tmp_path / "srv/app/x").is_dir()


def test_what_the_image_has_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir(mode=0o700)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").write_text("mine")
    add_mount_points(tmp_path, "/", "image x")
    assert mode(tmp_path / "tmp") == 0o700 and (tmp_path / "etc" / "hosts").read_text() == "mine"


def test_links_are_followed_inside_the_image_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "run").symlink_to("/var/run")
    (root / "work").symlink_to("../../../../outside")
    add_mount_points(root, "/work/here", "image x")
    assert (root / "var" / "run").is_dir() and (root / "outside" / "here").is_dir()
    assert list(outside.iterdir()) == []


def test_a_file_in_the_place_of_a_mount_point_is_refused(tmp_path: Path) -> None:
    (tmp_path / "proc").write_text("x")
    with pytest.raises(InvalidImageError, match="/proc is not a directory"):
        add_mount_points(tmp_path, "/", "image x")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(InvalidImageError, match="link to itself"):
        add_mount_points(tmp_path, "/", "image x")


def test_times_repeat_and_sizes_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_bytes(b"x" * 5000)
    os.link(tmp_path / "d" / "old", tmp_path / "d" / "second")
    (tmp_path / "link").symlink_to("nowhere")
    os.utime(tmp_path / "d" / "old", (1, 1000))
    size = settle_times(tmp_path, 2000.0)
    # Whole blocks: a directory of tmpfs (Debian 13 and later have /tmp there) has a size of some bytes.
    directories = sum(-(-path.stat().st_size // 4096) * 4096 for path in (tmp_path, tmp_path / "d"))
    assert size == TreeSize(content_bytes=8192 + 4096 + directories, inodes=4)
    times = {path.name: path.lstat().st_mtime for path in (tmp_path / "d", tmp_path / "d" / "old", tmp_path / "link")}
    assert times == {"d": IMAGE_EPOCH_S, "old": 1000, "link": IMAGE_EPOCH_S}
    assert (tmp_path / "d" / "old").stat().st_atime == 1000
