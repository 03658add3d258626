"""Record types by number, and the sets of them that the rules speak of. Mnemonics are in `cachebus.presentation`."""

from __future__ import annotations

A = 1
NS = 2
CNAME = 5
SOA = 6
PTR = 12
MX = 15
TXT = 16
SIG = 24
AAAA = 28
NXT = 30
SRV = 33
NAPTR = 35
DNAME = 39
OPT = 41
DS = 43
RRSIG = 46
NSEC = 47
DNSKEY = 48
NSEC3 = 50
NSEC3PARAM = 51
SVCB = 64
HTTPS = 65
TSIG = 250
ANY = 255

NEVER_SHARED = frozenset({0, SIG, NXT, OPT, RRSIG, NSEC, NSEC3, *range(128, 256)})
"""Types never shared as the asked type (trust rules, section 3): signatures, denials, meta types."""
INFRASTRUCTURE = frozenset({NS, SOA, DS, DNSKEY, NSEC3PARAM, 59, 60, 62})
"""What resolvers steer by; shared with `share.infrastructure` only. 59, 60, 62: CDS, CDNSKEY, CSYNC."""
