"""Certificates of the sandbox: what they say, who signed them, who may read them."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kaito.clock import SystemClock
from kaito.sandbox.pki import Authority, write_private


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", now=SystemClock().now())


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_client_certificate_names_user_and_groups(authority: Authority) -> None:
    pair = authority.issue_client("kubernetes-admin", groups=["system:masters"])
    subject = read(pair.certificate).subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "kubernetes-admin"
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:masters"


def test_every_certificate_is_signed_by_the_one_authority(authority: Authority) -> None:
    ca = read(authority.ca.certificate)
    for pair in (authority.issue_client("a"), authority.issue_server("b", hosts=["localhost"])):
        read(pair.certificate).verify_directly_issued_by(ca)


def test_a_serving_certificate_is_good_for_its_names_and_for_serving_only(
    authority: Authority,
) -> None:
    certificate = read(authority.issue_server("api", hosts=["127.0.0.1", "localhost"]).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_openssl_accepts_chain_and_key(authority: Authority) -> None:
    pair = authority.issue_client("system:kube-scheduler")
    context = ssl.create_default_context(cafile=str(authority.ca.certificate))
    context.load_cert_chain(pair.certificate, pair.key)


def test_the_signing_key_matches_its_public_half(authority: Authority) -> None:
    pair = authority.signing_key("service-accounts")
    private = load_pem_private_key(pair.key.read_bytes(), None)
    assert private.public_key() == load_pem_public_key(pair.certificate.read_bytes())


def test_only_the_owner_can_read_what_is_written(authority: Authority, tmp_path: Path) -> None:
    authority.issue_client("a")
    authority.signing_key("b")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "pki").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "pki").stat().st_mode & 0o777 == 0o700


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    write_private(tmp_path / "x", b"long content")
    write_private(tmp_path / "x", b"short")
    assert (tmp_path / "x").read_bytes() == b"short"
