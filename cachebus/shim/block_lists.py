"""Files of names to rules: hosts files, lists of domains, response policy zones; and which rule a name meets.

Decides what a line means and which of several rules is the closest. Knows no query and no reply; reads files, so it
belongs into a thread while a server runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cachebus.answer import RRset
from cachebus.errors import ConfigError
from cachebus.presentation import MAX_LABEL, MAX_NAME
from cachebus.shim.query import Ede
from cachebus.wire import rrtypes
from cachebus.wire.message import pack
from cachebus.wire.name import ancestors

if TYPE_CHECKING:
    import dns.name
    import dns.rdataset

MAX_BYTES = 512 * 1024 * 1024
"""Of one file: ten times the largest public lists."""
MAX_RULES = 10_000_000
"""Of all files together; about 2 GB."""
MAX_LINE = 4096
"""Bytes: no name comes near; a longer line is passed by, and counted."""

_HOST = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ADBLOCK = re.compile(rb"(@@)?\|\|([^\^/*$]+)\^(?:\$important)?")
_ORIGIN = re.compile(r"^\$ORIGIN\b", re.MULTILINE | re.IGNORECASE)
_LENGTHS = [bytes((length,)) for length in range(MAX_LABEL + 1)]
_UNSPECIFIED = frozenset({"0.0.0.0", "::", "127.0.0.1", "::1"})  # noqa: S104
"""Where hosts files used as block-lists send names."""
_OWN_NAMES = frozenset({b"localhost", b"localhost.localdomain", b"local", b"broadcasthost", b"ip6-localhost"})
"""Names that such files list for the machine's own sake."""


Owners = dict[bytes, list[RRset]]
"""RRsets by their owner, in lower-case wire form."""


class Format(Enum):
    """What a block-list's file holds."""

    DOMAINS = "domains"
    """A name a line, which stands for all below it too; or `||name^`, with `@@` before it for an exception."""
    HOSTS = "hosts"
    """An address and names, each of which stands for itself alone."""
    RPZ = "rpz"
    """A response policy zone (draft-vixie-dnsop-dns-rpz-00), of which the QNAME triggers count."""


class Action(Enum):
    """What becomes of a listed name."""

    NXDOMAIN = "nxdomain"
    """There is no such name."""
    NODATA = "nodata"
    """The name has no such record."""
    NULL = "null"
    """Its addresses are 0.0.0.0 and ::, so that a client gives up at once; all else is NODATA."""
    REFUSED = "refused"
    """The question is refused."""
    PASS = "pass"  # noqa: S105  (a policy, no password)
    """The name is not listed, whatever other rules say."""


class Rule(NamedTuple):
    """What a name meets."""

    action: Action | None
    """None: the records answer."""
    records: tuple[RRset, ...] = ()
    """Of the name itself; `owner` means nothing."""
    error: int = Ede.BLOCKED
    """The Extended DNS Error that tells why (RFC 8914)."""
    source: str = ""
    """The list's name."""
    ttl: int = 300
    """Seconds for which a negative answer may be kept."""


class Rules:
    """Rules by name. The closest one counts; of two for one name, the one that was put first."""

    def __init__(self) -> None:
        self._exact: dict[bytes, Rule] = {}
        self._below: dict[bytes, Rule] = {}
        self._both: dict[bytes, Rule] = {}

    def __len__(self) -> int:
        return len(self._exact) + len(self._below) + len(self._both)

    def put(self, name: bytes, rule: Rule, *, itself: bool = True, below: bool = False) -> None:
        """`name` in lower-case wire form: the rule is for it, for what is below it, or for both."""
        rules = self._both if itself and below else self._exact if itself else self._below
        rules.setdefault(name, rule)

    def find(self, qname: bytes) -> Rule | None:
        """The rule that a name meets, or None."""
        rule = self._exact.get(qname)
        if rule is not None or not (self._both or self._below):
            return rule
        for name in ancestors(qname):
            rule = self._both.get(name)
            if rule is None and name is not qname:
                rule = self._below.get(name)
            if rule is not None:
                return rule
        return None


