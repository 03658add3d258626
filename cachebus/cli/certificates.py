"""X.509 for a cluster without an authority of its own: makes one, and the certificates of its nodes.

Decides what such certificates say (RFC 5280): which names, for what use, how long. Files and options are `keygen`'s.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cachebus.errors import ConfigError

AUTHORITY_DAYS = 3650
"""Validity of an authority: changing it touches every node, issuing from it one."""
NODE_DAYS = 397
"""Validity of a node's certificate: a year and a month to replace it in."""
MIN_DAYS, MAX_DAYS = 1, 3650
"""What may be asked for instead."""
_BACKDATED = datetime.timedelta(hours=1)
"""How long before now validity begins, for nodes whose clocks are behind."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate's file."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key's file: PKCS #8, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def make_authority(name: str, now: datetime.datetime, *, days: int = AUTHORITY_DAYS) -> Issued:
    """Make an authority that signs nodes' certificates and no further authorities. `now` is in UTC."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _begun(subject, subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Issued(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Issued, name: str, now: datetime.datetime, *, days: int = NODE_DAYS) -> Issued:
    """Make the certificate of a node, for both ends of a connection: `name` is its only dNSName. `now` is in UTC."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters, and nobody looks at it.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = _begun(subject, authority.certificate.subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return Issued(builder.sign(authority.key, hashes.SHA256()), key)


def read_authority(certificate: Path, key: Path) -> Issued:
    """Read an authority that `make_authority` made. Raises `ConfigError` when the files are none."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{certificate} and {key}: are not a certificate and an unencrypted key in PEM") from None
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or found.public_key() != secret.public_key():
        raise ConfigError(f"{key}: is not the elliptic curve key of {certificate}")
    return Issued(found, secret)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    if not MIN_DAYS <= days <= MAX_DAYS:
        raise ValueError(f"days: from {MIN_DAYS} to {MAX_DAYS}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(secrets.randbits(159))  # RFC 5280 section 4.1.2.2: positive, and at most 20 octets
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
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
