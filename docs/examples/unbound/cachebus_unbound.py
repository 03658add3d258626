"""Unbound python module: tells cachebus every answer that Unbound has finished, without ever holding Unbound up.

For Unbound's own python module hook (`module-config: "python validator iterator"`), standard library only, tested with
Unbound 1.17.1 of Debian 12. Each finished answer to a client's recursive query is written as a DNS message, its length
before it as u32 in network order, to the unix socket of a cachebus source of `type: stream`. The README beside this
file has the configuration of both sides.

It decides what leaves Unbound: NOERROR answers with data, of class IN, not asked with CD=1, not bogus, validated where
Unbound validates (AD says so), and learned from an authoritative server. It leaves everything else to cachebus.

The environment variable CACHEBUS_SOCKET names the socket; without it, it is /run/cachebus/unbound.sock.
"""

import collections
import os
import socket
import struct
import threading
import time

import unboundmodule as ub

DEFAULT_SOCKET = "/run/cachebus/unbound.sock"
MAX_BUFFER = 1024 * 1024
"""Bytes that wait for a slow reader; beyond it the oldest answers are dropped."""
MAX_WAIT = 2.0
"""Seconds that an answer waits. The reader counts an answer's life from its arrival, so an old one must not arrive."""
RECONNECT_INTERVAL = 1.0
"""Seconds between two attempts to connect."""
LOG_INTERVAL = 60.0
"""Seconds between two log lines about answers that could not be told."""
MAX_MESSAGE = 65535

QR, TC, RD, RA, AD, CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
RCODE_MASK = 0x000F
CLASS_IN = 1
TYPE_RRSIG = 46
OWNER_IS_QNAME = b"\xc0\x0c"

NONAUTH_ANSWER = 4
"""Unbound's trust of the end of a CNAME chain that an authoritative server sent in one answer."""
ANSWER_WITHOUT_AA = 5
"""Unbound's trust of data that no authoritative server vouched for: from a forwarder, from an RPZ, and from cachebus
itself, which fills with this trust so that its own gifts can be told from what Unbound has learned."""

HEADER = struct.Struct(">HHHHHH")
RECORD = struct.Struct(">HHI")
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")

modules = {}
"""The Module of each `python` in module-config, by Unbound's number for it: Unbound calls plain functions."""


class Stream:
    """A unix socket that never blocks. What it cannot take now waits, up to a bound, for the next query that comes.

    After a partial write the rest of that frame goes first, so the stream is never out of step. When the connection is
    lost in the middle of a frame, the rest of it is dropped, and the next connection starts with a whole one. Unbound's
    threads share it.
    """

    def __init__(self, path, clock=time.monotonic):
        self.path = path
        self.clock = clock
        self.dropped = collections.Counter()
        self._waiting = collections.deque()  # (time, frame)
        self._size = 0
        self._sent = 0  # bytes of the first waiting frame
        self._socket = None
        self._attempt = -RECONNECT_INTERVAL
        self._lock = threading.Lock()  # held for a few system calls that do not block

    def send(self, message):
        """Queue one message, and write what can be written."""
        frame = U32.pack(len(message)) + message
        with self._lock:
            now = self.clock()
            self._waiting.append((now, frame))
            self._size += len(frame)
            while self._size > MAX_BUFFER:
                oldest = 1 if self._sent else 0
                self._size -= len(self._waiting[oldest][1])
                del self._waiting[oldest]
                self.dropped["buffer full"] += 1
            self._flush(now)

    def flush(self):
        """Write what waits and can be written; cheap when nothing waits."""
        if self._waiting:
            with self._lock:
                self._flush(self.clock())

    def close(self):
        with self._lock:
            self._disconnect()

    def _flush(self, now):
        while self._waiting:
            since, frame = self._waiting[0]
            if not self._sent and now - since > MAX_WAIT:
                self._drop_first("reader too slow, or away")
            elif not self._connect(now):
                return
            else:
                try:
                    self._sent += self._socket.send(frame[self._sent :], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                except OSError:
                    self._disconnect()
                    continue
                if self._sent == len(frame):
                    self._pop_first()

    def _connect(self, now):
        if self._socket is not None:
            return True
        if now - self._attempt < RECONNECT_INTERVAL:
            return False
        self._attempt = now
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self.path)  # a unix socket connects at once, or fails at once
        except OSError:
            connection.close()
            return False
        self._socket = connection
        return True

    def _disconnect(self):
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._sent:
            self._drop_first("connection lost")

    def _drop_first(self, reason):
        self.dropped[reason] += 1
        self._pop_first()

    def _pop_first(self):
        self._size -= len(self._waiting.popleft()[1])
        self._sent = 0


