// node subscribe.js mqtt://HOST:PORT/CLUSTER KEYFILE [COUNT]
//
// Prints what the nodes of a cachebus cluster share over MQTT, as JSON lines in the shape of `cachebus tail --json`.
// What does not authenticate, is not new or not well-formed is refused and named on standard error, each reason once.
"use strict";

const fs = require("node:fs");
const mqtt = require("mqtt");
const { Receiver, Refused } = require("./envelope.js");
const { shape } = require("./records.js");

const [address, keyFile, count = Infinity] = process.argv.slice(2);
if (!keyFile) {
  console.error("usage: node subscribe.js mqtt://HOST:PORT/CLUSTER KEYFILE [COUNT]");
  process.exit(2);
}
const url = new URL(address);
const cluster = url.pathname.slice(1) || "default";
url.pathname = "";

const receiver = new Receiver(fs.readFileSync(keyFile, "utf8"), cluster, Date.now());
const refused = new Map();
let printed = 0;

const client = mqtt.connect(url.href, { protocolVersion: 5, clean: true });
client.on("connect", () => client.subscribe(`cachebus/${cluster}/v1/+`, { qos: 0 }, () => console.error("subscribed")));
client.on("error", (error) => console.error(`subscribe.js: ${error.message}`));
client.on("message", (topic, data, packet) => {
  try {
    if (packet.retain) throw new Refused("retained");
    for (const answer of receiver.open(data, Date.now())) {
      if (printed++ < count) console.log(JSON.stringify(shape(answer)));
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (!refused.has(error.message)) console.error(`subscribe.js: refused a message: ${error.message}`);
    refused.set(error.message, (refused.get(error.message) || 0) + 1);
  }
  if (printed >= count) end();
});
process.once("SIGINT", end).once("SIGTERM", end);

function end() {
  if (receiver.streams.gaps) console.error(`subscribe.js: ${receiver.streams.gaps} messages never came`);
  client.end();
}