class Loaded(NamedTuple):
    """What came of one file."""

    rules: int
    skipped: int
    """Lines that say nothing that is understood here."""


class Loader:
    """Fills `rules` and `exceptions` from files. Raises `ConfigError` for a file that cannot be read, or is too big."""

    def __init__(self, rules: Rules, exceptions: Rules) -> None:
        self._rules = rules
        self._exceptions = exceptions

    def load(self, path: Path, form: Format, rule: Rule) -> Loaded:
        """Read one block-list; `rule` is what its names meet, but for those of a zone, which say so themselves."""
        match form:
            case Format.DOMAINS:
                return self._lines(path, lambda line: self._domain(line, rule))
            case Format.HOSTS:
                return self._lines(path, lambda line: self._host(line, rule))
            case Format.RPZ:
                return self._zone(path, rule)

    def _lines(self, path: Path, take: Callable[[bytes], int]) -> Loaded:
        rules = skipped = 0
        for line in _lines_of(path):
            try:
                rules += take(line)
            except ValueError:
                skipped += 1
            if len(self._rules) > MAX_RULES:
                raise ConfigError(f"{path}: more than {MAX_RULES} rules together")
        return Loaded(rules, skipped)

    def _domain(self, line: bytes, rule: Rule) -> int:
        if line.startswith(b"!"):
            return 0
        match = _ADBLOCK.fullmatch(line)
        if match is None:
            self._rules.put(wire_name(line.removeprefix(b"*.")), rule, below=True)
        elif match[1] is not None:
            self._exceptions.put(wire_name(match[2]), rule._replace(action=Action.PASS), below=True)
        else:
            self._rules.put(wire_name(match[2]), rule, below=True)
        return 1

    def _host(self, line: bytes, rule: Rule) -> int:
        address, *names = line.split()
        if str(ip_address(address.decode("ascii"))) not in _UNSPECIFIED:
            raise ValueError("an address that leads somewhere: no block-list")
        listed = [wire_name(name) for name in names if name not in _OWN_NAMES]
        for name in listed:
            self._rules.put(name, rule)
        return len(listed)

    def _zone(self, path: Path, rule: Rule) -> Loaded:
        rules = skipped = 0
        owners = read_zone(path)
        origins = [owner for owner, rrsets in owners.items() if any(rrset.type == rrtypes.SOA for rrset in rrsets)]
        if len(origins) != 1:
            raise ConfigError(f"{path} is no policy zone: it has {len(origins)} SOA records")
        (origin,) = origins
        for owner, records in owners.items():
            trigger = owner[: len(owner) - len(origin)] + b"\0"
            if owner == origin or _is_other_trigger(trigger):
                skipped += owner != origin
                continue
            made = _policy(records, rule)
            if made is None:
                skipped += 1
                continue
            wild = trigger.startswith(b"\1*")
            into = self._exceptions if made.action is Action.PASS else self._rules
            into.put(trigger[2:] if wild else trigger, made, itself=not wild, below=wild)
            rules += 1
        return Loaded(rules, skipped)


def read_hosts(path: Path) -> Iterator[tuple[bytes, str]]:
    """(name in wire form, address) of each line of a hosts file (hosts(5)). Raises `ConfigError` as `Loader` does."""
    for line in _lines_of(path):
        address, *names = line.split()
        try:
            text = str(ip_address(address.decode("ascii").partition("%")[0]))
            found = [(wire_name(name), text) for name in names]
        except ValueError:
            continue
        yield from found


def read_records(text: str, ttl: int) -> Owners:
    """RRsets by owner of lines in a zone file's form; a record without a TTL gets `ttl`. Names are absolute.

    Raises `ConfigError` with what is wrong.
    """
    import dns.exception
    import dns.name
    import dns.zonefile

    try:
        found = dns.zonefile.read_rrsets(text, origin=dns.name.root, relativize=False, default_ttl=ttl)
    except (dns.exception.DNSException, ValueError) as error:
        raise ConfigError(f"not a record: {error}") from None
    return _by_owner((rrset.name, rrset) for rrset in found)


