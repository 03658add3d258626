"""Certificates of links between nodes: what is read, when it is read again, and whose certificate one is."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

import pytest

from cachebus.cli import main
from cachebus.errors import ConfigError, TransportError
from cachebus.tls import CertificateFiles, host_name
from tests.certificates import Authority

NAMES = ["ams-1.example", "fra-1.example"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a TLS connection in memory, once each has heard the other out."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    waiting = list(ends)
    for _ in range(10):
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting
    return ends


class TestContexts:
    def test_both_ends_speak_tls_1_3_and_show_a_certificate(self, authority: Authority) -> None:
        one, two = (authority.files(name, NAMES) for name in NAMES)
        client, server = handshake(one.client_context(), two.server_context())
        assert client.version() == server.version() == "TLSv1.3"
        assert one.identify(client.getpeercert(binary_form=True)) == "fra-1.example"
        assert two.identify(server.getpeercert(binary_form=True)) == "ams-1.example"

    def test_tls_1_2_is_refused_on_both_sides(self, authority: Authority) -> None:
        files = authority.files(NAMES[0], NAMES)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.maximum_version = False, ssl.TLSVersion.TLSv1_2
        old.load_verify_locations(authority.path)
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            handshake(old, files.server_context())
        assert files.client_context().minimum_version is ssl.TLSVersion.TLSv1_3

    def test_no_certificate_and_one_of_another_authority_are_refused(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        files = authority.files(NAMES[0], NAMES)
        without = ssl.create_default_context(cafile=authority.path)
        without.check_hostname = False
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            handshake(without, files.server_context())
        (tmp_path / "other").mkdir()
        other = Authority(tmp_path / "other", "other authority").files(NAMES[1], NAMES)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(files.client_context(), other.server_context())

    def test_an_expired_certificate_is_refused(self, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
        cert, key = authority.write(NAMES[1], days_ago=60, days=30)
        expired = CertificateFiles(ca=authority.path, cert=cert, key=key, peers=NAMES)
        assert "has expired" in caplog.text
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            handshake(authority.files(NAMES[0], NAMES).client_context(), expired.server_context())

    def test_nothing_is_resumed(self, authority: Authority) -> None:
        one, two = (authority.files(name, NAMES) for name in NAMES)
        client, server = handshake(one.client_context(), two.server_context())
        server.write(b"x")
        assert client.read() == b"x"
        assert client.session is None or not client.session.has_ticket
        assert two.server_context().num_tickets == 0

    def test_for_brokers_the_host_counts(self, authority: Authority) -> None:
        context = CertificateFiles(ca=authority.path).broker_context()
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


class TestIdentify:
    @pytest.mark.parametrize("name", ["ams-1.example", "AMS-1.Example"])
    def test_a_name_is_compared_without_case(self, name: str, authority: Authority) -> None:
        files = authority.files(NAMES[1], ["Ams-1.EXAMPLE."])
        assert files.identify(der(authority.write(name, "shown")[0])) == "ams-1.example"

    @pytest.mark.parametrize("name", ["lon-1.example", "*.example", "ams-1.example.evil.test", "xams-1.example"])
    def test_other_names_are_nobody(self, name: str, authority: Authority) -> None:
        files = authority.files(NAMES[1], NAMES)
        with pytest.raises(TransportError, match="no configured peer"):
            files.identify(der(authority.write(name, "shown")[0]))

    @pytest.mark.parametrize("certificate", [None, b"", b"\x30\x03\x02\x01\x01"])
    def test_what_is_no_certificate_is_nobody(self, certificate: bytes | None, authority: Authority) -> None:
        with pytest.raises(TransportError):
            authority.files(NAMES[1], NAMES).identify(certificate)

    def test_an_authority_is_nobody(self, authority: Authority) -> None:
        with pytest.raises(TransportError, match="no subjectAltName"):
            authority.files(NAMES[1], NAMES).identify(der(authority.path))


class TestChanges:
    def test_replaced_files_are_used_and_unchanged_ones_are_not_read_again(self, authority: Authority) -> None:
        files = authority.files(NAMES[0], NAMES)
        before = files.server_context()
        assert files.server_context() is before
        cert, _ = authority.write(NAMES[0])
        assert files.server_context() is not before
        assert files.material().certificate == cert.read_bytes()

    def test_a_new_authority_counts_from_the_next_connection(self, authority: Authority, tmp_path: Path) -> None:
        one, two = (authority.files(name, NAMES) for name in NAMES)
        (tmp_path / "new").mkdir()
        new = Authority(tmp_path / "new", "new authority")
        authority.path.write_bytes(new.path.read_bytes())
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(one.client_context(), two.server_context())

    @pytest.mark.parametrize("which", ["cert", "key", "ca"])
    def test_broken_files_leave_the_old_in_use_and_are_told_of_once(
        self, which: str, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        cert, key = authority.write(NAMES[0])
        files = CertificateFiles(ca=authority.path, cert=cert, key=key, peers=NAMES)
        before = files.server_context()
        broken = {"cert": cert, "key": key, "ca": authority.path}[which]
        good, secret = broken.read_bytes(), key.read_text().split("\n")[1]
        broken.write_bytes(b"-----BEGIN NOTHING-----\n" + secret.encode())
        for _ in range(3):
            assert files.server_context() is before
        assert caplog.text.count("stay in use") == 1
        assert secret not in caplog.text
        broken.write_bytes(good)
        assert files.server_context() is not before

    def test_a_certificate_and_its_key_may_come_one_after_the_other(self, authority: Authority) -> None:
        cert, key = authority.write(NAMES[0])
        files = CertificateFiles(ca=authority.path, cert=cert, key=key, peers=NAMES)
        before = files.server_context()
        new_cert, new_key = authority.write(NAMES[0], "new")
        os.replace(new_cert, cert)  # noqa: PTH105 - as an operator's mv does it
        assert files.server_context() is before
        os.replace(new_key, key)  # noqa: PTH105
        assert files.server_context() is not before


class TestFiles:
    @pytest.mark.parametrize("missing", ["cert", "key", "ca"])
    def test_a_missing_file_is_named(self, missing: str, authority: Authority, tmp_path: Path) -> None:
        cert, key = authority.write(NAMES[0])
        paths = {"ca": authority.path, "cert": cert, "key": key, missing: tmp_path / "nothing"}
        with pytest.raises(ConfigError, match="nothing: No such file"):
            CertificateFiles(ca=paths["ca"], cert=paths["cert"], key=paths["key"], peers=NAMES)

    def test_a_key_open_to_everyone_is_refused(self, authority: Authority) -> None:
        cert, key = authority.write(NAMES[0])
        key.chmod(0o644)
        with pytest.raises(ConfigError, match="chmod o="):
            CertificateFiles(ca=authority.path, cert=cert, key=key, peers=NAMES)

    def test_another_certificates_key_is_refused_without_showing_it(self, authority: Authority) -> None:
        (cert, key), (_, other) = authority.write(NAMES[0]), authority.write(NAMES[1])
        with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH") as caught:
            CertificateFiles(ca=authority.path, cert=cert, key=other, peers=NAMES)
        assert other.read_text().split("\n")[1] not in str(caught.value)
        files = CertificateFiles(ca=authority.path, cert=cert, key=key, peers=NAMES)
        assert key.read_text().split("\n")[1] not in repr(files) + repr(files.material())

    def test_a_directory_and_a_fifo_are_refused(self, authority: Authority, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path, tmp_path / "fifo"):
            with pytest.raises(ConfigError):
                CertificateFiles(ca=path)

    def test_links_need_a_certificate_and_peers(self, authority: Authority) -> None:
        with pytest.raises(ConfigError, match="missing"):
            CertificateFiles(ca=authority.path, peers=NAMES).client_context()
        with pytest.raises(ConfigError, match="is empty"):
            authority.files(NAMES[0], []).server_context()
        with pytest.raises(ConfigError, match="go together"):
            CertificateFiles(ca=authority.path, cert=authority.path)

    @pytest.mark.parametrize(
        "name", ["", "*.example", "a b", "a..b", "-a", "a" * 64, "192.0.2.1/24", "x." * 127 + "xx"]
    )
    def test_names_of_peers_are_host_names(self, name: str) -> None:
        with pytest.raises(ConfigError, match="not a host name"):
            host_name(name)


class TestKeygen:
    def test_makes_what_links_need(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["keygen", "tls", *NAMES, "-o", str(tmp_path)]) == 0
        one, two = (
            CertificateFiles(
                ca=tmp_path / "ca.pem", cert=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key", peers=NAMES
            )
            for name in NAMES
        )
        client, _ = handshake(one.client_context(), two.server_context())
        assert one.identify(client.getpeercert(binary_form=True)) == NAMES[1]
        assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}

    def test_later_certificates_come_from_the_same_authority(self, tmp_path: Path) -> None:
        assert main(["keygen", "tls", NAMES[0], "-o", str(tmp_path)]) == 0
        before = (tmp_path / "ca.pem").read_bytes()
        assert main(["keygen", "tls", NAMES[1], "-o", str(tmp_path), "--json"]) == 0
        assert (tmp_path / "ca.pem").read_bytes() == before
        assert main(["keygen", "tls", NAMES[1], "-o", str(tmp_path)]) == 1, "an existing file was replaced"
        assert main(["keygen", "tls", NAMES[1], "-o", str(tmp_path), "--force", "--days", "2"]) == 0

    @pytest.mark.parametrize("name", ["ca", "../up", "a/b", "*.example"])
    def test_refuses_names_that_are_none(self, name: str, tmp_path: Path) -> None:
        assert main(["keygen", "tls", name, "-o", str(tmp_path)]) == 1
        assert not list(tmp_path.iterdir())

    def test_refuses_an_authority_whose_key_is_another(self, tmp_path: Path) -> None:
        assert main(["keygen", "tls", NAMES[0], "-o", str(tmp_path)]) == 0
        (tmp_path / "ca.key").write_bytes((tmp_path / f"{NAMES[0]}.key").read_bytes())
        assert main(["keygen", "tls", NAMES[1], "-o", str(tmp_path)]) == 1


def test_loads_are_told_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    files = authority.files(NAMES[0], NAMES)
    authority.write(NAMES[0])
    with caplog.at_level(logging.INFO):
        files.server_context()
    assert "read again" in caplog.text
