"""The words of the core as values: RRset, Answer, Evidence, Refusal. Decides nothing and knows no socket or clock.

`RRset` and `Answer` are named tuples, not dataclasses: one of each is made per received message, and a frozen
dataclass costs five times as much to build.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple

from cachebus.errors import MessageError
from cachebus.presentation import name_to_text, type_to_text

if TYPE_CHECKING:
    import dns.message

_HEADER = struct.Struct("!HHHHHH")
_HEADER_LENGTH = 12
_POINTER = b"\xc0\x0c"
_QR_AA, _QR_AD = 0x8400, 0x8020
_MAX_MESSAGE = 65535


class Evidence(IntEnum):
    """Why an answer is trusted, weakest first (trust rules, section 2). A listed level includes the stronger ones."""

    AUTHORITATIVE = 1
    """The resolver received it from an authoritative server (AA=1), asked for, in zone."""
    CONFIRMED = 2
    """The resolver then gave the same RRset to a client: it passed the resolver's own scrubbing."""
    VALIDATED = 3
    """The resolver also said AD=1, or our own validator said Secure."""

    @property
    def text(self) -> str:
        """The word used in configuration, CLI and JSON: `authoritative`, `confirmed`, `validated`."""
        return self.name.lower()

    def __str__(self) -> str:
        """The same word."""
        return self.text

    def __format__(self, specification: str) -> str:
        """The same word, aligned as text is."""
        return format(self.text, specification)


class Refusal(Enum):
    """Why something was not taken. The value is the kebab-case word of `--json`, metrics and logs."""

    __hash__ = object.__hash__  # members are singletons; Enum's own is a call of Python for each count

    # The message itself
    MALFORMED = "malformed"
    """Not a well-formed DNS message, frame or envelope."""
    TRAILING_BYTES = "trailing-bytes"
    """Something stands after the last record."""
    NOT_A_RESPONSE = "not-a-response"
    """QR=0."""
    OPCODE = "opcode"
    """Opcode other than QUERY."""
    TRUNCATED = "truncated"
    """TC=1."""
    RCODE = "rcode"
    """RCODE other than NOERROR."""
    CLASS = "class"
    """Class other than IN."""
    QTYPE = "qtype"
    """A type never shared: ANY, RRSIG, NSEC, meta types, or infrastructure types without `share.infrastructure`."""
    QUESTION_COUNT = "question-count"
    """Not exactly one question where one is required."""
    NO_ANSWER = "no-answer"
    """No record answers the question: NODATA, a referral, or an empty answer section."""
    OVERSIZE = "oversize"
    """Larger than the codec, frame or transport allows."""
    # Evidence (trust rules 2)
    NOT_AUTHORITATIVE = "not-authoritative"
    """AA=0 where AA=1 is the evidence."""
    NO_QUERY_ZONE = "no-query-zone"
    """dnstap frame without query_zone."""
    OUT_OF_ZONE = "out-of-zone"
    """The question, or a record, is not at or below query_zone."""
    UNPAIRED = "unpaired"
    """No RESOLVER_QUERY was seen for this response."""
    QUESTION_MISMATCH = "question-mismatch"
    """The response's question is not byte for byte the query's, case included."""
    UNCONFIRMED = "unconfirmed"
    """No client was given the same RRset within the evidence window."""
    CLIENT_CHECKING_DISABLED = "checking-disabled"
    """CD=1: the resolver did not validate for this client."""
    EVIDENCE_TOO_WEAK = "evidence-too-weak"
    """The level reached is not one that this source, or this key, may share."""
    NOT_VALIDATED = "not-validated"
    """AD=0 where only AD=1 counts."""
    STALE = "stale"
    """TTL at or below the source's `stale_ttl`, or a resolver's serve-stale answer."""
    FILLED_BY_US = "filled-by-us"
    """The resolver only repeats what this node filled into it."""
    UNTRUSTED_FORWARDER = "untrusted-forwarder"
    """FORWARDER_RESPONSE from an address not in `trusted_forwarders`."""
    OVERLOAD = "overload"
    """A bounded memory of pending evidence was full and gave up its oldest entry."""
    # What an answer is (trust rules 3)
    BROKEN_CHAIN = "broken-chain"
    """Records do not form one chain from the question (two CNAMEs, a CNAME beside other data)."""
    CHAIN_LOOP = "chain-loop"
    """A CNAME chain that returns to itself, or is too long."""
    FORGED_CNAME = "forged-cname"
    """A CNAME that the DNAME beside it does not yield."""
    WILDCARD_WITHOUT_PROOF = "wildcard-without-proof"
    """RRSIG labels fewer than the owner's: a wildcard expansion whose proof is not carried."""
    RRSIG_MISSING = "rrsig-missing"
    """`validated` without an RRSIG over every RRset."""
    RRSIG_EXPIRED = "rrsig-expired"
    RRSIG_NOT_YET_VALID = "rrsig-not-yet-valid"
    TTL_ZERO = "ttl-zero"
    """TTL 0 (or top bit set), or nothing left of it."""
    # Policy (trust rules 4)
    TTL_BELOW_MINIMUM = "ttl-below-minimum"
    CLIENT_SUBNET = "client-subnet"
    """ECS scope above 0: true for some clients only."""
    SPECIAL_USE_NAME = "special-use-name"
    """RFC 6761, RFC 6303 or private name."""
    PRIVATE_ADDRESS = "private-address"
    """RFC 1918, RFC 4193, loopback or link-local address for a public name."""
    DENIED = "denied"
    """At or below a name in `deny`."""
    KNOWN_FROM_PEER = "known-from-peer"
    """A peer told us, and more than half of its TTL is left."""
    ALREADY_SHARED = "already-shared"
    """We sent the same RRsets, and more than half of their TTL is left."""
    FIRST_SIGHTING = "first-sighting"
    """`second_sighting` is on and the name was not seen before."""
    RATE_LIMITED = "rate-limited"
    LOCAL_DATA = "local-data"
    """Made by the resolver itself: block-list, RPZ, local zone, DNS64."""
    # Authentication (trust rules 6)
    UNSIGNED = "unsigned"
    """No TSIG record."""
    UNKNOWN_KEY = "unknown-key"
    WRONG_ALGORITHM = "wrong-algorithm"
    BAD_MAC = "bad-mac"
    TRUNCATED_MAC = "truncated-mac"
    TSIG_FORM = "tsig-form"
    """The TSIG record itself is malformed: class, TTL, error, other length, position."""
    BAD_TIME = "bad-time"
    """Signed outside min(fudge, max_fudge) of now."""
    REPLAY_WINDOW = "replay-window"
    """Signed before the oldest time the full replay memory still covers."""
    BEFORE_START = "before-start"
    """Signed before this node started, during the first `fudge` seconds."""
    DUPLICATE = "duplicate"
    """The identical message again; no alarm."""
    OWN_MESSAGE = "own-message"
    """Our own message came back."""
    OLD_STREAM = "old-stream"
    """Of a stream that its origin ended when it started anew."""
    WRONG_CLUSTER = "wrong-cluster"
    """Meant for another cluster."""
    WRONG_ORIGIN = "wrong-origin"
    """The key or certificate is not bound to the origin that the message names."""
    # Filling
    LOCAL_DATA_LIVE = "local-data-live"
    """Live local data of better or equal rank is never replaced."""
    BETTER_KNOWN = "better-known"
    """Data of a higher rank, or learned later, is already there."""
    FLUSHED = "flushed"
    """Learned before the last flush of that name."""
    EXPIRED = "expired"
    """Nothing of its life is left on arrival."""


