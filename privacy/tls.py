"""A throw-away authority and its certificates, for tests and for parties on one machine.

In production the operator brings certificates of their own: whoever makes these could make more,
so the authority's key is never written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..core.files import write_atomically

VALID_DAYS = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
# A clock that is a little behind must not find the certificate not yet valid.
_SKEW = timedelta(hours=1)
_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def make_certificates(
    folder: Path, names: Sequence[str], hosts: Sequence[str] = (), days: int = VALID_DAYS
) -> None:
    """Write `ca.pem`, and `NAME.pem` and `NAME.key` for each name.

    A certificate holds for its name, for localhost, for 127.0.0.1 and for all `hosts`, at either
    end of a connection; its common name is the name.

    Args:
        folder: made if missing; files of these names are written anew.
        names: as in a host name.
        hosts: further host names and IP addresses.
        days: for which authority and certificates are valid.

    Raises:
        ValueError: a name is none of a host.
    """
    for name in names:
        if not _NAME.fullmatch(name) or name == "ca":
            raise ValueError(f"a name must be one of a host, and not 'ca'; got {name!r}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _named("perennial throw-away authority")
    write_atomically(
        folder / "ca.pem", _authority(issuer, authority, days).public_bytes(Encoding.PEM), 0o600
    )
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        known = [name, "localhost", "127.0.0.1", *hosts]
        certificate = _certificate(known, key.public_key(), issuer, authority, days)
        write_atomically(folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM), 0o600)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(folder / f"{name}.key", plain, 0o600)


def _authority(issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    uses = _key_usage(signs_certificates=True)
    return (
        _dated(issuer, issuer, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(uses, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    hosts: Sequence[str],
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    authority: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    known = [_host(host) for host in dict.fromkeys(hosts)]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        _dated(_named(hosts[0]), issuer, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_USES), critical=False)
        .add_extension(x509.SubjectAlternativeName(known), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority, hashes.SHA256())
    )


def _dated(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
