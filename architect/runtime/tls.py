"""TLS between our processes: TLS 1.3, verified both ways by the fabric's CA (`runtime.certificates` makes it).

A certificate's common name says who holds it: `control`, `edge:NAME`, `agent:HOST`. Names are not looked up in DNS; the client
checks the CA and then, with `expect_name`, the common name (the SAN repeats it for OpenSSL's own check).
"""

from __future__ import annotations

import ssl
from pathlib import Path


def san_name(common_name: str) -> str:
    """The DNS form of a common name: `agent:aws-1` is `aws-1.agent.architect.internal`; give it as `server_name` to connect."""
    role, _, name = common_name.partition(":")
    return ".".join(part for part in (name, role, "architect.internal") if part)


def server_context(folder: Path) -> ssl.SSLContext:
    """A server's side: TLS 1.3 only, clients must show a certificate of our CA. `folder` is as `make_certificate` left it."""
    return _context(ssl.PROTOCOL_TLS_SERVER, folder)


def client_context(folder: Path) -> ssl.SSLContext:
    """A client's side: TLS 1.3 only; pass `server_hostname=san_name(common_name)` so that the name is checked."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, folder)


def _context(protocol: int, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "cert.pem", folder / "cert.key")
    context.load_verify_locations(folder / "ca.pem")
    return context
