// Codec `batch` of cachebus, receiving side, from docs/wire/batch.md alone: bytes and a time in, answers or a reason out.
"use strict";

const crypto = require("node:crypto");
const zlib = require("node:zlib");

const MAX_ENVELOPE = 262144;
const MAX_PAYLOAD = 262144;
const MAX_ITEMS = 16384;
const MAX_AGE_MS = 60_000;
const MAX_AHEAD_MS = 300_000;
const WINDOW = 4096;
const MAX_ORIGINS = 1000; // remembered at a time
const ALGORITHMS = { 1: "sha256", 2: "sha384", 3: "sha512" };
const EVIDENCE = { 1: "authoritative", 2: "confirmed", 3: "validated" };
const CNAME = 5;

class Refused extends Error {}

// What MessagePack needs here: arrays, texts, byte strings, unsigned integers, maps. 64 bits become BigInt.
class MessagePack {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  take(length) {
    if (this.at + length > this.bytes.length) throw new Refused("malformed");
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  number(length) {
    const bytes = this.take(length);
    return length === 8 ? bytes.readBigUInt64BE() : bytes.readUIntBE(0, length);
  }

  value(depth = 4) {
    if (!depth) throw new Refused("malformed");
    const first = this.number(1);
    if (first < 0x80) return first;
    if (first < 0x90) return this.map(first & 15, depth);
    if (first < 0xa0) return this.array(first & 15, depth);
    if (first < 0xc0) return this.text(first & 31);
    switch (first) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.take(this.number(1));
      case 0xc5: return this.take(this.number(2));
      case 0xc6: return this.take(this.number(4));
      case 0xcc: return this.number(1);
      case 0xcd: return this.number(2);
      case 0xce: return this.number(4);
      case 0xcf: return this.number(8);
      case 0xd9: return this.text(this.number(1));
      case 0xda: return this.text(this.number(2));
      case 0xdc: return this.array(this.number(2), depth);
      case 0xde: return this.map(this.number(2), depth);
      default: throw new Refused("malformed"); // negative numbers, floats, extensions: never sent
    }
  }

  text(length) {
    return this.take(length).toString("utf8");
  }

  array(length, depth) {
    if (length > MAX_ITEMS) throw new Refused("malformed");
    return Array.from({ length }, () => this.value(depth - 1));
  }

  map(length, depth) {
    if (length > 16) throw new Refused("malformed");
    return new Map(Array.from({ length }, () => [this.value(depth - 1), this.value(depth - 1)]));
  }

  static read(bytes) {
    const reader = new MessagePack(bytes);
    const value = reader.value();
    if (reader.at !== bytes.length) throw new Refused("trailing-bytes");
    return value;
  }
}

// The streams of all origins: which envelopes are new, and how many never came.
class Streams {
  constructor() {
    this.origins = new Map();
  }

  take(origin, stream, sequence) {
    let known = this.origins.get(origin);
    if (known && stream < known.stream) throw new Refused("old-stream");
    if (!known || stream > known.stream) {
      // A stream that begins anew counts from 1; who joins one in its middle begins to count there.
      const highest = known ? 0 : sequence - 1;
      known = { stream, highest, first: highest + 1, seen: new Set(), gone: false };
      this.origins.delete(origin);
      this.origins.set(origin, known);
      if (this.origins.size > MAX_ORIGINS) this.origins.delete(this.origins.keys().next().value);
    }
    if (sequence <= known.highest - WINDOW) throw new Refused("replay-window");
    if (known.seen.has(sequence)) throw new Refused("duplicate");
    known.seen.add(sequence);
    if (sequence > known.highest) {
      known.highest = sequence;
      for (const old of known.seen) {
        if (old > known.highest - WINDOW) break;
        known.seen.delete(old);
      }
    }
    known.count = (known.count || 0) + 1;
    known.first = Math.min(known.first, sequence);
    known.gone = false;
  }

  gone(origin, stream) {
    const known = this.origins.get(origin);
    if (!known || known.stream !== stream) throw new Refused("old-stream");
    known.gone = true;
  }

  get gaps() {
    let missing = 0;
    for (const { highest, first, count } of this.origins.values()) missing += highest - first + 1 - count;
    return missing;
  }
}

class Receiver {
  // key: NAME:ALG:BASE64, as `cachebus keygen tsig` writes it; started: milliseconds since 1970 UTC.
  constructor(key, cluster, started) {
    const [name, algorithm, secret] = key.trim().split(":");
    this.name = name.toLowerCase().replace(/\.?$/, ".");
    this.algorithm = algorithm.replace(/^hmac-/, "");
    this.secret = Buffer.from(secret, "base64");
    this.cluster = cluster;
    this.started = started;
    this.streams = new Streams();
  }

