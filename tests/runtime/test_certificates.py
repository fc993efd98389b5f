"""A fabric's keys are their owner's only, made once, and each fits its certificate, whenever their making was cut off."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from architect.runtime.certificates import make_ca, make_certificate
from tests.no_room import no_file_longer_than


def made(tmp_path: Path) -> Path:
    make_ca(tmp_path / "ca")
    make_certificate(tmp_path / "ca", tmp_path / "tls", "agent:alpha")
    return tmp_path / "tls"


def test_keys_are_their_owners_only_and_fit_their_certificates(tmp_path: Path) -> None:
    tls = made(tmp_path)
    for path in (*tls.iterdir(), *(tmp_path / "ca").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    context.load_cert_chain(tls / "cert.pem", tls / "cert.key")  # raises unless they fit


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made(tmp_path).iterdir()}
    assert {path: path.read_bytes() for path in made(tmp_path).iterdir()} == before


def test_a_ca_whose_making_a_full_disk_cut_off_is_made_anew(tmp_path: Path) -> None:
    make_ca(tmp_path / "ca")
    key_bytes = (tmp_path / "ca" / "ca.key").stat().st_size
    with no_file_longer_than(key_bytes + 10), pytest.raises(OSError, match="too large"):
        make_ca(tmp_path / "cut-off")  # its key has come to be, its certificate, which is longer, has not
    assert [path.name for path in (tmp_path / "cut-off").iterdir()] == ["ca.key"]
    make_ca(tmp_path / "cut-off")
    ssl.create_default_context().load_cert_chain(tmp_path / "cut-off" / "ca.pem", tmp_path / "cut-off" / "ca.key")
