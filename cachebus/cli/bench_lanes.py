"""What `bench` measures side by side: each a transport with a codec, set up over loopback between processes.

Decides which there are, what each needs of the machine, and what the two ends are told; the keys are those of the
configuration. Knows nothing of measuring. A transport of another package takes part by its `bench_settings`
(transports/README.md).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachebus.answer import Evidence
from cachebus.cli.bench_trace import SENDER
from cachebus.cli.broker import broker
from cachebus.cli.certificates import issue, make_authority
from cachebus.cli.demo_cluster import free_ports
from cachebus.config.transports import DEFAULT_CODECS, CodecName, Transport
from cachebus.errors import CachebusError
from cachebus.registry import installed_transports, load_transport

HOST = "127.0.0.1"
GROUP = "239.255.53.91"
"""Of the multicast measurement: administratively scoped (RFC 2365), and it stays on the loopback interface."""

Section = dict[str, Any]


class BenchError(CachebusError):
    """Raised when something cannot be measured, or a process of the measurement dies, hangs or receives too little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the processes of one measurement are told."""

    receivers: tuple[Section, ...]
    """The transport's configuration at each subscriber."""
    sender: Section
    bare: tuple[str, ...] = ()
    """Where the floor's bare end of each subscriber is, as `bench_bare` understands it; empty: there is no floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One transport with one codec."""

    name: str
    transport: str
    codec: CodecName
    zstd: bool = False
    datagrams: bool = False
    """What was sent waits in the receiver's socket, whole, until it is read."""
    bare: str = ""
    """Which of `bench_bare`'s ends makes the floor; empty: none does."""
    plan: Callable[[Lane, int, Path], Plan] = field(repr=False, kw_only=True)
    """Given the number of subscribers, and a directory that is there as long as the measurement."""


def lanes() -> tuple[Lane, ...]:
    """Every one that this project has, then those of other packages that say how to be measured."""
    return (*BUILT_IN, *_of_others())


def section(fields: Mapping[str, Any]) -> Transport:
    """A transport's configuration from its keys. Everything that the trace holds is accepted."""
    known = {key: value for key, value in fields.items() if key in Transport.model_fields}
    made = Transport.model_validate({**known, "accept": {"evidence": [level.text for level in Evidence]}})
    made._options = {key: value for key, value in fields.items() if key not in known}
    return made


def _section(lane: Lane, **keys: Any) -> Section:
    key = {} if lane.codec is CodecName.CDNS else {"key": "bench"}
    zstd = {"zstd": True} if lane.zstd else {}
    return {"type": lane.transport, "codec": lane.codec.value, **key, **zstd, **keys}


def _udp(lane: Lane, subscribers: int, directory: Path) -> Plan:
    ports = free_ports(2 * subscribers)
    places = [f"{HOST}:{port}" for port in ports]
    return Plan(
        receivers=tuple(_section(lane, listen=place) for place in places[:subscribers]),
        sender=_section(lane, peers=places[:subscribers]),
        bare=tuple(places[subscribers:]),
    )


def _multicast(lane: Lane, subscribers: int, directory: Path) -> Plan:
    port, bare = free_ports(2)
    keys = {"group": f"{GROUP}:{port}", "interface": HOST, "loop": True}
    return Plan(
        receivers=(_section(lane, **keys),) * subscribers,
        sender=_section(lane, **keys),
        bare=(f"{GROUP}:{bare}",) * subscribers,
    )


def _zeromq(lane: Lane, subscribers: int, directory: Path) -> Plan:
    ports = free_ports(2 + subscribers)
    own, bare, *others = [f"tcp://{HOST}:{port}" for port in ports]
    return Plan(
        receivers=tuple(_section(lane, bind=[other], connect=[own]) for other in others),
        sender=_section(lane, bind=[own], connect=[]),
        bare=(bare,) * subscribers,
    )


