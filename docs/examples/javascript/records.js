// Names, types and RDATA as people write them (RFC 1035 section 5.1, RFC 3597 section 5). The common types only.
"use strict";

const { endOfName } = require("./envelope.js");

const TYPES = { 1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 39: "DNAME",
  43: "DS", 46: "RRSIG", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 257: "CAA" };

const typeText = (type) => TYPES[type] || `TYPE${type}`;

function nameText(name, start = 0) {
  let text = "";
  for (let at = start; name[at]; at += 1 + name[at]) {
    for (const byte of name.subarray(at + 1, at + 1 + name[at])) {
      const letter = String.fromCharCode(byte);
      if ('."\\;()$@'.includes(letter)) text += `\\${letter}`;
      else text += byte > 0x20 && byte < 0x7f ? letter : `\\${String(byte).padStart(3, "0")}`;
    }
    text += ".";
  }
  return text || ".";
}

function rdataText(type, rdata) {
  try {
    const text = knownText(type, rdata);
    if (text !== undefined) return text;
  } catch {
    // RDATA that its type does not allow is written as that of an unknown type
  }
  return `\\# ${rdata.length} ${rdata.toString("hex")}`;
}

function knownText(type, rdata) {
  switch (type) {
    case 1: return rdata.length === 4 ? rdata.join(".") : undefined;
    case 28: return rdata.length === 16 ? addressText(rdata) : undefined;
    case 2: case 5: case 12: case 39: return wholeName(rdata, 0);
    case 15: return `${rdata.readUInt16BE(0)} ${wholeName(rdata, 2)}`;
    case 16: return strings(rdata).map((one) => `"${one}"`).join(" ");
    default: return undefined;
  }
}

function wholeName(rdata, start) {
  if (endOfName(rdata, start) !== rdata.length) throw new RangeError("bytes after the name");
  return nameText(rdata, start);
}

// RFC 5952: lower case, the longest run of zeros, two groups at least, as ::.
function addressText(rdata) {
  const groups = Array.from({ length: 8 }, (_, index) => rdata.readUInt16BE(2 * index).toString(16));
  const runs = groups.join(":").match(/(?:^|:)(?:0(?::|$)){2,}/g) || [];
  const longest = runs.reduce((best, run) => (run.match(/0/g).length > (best.match(/0/g) || []).length ? run : best), "");
  return longest ? groups.join(":").replace(longest, "::") : groups.join(":");
}

function strings(rdata) {
  const found = [];
  for (let at = 0; at < rdata.length; at += 1 + rdata[at]) {
    let text = "";
    for (const byte of rdata.subarray(at + 1, at + 1 + rdata[at])) {
      const letter = String.fromCharCode(byte);
      if (letter === '"' || letter === "\\") text += `\\${letter}`;
      else text += byte >= 0x20 && byte < 0x7f ? letter : `\\${String(byte).padStart(3, "0")}`;
    }
    found.push(text);
  }
  return found;
}

// One answer in the shape of `cachebus tail --json`.
function shape(answer) {
  const lines = [];
  for (const { owner, type, ttl, rdatas, signatures } of answer.rrsets) {
    for (const rdata of rdatas) lines.push(`${nameText(owner)} ${ttl} IN ${typeText(type)} ${rdataText(type, rdata)}`);
    for (const rdata of signatures) lines.push(`${nameText(owner)} ${ttl} IN RRSIG ${rdataText(46, rdata)}`);
  }
  return {
    origin: answer.origin,
    name: nameText(answer.qname),
    type: typeText(answer.qtype),
    ttl: Math.min(...answer.rrsets.map(({ ttl }) => ttl)),
    evidence: answer.evidence,
    records: lines,
    learned: answer.learned / 1000,
  };
}

module.exports = { shape };