def read_zone(path: Path) -> Owners:
    """RRsets by owner of a zone file, its origin the root unless it says so itself. Raises `ConfigError`."""
    import dns.exception
    import dns.name
    import dns.zone

    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is not a file, or longer than {MAX_BYTES} bytes")
        text = path.read_text("utf-8")
        origin = None if _ORIGIN.search(text) else dns.name.root
        zone = dns.zone.from_text(
            text, origin=origin, relativize=False, check_origin=False, allow_include=False, filename=str(path)
        )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (dns.exception.DNSException, ValueError) as error:  # text that is no UTF-8 is a ValueError
        raise ConfigError(f"{path} is no zone: {error}") from None
    return _by_owner(zone.iterate_rdatasets())


def _by_owner(rdatasets: Iterable[tuple[dns.name.Name, dns.rdataset.Rdataset]]) -> Owners:
    owners: Owners = {}
    for name, rdataset in rdatasets:
        owner, rrtype, ttl = name.to_digestable(), int(rdataset.rdtype), rdataset.ttl
        rdatas = [rdata.to_wire() or b"" for rdata in rdataset]
        owners.setdefault(owner, []).append(RRset(owner, rrtype, ttl, pack(rrtype, ttl, rdatas)))
    return owners


def wire_name(text: bytes) -> bytes:
    """Lower-case wire form of a host name. Raises `ValueError` for anything else."""
    text = text.lower().rstrip(b".")
    if not text.isascii():
        text = text.decode("utf-8").encode("idna")
    if _HOST.fullmatch(text) is None or len(text) > MAX_NAME - 2:
        raise ValueError("not a host name")
    return b"".join([_LENGTHS[len(label)] + label for label in text.split(b".")]) + b"\0"


def _lines_of(path: Path) -> Iterator[bytes]:
    """Lines without comments and blanks; of one that is too long, the beginning, which is no name."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file")
        with path.open("rb") as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise ConfigError(f"{path} is longer than {MAX_BYTES} bytes")
            file.seek(0)
            whole = True
            while piece := file.readline(MAX_LINE):
                line, was_whole = piece.partition(b"#")[0].strip(), whole
                whole = piece.endswith(b"\n") or len(piece) < MAX_LINE
                if line and was_whole:
                    yield line
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _is_other_trigger(trigger: bytes) -> bool:
    """RPZ triggers other than the name: rpz-ip, rpz-client-ip, rpz-nsip, rpz-nsdname."""
    labels = list(ancestors(trigger))
    return labels[-2].startswith(b"rpz-", 1)


def _policy(records: Iterable[RRset], rule: Rule) -> Rule | None:
    """What a policy zone's records tell to do (draft-vixie-dnsop-dns-rpz-00 section 3); None for what is not done."""
    own = tuple(rrset for rrset in records if rrset.type not in (rrtypes.RRSIG, rrtypes.NSEC))
    alias = next((rrset for rrset in own if rrset.type == rrtypes.CNAME), None)
    if alias is None:
        return rule._replace(action=None, records=own) if own else None
    match alias.rrs[12:].lower():
        case b"\0":
            return rule._replace(action=Action.NXDOMAIN)
        case b"\1*\0":
            return rule._replace(action=Action.NODATA)
        case b"\x0crpz-passthru\0":
            return rule._replace(action=Action.PASS)
        case b"\x08rpz-drop\0":
            return rule._replace(action=Action.REFUSED)  # silence would only make the client ask again
        case b"\x0crpz-tcp-only\0":
            return None
        case target if target.startswith(b"\1*"):
            return None  # the client's name as part of another: not done here
        case _:
            return rule._replace(action=None, records=(alias,))