class RRset(NamedTuple):
    """One RRset, with the RRSIGs that cover it, as packed wire records.

    `rrs` and `sigs` are records one after the other, each in wire form `C0 0C | type | class | TTL | RDLENGTH | RDATA`:
    the owner is always the pointer to offset 12, which in a reply is the question name, so a reply for `owner` takes
    them over as they are. RDATA is decompressed, its case kept. The TTL inside each record is the one it arrived with
    and means nothing: `ttl` rules.
    """

    owner: bytes
    """Uncompressed wire form, lower case."""
    type: int
    ttl: int
    """Seconds from the answer's `learned`: the minimum that the trust rules (section 3) leave."""
    rrs: bytes
    sigs: bytes = b""


class Answer(NamedTuple):
    """The unit on the bus: one positive DNS answer, who learned it, when, and why it is trusted."""

    qname: bytes
    """Question name, uncompressed wire form, lower case."""
    qtype: int
    rrsets: tuple[RRset, ...]
    """The chain in order: CNAMEs (a DNAME before the CNAME it yields), then the RRset of `qtype`."""
    evidence: Evidence
    """That of the weakest RRset."""
    origin: str
    """The originating node's name, or its address where the key is bound to no node."""
    learned: float
    """When the originating resolver learned it: seconds since the epoch (wall clock)."""
    validating: bool = False
    """The originating resolver validates, so an unsigned answer of it was found insecure, not unchecked."""
    transport: str = ""
    """Name of the transport it came by; empty for local data."""
    signer: str = ""
    """Name of the key that authenticated it; empty for local data."""

    @property
    def name(self) -> str:
        """Question name in presentation form: lower case, final dot."""
        return name_to_text(self.qname)

    @property
    def type(self) -> str:
        """Question type as mnemonic or TYPEn."""
        return type_to_text(self.qtype)

    @property
    def ttl(self) -> int:
        """Seconds, from `learned`: the smallest of its RRsets' TTLs."""
        return min(rrset.ttl for rrset in self.rrsets)

    @property
    def wire(self) -> bytes:
        """The answer as a DNS response in wire form (RFC 1035 section 4.1): ID 0, the question, the answer section.

        AD=1 with evidence `validated`, else AA=1; TTLs are `ttl`s of the RRsets, so they count from `learned`. For the
        bus itself the codec composes; this is for tools. Raises `MessageError` when there is more than a message holds.
        """
        flags = _QR_AD if self.evidence is Evidence.VALIDATED else _QR_AA
        question = self.qname + self.qtype.to_bytes(2) + b"\0\1"
        pieces: list[bytes] = []
        for rrset in self.rrsets:
            start = _POINTER if rrset.owner == self.qname else rrset.owner
            ttl = rrset.ttl.to_bytes(4)
            for packed in (rrset.rrs, rrset.sigs):
                at = 0
                while at < len(packed):
                    end = at + _HEADER_LENGTH + int.from_bytes(packed[at + 10 : at + 12])
                    pieces.append(start + packed[at + 2 : at + 6] + ttl + packed[at + 10 : end])
                    at = end
        records = b"".join(pieces)
        if _HEADER_LENGTH + len(question) + len(records) > _MAX_MESSAGE or len(pieces) > 0xFFFF:
            raise MessageError("more records than a DNS message holds")
        return _HEADER.pack(0, flags, 1, len(pieces), 0, 0) + question + records

    def to_message(self) -> dns.message.Message:
        """The answer as a dnspython message, built anew at each call (some 100 us). Raises `MessageError` as `wire`
        does, and when RDATA is not what its type demands: the bus passes that on as it is."""
        import dns.exception  # only a caller that wants the object pays for it
        import dns.message

        try:
            return dns.message.from_wire(self.wire)
        except (dns.exception.DNSException, ValueError) as error:
            raise MessageError(f"{self.name} {self.type}: {error}") from error
