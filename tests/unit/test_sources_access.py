"""The border: which addresses are allowed, who may connect, and what becomes of a socket's file."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from pathlib import Path

import pytest
import trustme

from cachebus.config.values import SocketAddress, UnixAddress
from cachebus.errors import ConfigError, TransportError
from cachebus.sources.access import ListenSettings, SocketFile, open_listener, peer_uid, server_context

LOOPBACK = SocketAddress("127.0.0.1", 0)
ANYWHERE = SocketAddress("0.0.0.0", 0)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> UnixAddress:
    return UnixAddress(str(tmp_path_factory.mktemp("s") / "s"))


def context(verify: ssl.VerifyMode) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.verify_mode = verify
    return made


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("insecure", [False, True])
def test_tcp_beyond_loopback_needs_tls(host: str, insecure: bool) -> None:
    with pytest.raises(ConfigError, match=r"source r: TCP beyond loopback .* needs TLS with client certificates"):
        ListenSettings(name="r", listen=SocketAddress(host, 6000), insecure=insecure)
    ListenSettings(name="r", listen=SocketAddress(host, 6000), tls=context(ssl.CERT_REQUIRED))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_tcp_on_loopback_needs_the_word_or_tls(host: str) -> None:
    with pytest.raises(ConfigError, match=r"any local user can write .* `insecure: true`"):
        ListenSettings(name="r", listen=SocketAddress(host, 6000))
    ListenSettings(name="r", listen=SocketAddress(host, 6000), insecure=True)
    ListenSettings(name="r", listen=SocketAddress(host, 6000), tls=context(ssl.CERT_REQUIRED))


@pytest.mark.parametrize("verify", [ssl.CERT_NONE, ssl.CERT_OPTIONAL])
def test_tls_without_client_certificates_is_no_border(verify: ssl.VerifyMode) -> None:
    loose = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loose.verify_mode = verify
    with pytest.raises(ConfigError, match="must demand client certificates"):
        ListenSettings(name="r", listen=ANYWHERE, tls=loose)


def test_a_unix_socket_takes_no_tls_and_a_path_that_fits() -> None:
    with pytest.raises(ConfigError, match="takes no TLS"):
        ListenSettings(name="r", listen=UnixAddress("/s"), tls=context(ssl.CERT_REQUIRED))
    for path in ("", "/" + "x" * 107, "/a\0b"):
        with pytest.raises(ConfigError, match="1 to 107 bytes"):
            ListenSettings(name="r", listen=UnixAddress(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_connections", 0),
        ("max_connections", 4097),
        ("handshake_timeout", 0.0),
        ("handshake_timeout", 301.0),
        ("stall_timeout", 0.0),
        ("stall_timeout", 3601.0),
    ],
)
def test_limits_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"source r: {key} must be from"):
        ListenSettings(name="r", listen=UnixAddress("/s"), **{key: value})  # type: ignore[arg-type]


def test_root_ourselves_and_the_listed_users_may_connect() -> None:
    settings = ListenSettings(name="r", listen=UnixAddress("/s"), allow_uids=frozenset({4711}))
    assert settings.allows(0)
    assert settings.allows(os.geteuid())
    assert settings.allows(4711)
    assert not settings.allows(4712)


def test_the_kernel_tells_who_the_peer_is() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_uid(left) == os.geteuid()


def test_the_socket_file_has_mode_0660_whatever_the_umask(place: UnixAddress) -> None:
    for mask in (0o000, 0o077):
        before = os.umask(mask)
        try:
            with open_listener(place):
                assert stat.S_IMODE(Path(place.path).stat().st_mode) == 0o660
        finally:
            os.umask(before)


def test_a_stale_file_is_replaced(place: UnixAddress) -> None:
    open_listener(place).close()
    assert Path(place.path).exists()
    with open_listener(place) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(place.path)
        listener.accept()[0].close()


def test_a_socket_that_somebody_listens_on_is_left_alone(place: UnixAddress) -> None:
    with open_listener(place) as first:
        with pytest.raises(TransportError, match="another process listens there"):
            open_listener(place)
        first.accept()[0].close()  # the probe
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place.path)


def test_a_full_backlog_counts_as_listening(place: UnixAddress) -> None:
    waiting = []
    with open_listener(place):
        try:
            while True:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                waiting.append(client)
                client.connect(place.path)
        except BlockingIOError:
            pass
        with pytest.raises(TransportError, match="another process listens there"):
            open_listener(place)
    for client in waiting:
        client.close()


def test_another_kind_of_file_is_never_removed(place: UnixAddress) -> None:
    Path(place.path).write_text("precious")
    with pytest.raises(TransportError, match="not a socket"):
        open_listener(place)
    assert Path(place.path).read_text() == "precious"


def test_what_cannot_be_bound_is_a_transport_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"cannot listen on unix:.*No such file or directory"):
        open_listener(UnixAddress(str(tmp_path / "missing" / "s")))
    with (
        open_listener(LOOPBACK) as taken,
        pytest.raises(TransportError, match=r"cannot listen on 127.0.0.1:.*in use"),
    ):
        open_listener(SocketAddress("127.0.0.1", taken.getsockname()[1]))


def test_only_our_own_file_is_removed(place: UnixAddress) -> None:
    with open_listener(place):
        ours = SocketFile(place.path)
        Path(place.path).rename(place.path + ".kept")  # so that its inode is not given out again
        with open_listener(place):
            ours.remove()
            assert Path(place.path).exists()
            SocketFile(place.path).remove()
            assert not Path(place.path).exists()
    ours.remove()


def test_a_server_context_demands_certificates_and_names_the_bad_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(ca)
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    made = server_context(cert, key, ca)
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert made.minimum_version is ssl.TLSVersion.TLSv1_3
    with pytest.raises(ConfigError, match=r"missing\.pem: not readable"):
        server_context(cert, key, tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match=r"ca\.pem: not readable"):
        server_context(ca, ca, ca)