  // The answers of an envelope; raises Refused with the reason for one that is not taken.
  open(data, now) {
    const body = MessagePack.read(this.authentic(data));
    if (!Array.isArray(body) || (body.length !== 8 && body.length !== 9)) throw new Refused("malformed");
    const [cluster, origin, stream, sequence, time, kind, compression, payload] = body;
    const shape = [cluster, origin, stream, sequence, time, kind, compression].map((one) => typeof one);
    const whole = (word) => word === "number" || word === "bigint";
    if (shape[0] !== "string" || shape[1] !== "string" || !shape.slice(2).every(whole)) throw new Refused("malformed");
    if (!Buffer.isBuffer(payload) || !/^[a-z0-9-]{1,63}$/.test(origin)) throw new Refused("malformed");
    if (kind > 2 || compression > 1 || (kind === 1) !== (body.length === 9)) throw new Refused("malformed");
    if (cluster !== this.cluster) throw new Refused("wrong-cluster");
    if (kind === 2) {
      this.streams.gone(origin, BigInt(stream));
      return [];
    }
    const sent = Number(time); // milliseconds fit 53 bits
    if (sent < this.started) throw new Refused("before-start");
    if (now - sent > MAX_AGE_MS) throw new Refused("expired");
    if (sent - now > MAX_AHEAD_MS) throw new Refused("bad-time");
    this.streams.take(origin, BigInt(stream), Number(sequence));
    if (kind === 1) return [];
    return answersOf(decompressed(payload, compression), origin, sent, now);
  }

  // The body, once the MAC over everything is right: nothing of it is looked at before.
  authentic(data) {
    if (data.length > MAX_ENVELOPE) throw new Refused("oversize");
    if (data.length < 6 || data.toString("latin1", 0, 4) !== "CBE1") throw new Refused("malformed");
    const named = 5 + data[4];
    if (data.length <= named) throw new Refused("malformed");
    if (data.toString("utf8", 5, named) !== this.name) throw new Refused("unknown-key");
    if (ALGORITHMS[data[named]] !== this.algorithm) throw new Refused("wrong-algorithm");
    const body = named + 1 + { sha256: 32, sha384: 48, sha512: 64 }[this.algorithm];
    if (data.length < body) throw new Refused("truncated-mac");
    const mac = crypto.createHmac(this.algorithm, this.secret);
    mac.update(data.subarray(0, named + 1)).update(data.subarray(body));
    if (!crypto.timingSafeEqual(mac.digest(), data.subarray(named + 1, body))) throw new Refused("bad-mac");
    return data.subarray(body);
  }
}

function decompressed(payload, compression) {
  if (compression === 0) return payload;
  if (!zlib.zstdDecompressSync) throw new Refused("malformed"); // Node before 22.15
  try {
    return zlib.zstdDecompressSync(payload, { maxOutputLength: MAX_PAYLOAD });
  } catch {
    throw new Refused("malformed");
  }
}

function answersOf(payload, origin, sent, now) {
  const columns = MessagePack.read(payload);
  if (!Array.isArray(columns) || columns.length < 3 || !columns.every(Buffer.isBuffer)) throw new Refused("malformed");
  const [heads, rows, names, ...rdatas] = columns;
  if (heads.length % 8 || rows.length % 10) throw new Refused("malformed");
  const reader = { name: 0, row: 0, rdata: 0 };
  const answers = [];
  for (let at = 0; at < heads.length; at += 8) {
    const meta = heads[at];
    const learned = Math.min(sent, now) - heads.readUInt32BE(at + 4);
    const answer = { origin, qname: name(), qtype: heads.readUInt16BE(at + 2), learned, evidence: EVIDENCE[meta & 3] };
    answer.rrsets = Array.from({ length: heads[at + 1] }, rrset, { expected: answer.qname });
    if (meta > 7 || !answer.evidence || !answer.rrsets.length) throw new Refused("malformed");
    answers.push(answer);
  }
  const left = rows.length - 10 * reader.row || names.length - reader.name || rdatas.length - reader.rdata;
  if (left) throw new Refused("malformed");
  return answers.filter((one) => one.rrsets.every(({ ttl }) => one.learned + 1000 * ttl > now)); // else: expired

  function rrset() {
    const at = 10 * reader.row++;
    if (at + 10 > rows.length || rows[at + 9] > 1) throw new Refused("malformed");
    const found = { owner: rows[at + 9] ? name() : this.expected, type: rows.readUInt16BE(at), ttl: rows.readUInt32BE(at + 2) };
    found.rdatas = take(rows.readUInt16BE(at + 6));
    found.signatures = take(rows[at + 8]);
    if (!found.rdatas.length) throw new Refused("malformed");
    if (found.type === CNAME) this.expected = lowerCase(found.rdatas[0]);
    return found;
  }

  function take(count) {
    reader.rdata += count;
    if (reader.rdata > rdatas.length) throw new Refused("malformed");
    return rdatas.slice(reader.rdata - count, reader.rdata);
  }

  function name() {
    const start = reader.name;
    reader.name = endOfName(names, start);
    return names.subarray(start, reader.name);
  }
}

// Where the name at `start` ends (RFC 1035 section 3.1); none is compressed.
function endOfName(bytes, start) {
  let at = start;
  for (;;) {
    const length = bytes[at];
    if (length === undefined || length > 63 || at - start > 254) throw new Refused("malformed");
    at += 1 + length;
    if (!length) return at;
  }
}

function lowerCase(name) {
  return Buffer.from(name.map((byte) => (byte >= 0x41 && byte <= 0x5a ? byte + 0x20 : byte))); // labels are at most 63
}

module.exports = { MessagePack, Receiver, Refused, endOfName };