class Module:
    """What one Unbound tells cachebus."""

    def __init__(self, path, refusal="", secure_only=False, clock=time.monotonic):
        self.stream = Stream(path, clock)
        self.refusal = refusal
        self.secure_only = secure_only
        self._clock = clock
        self._logged = clock()
        self._log_lock = threading.Lock()

    def finished(self, qstate):
        """Tell cachebus the answer of a finished query, if it is one that may be told."""
        if self.refusal or not is_clients_query(qstate):
            return
        reply = finished_answer(qstate)
        if reply is None or (self.secure_only and reply.security != ub.sec_status_secure):
            return
        message = compose(qstate.qinfo, reply)
        if message is None:
            return
        if len(message) > MAX_MESSAGE:
            self.stream.dropped["answer too large"] += 1
            return
        self.stream.send(message)

    def failed(self, error):
        """Count an exception: a query must not notice."""
        self.stream.dropped["error: " + type(error).__name__] += 1

    def log(self):
        """Once in a while, say what was dropped."""
        now = self._clock()
        if now - self._logged < LOG_INTERVAL or not self._log_lock.acquire(blocking=False):
            return
        try:
            self._logged = now
            dropped, self.stream.dropped = self.stream.dropped, collections.Counter()
            if dropped:
                text = ", ".join(f"{count} ({reason})" for reason, count in sorted(dropped.items()))
                ub.log_warn("cachebus: answers not told: " + text)
        finally:
            self._log_lock.release()


def is_clients_query(qstate):
    """True for a client's recursive query without CD.

    Unbound's own look-ups (DNSKEY, DS, addresses of name servers, `_ta-` signals) have no client waiting. Neither has
    a prefetch, which looks the same from here, so it is left out too.
    """
    flags = qstate.query_flags
    return (
        flags & RD
        and not flags & CD
        and not qstate.is_priming
        and not qstate.is_valrec
        and qstate.qinfo.qclass == CLASS_IN
        and qstate.mesh_info.reply_list is not None
    )


def finished_answer(qstate):
    """The reply, if it is a whole positive answer that is not bogus and was checked; else None."""
    message = qstate.return_msg
    if qstate.return_rcode != ub.RCODE_NOERROR or not message or not message.rep or qstate.no_cache_store:
        return None
    reply = message.rep
    if reply.flags & (TC | RCODE_MASK) or not reply.an_numrrsets:
        return None
    # `indeterminate` means that no trust anchor covers the name.
    if reply.security not in (ub.sec_status_secure, ub.sec_status_insecure, ub.sec_status_indeterminate):
        return None
    return reply


def compose(qinfo, reply):
    """The DNS message: question, and answer section with its RRSIGs. None if a record in it may not be told."""
    qname = qinfo.qname.lower()
    parts = []
    count = 0
    for index in range(reply.an_numrrsets):
        rrset = reply.rrsets[index]
        data = rrset.entry.data
        if data.trust < NONAUTH_ANSWER or data.trust == ANSWER_WITHOUT_AA:
            return None
        owner = rrset.rk.dname
        if owner.lower() == qname:
            owner = OWNER_IS_QNAME
        rrtype = ub.ntohs(rrset.rk.type)
        rdatas, ttls, records = data.rr_data, data.rr_ttl, data.count
        for number in range(records + data.rrsig_count):
            kind = rrtype if number < records else TYPE_RRSIG
            # Unbound's own RDATA begins with its length, in network order.
            parts += (owner, RECORD.pack(kind, CLASS_IN, ttls[number]), rdatas[number])
            count += 1
    flags = QR | RD | RA | (AD if reply.security == ub.sec_status_secure else 0)
    header = HEADER.pack(0, flags, 1, count, 0, 0)
    return b"".join((header, qname, U16.pack(qinfo.qtype), U16.pack(CLASS_IN), *parts))


def why_not(module_config):
    """Why answers cannot be told with this `module-config`, as a sentence; empty when they can."""
    modules = module_config.split()
    if "subnetcache" in modules:
        return "with subnetcache, answers may be true for some clients only"
    last = len(modules) - modules[::-1].index("python")
    if modules[last:] != ["validator", "iterator"]:
        return 'in module-config, "validator iterator" must follow directly on "python"'
    return ""


def init_standard(module_id, env):
    """Called by Unbound at its start, and after a reload."""
    path = os.environ.get("CACHEBUS_SOCKET") or DEFAULT_SOCKET
    refusal = why_not(env.cfg.module_conf or "")
    if refusal:
        ub.log_err("cachebus: nothing is shared: " + refusal)
    if env.cfg.val_permissive_mode:
        ub.log_warn("cachebus: val-permissive-mode hides what is bogus, so only validated answers are shared")
    modules[module_id] = Module(path, refusal, bool(env.cfg.val_permissive_mode))
    if not refusal:
        ub.log_info("cachebus: answers go to " + path)
    return True


def deinit(module_id):
    """Called by Unbound at its end, and before a reload."""
    module = modules.pop(module_id, None)
    if module is not None:
        module.stream.close()
    return True


def inform_super(module_id, qstate, superqstate, qdata):
    """A sub-query is done; nothing to do."""
    return True


def operate(module_id, event, qstate, qdata):
    """Called by Unbound when a query comes, and when the modules behind this one are done with it."""
    if event in (ub.MODULE_EVENT_NEW, ub.MODULE_EVENT_PASS):
        qstate.ext_state[module_id] = ub.MODULE_WAIT_MODULE
    else:
        qstate.ext_state[module_id] = ub.MODULE_FINISHED
    # Nothing below may fail the query: its state is set.
    module = modules.get(module_id)
    if module is not None:
        try:
            if event == ub.MODULE_EVENT_MODDONE:
                module.finished(qstate)
            else:
                module.stream.flush()
            module.log()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the query goes on
            module.failed(error)
    return True