def _mqtt(lane: Lane, subscribers: int, directory: Path) -> Plan:
    (port,) = free_ports(1)
    told = _section(lane, url=f"mqtt://{HOST}:{port}")
    return Plan(receivers=(told,) * subscribers, sender=told, bare=(f"{HOST}:{port}",) * subscribers)


def _tcp(lane: Lane, subscribers: int, directory: Path) -> Plan:
    plan = _udp(lane, subscribers, directory)
    cleartext = {"insecure": True}
    return Plan(
        receivers=tuple(told | cleartext for told in plan.receivers), sender=plan.sender | cleartext, bare=plan.bare
    )


def _tls(lane: Lane, subscribers: int, directory: Path) -> Plan:
    plan = _udp(lane, subscribers, directory)
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("bench", now)
    (directory / "ca.pem").write_bytes(authority.certificate_pem)

    def files(name: str, peer: str) -> Section:
        issued = issue(authority, f"{name}.bench.test", now)
        (directory / f"{name}.pem").write_bytes(issued.certificate_pem)
        key = directory / f"{name}.key"
        key.touch(mode=0o600)
        key.write_bytes(issued.key_pem)
        paths = {"cert": str(directory / f"{name}.pem"), "key": str(key), "ca": str(directory / "ca.pem")}
        return {"tls": {**paths, "peers": [f"{peer}.bench.test"]}}

    one, other = files("receiver", SENDER), files(SENDER, "receiver")
    return Plan(receivers=tuple(told | one for told in plan.receivers), sender=plan.sender | other, bare=plan.bare)


BUILT_IN = (
    Lane(name="udp", transport="udp", codec=CodecName.DNS, datagrams=True, bare="udp", plan=_udp),
    Lane(
        name="multicast", transport="multicast", codec=CodecName.DNS, datagrams=True, bare="multicast", plan=_multicast
    ),
    Lane(name="zeromq", transport="zeromq", codec=CodecName.BATCH, bare="zeromq", plan=_zeromq),
    Lane(name="mqtt", transport="mqtt", codec=CodecName.BATCH, bare="mqtt", plan=_mqtt),
    Lane(name="tcp", transport="tcp", codec=CodecName.CDNS, bare="tcp", plan=_tcp),
    Lane(name="tcp+zstd", transport="tcp", codec=CodecName.CDNS, zstd=True, bare="tcp", plan=_tcp),
    Lane(name="tcp+batch", transport="tcp", codec=CodecName.BATCH, bare="tcp", plan=_tcp),
    Lane(name="tls", transport="tls", codec=CodecName.CDNS, bare="tls", plan=_tls),
    Lane(name="quic", transport="quic", codec=CodecName.CDNS, plan=_tls),
)
"""In the order of the table."""


def _of_others() -> Iterator[Lane]:
    own = {lane.transport for lane in BUILT_IN} | {"mqtts", "zmq+tcp", "zmq+ipc"}
    for name in installed_transports():
        if name in own:
            continue
        try:
            factory = load_transport(name)
        except CachebusError:
            continue  # what cannot be imported cannot be measured; whoever asks for it by name is told
        if callable(getattr(factory, "bench_settings", None)):
            yield Lane(name=name, transport=name, codec=DEFAULT_CODECS.get(name, CodecName.DNS), plan=_other)


def _other(lane: Lane, subscribers: int, directory: Path) -> Plan:
    factory: Any = load_transport(lane.transport)
    receivers, sender = factory.bench_settings(subscribers, directory)
    return Plan(receivers=tuple(_section(lane, **told) for told in receivers), sender=_section(lane, **sender), bare=())


@contextmanager
def surroundings(lane: Lane, plan: Plan, directory: Path) -> Iterator[None]:
    """What must run beside the processes: a broker for mqtt. Raises `BrokerMissingError`, or `BrokerError`."""
    if lane.transport != "mqtt":
        yield
        return
    with broker(int(plan.bare[0].rpartition(":")[2]), directory):
        yield
