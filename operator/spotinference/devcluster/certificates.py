"""Keys and certificates of an embedded control plane, made anew at each start.

Two authorities: one for etcd, so that nobody who may talk to the API server may talk to its
store, and one for the API server and its clients.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from spotinference.devcluster.state import write_private

VALID = timedelta(days=365)
CLOCK_SLACK = timedelta(minutes=5)
"""Certificates begin a little in the past: a stepped clock must not make them invalid."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority whose key never leaves this process."""

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._subject, self._subject, self._key.public_key())
        self._cert = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.crt"
        write_private(self.file, _pem(self._cert))

    def server(self, name: str, address: str, dns: tuple[str, ...] = ()) -> Pair:
        """For a listener at `address`; usable as a client too (etcd's peers are both)."""
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(address)),
            *(x509.DNSName(entry) for entry in dns),
        ]
        return self._issue(name, [], [x509.SubjectAlternativeName(names)])

    def client(self, file_name: str, user: str, groups: tuple[str, ...] = ()) -> Pair:
        """For the Kubernetes user `user` in `groups`."""
        subject = [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ]
        return self._issue(file_name, subject, [])

    def _issue(
        self,
        name: str,
        subject: list[x509.NameAttribute[str]],
        extensions: list[x509.SubjectAlternativeName],
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if extensions:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        attributes = subject or [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        builder = _builder(x509.Name(attributes), self._subject, key.public_key())
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        write_private(pair.cert, _pem(builder.sign(self._key, hashes.SHA256())))
        write_private(pair.key, private_pem(key))
        return pair


def signing_key(file: Path) -> None:
    """A key for ServiceAccount tokens; its public half is derived from the same file."""
    write_private(file, private_pem(ec.generate_private_key(ec.SECP256R1())))


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    # Not PKCS#8: kube-controller-manager reads "EC PRIVATE KEY" and both sides must agree.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def _pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + VALID)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
