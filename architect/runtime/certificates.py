"""The fabric's certificates: a CA made at `architect up`, and one certificate a process, for `runtime.tls`.

Apart from `tls`, because every process uses those and only who brings a fabric up makes them: the library is a tenth of a second.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from architect.runtime.tls import san_name
from architect.runtime.whole_file import write_whole

LIFETIME = datetime.timedelta(days=825)


def make_ca(folder: Path) -> None:
    """Make `ca.pem` and `ca.key` in `folder` unless they exist; the key is readable by its owner only. Idempotent."""
    if (folder / "ca.key").exists() and (folder / "ca.pem").exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "architect fabric CA")])
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _key_pem(key))
    _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def make_certificate(ca_folder: Path, folder: Path, common_name: str) -> None:
    """Make `cert.pem`, `cert.key` and a copy of `ca.pem` in `folder`, signed by the CA, unless they exist. Idempotent."""
    if (folder / "cert.key").exists() and (folder / "cert.pem").exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca_key = serialization.load_pem_private_key((ca_folder / "ca.key").read_bytes(), None)
    ca_certificate = x509.load_pem_x509_certificate((ca_folder / "ca.pem").read_bytes())
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        _builder(name, ca_certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(san_name(common_name))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    _write(folder / "ca.pem", (ca_folder / "ca.pem").read_bytes())
    _write(folder / "cert.key", _key_pem(key))
    _write(folder / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, is_flushed=True)  # made once: one that a crash has emptied would be taken for the certificate
