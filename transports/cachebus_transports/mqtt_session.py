"""One stay at a broker, from CONNECT to the end of the connection: paho's client, set up as we need it.

Decides the words of the protocol: clean start, no session kept, no-local subscription, message expiry, last will, the
broker's own limits. Does not decide when to come back, what waits, or what a message means.

A client of paho's serves one connection only. So nothing of an old connection reaches a new one: no half packet, no
message that paho would repeat by itself, no protocol version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import cast

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cachebus_transports.mqtt_link import MAX_PACKET, Link
from cachebus_transports.mqtt_options import MqttOptions
from cachebus_transports.mqtt_packet import decode_publish

MAX_IN_FLIGHT = 200
"""QoS 1 messages under way at once, where the broker allows as many (Receive Maximum)."""
MAX_IN_FLIGHT_V3 = 20
"""The same with MQTT 3.1.1, which has no word for it: what brokers commonly take."""
RECEIVE_MAXIMUM = 1000
"""QoS 1 messages that a broker may have under way to us."""
MAX_UNWRITTEN = 10_000
"""Acknowledgements that may wait while the broker reads nothing; one that still goes on sending is left."""
EXPIRY = 60
"""Message Expiry Interval in seconds: no receiver takes an envelope that is older."""
CONTENT_TYPE = "application/vnd.cachebus.v1"
"""Tells other tools on the broker that this is not text."""
TICK = 1.0
"""Seconds between two looks at the keepalive."""
LONGEST_REASON = 200
"""Characters shown of what a broker says of itself."""
_HEADER = 16
"""Bytes of a PUBLISH beside topic, properties and message, rounded up: 5 of fixed header, 2 of length, 2 of ID."""
_FROM_BROKERS = frozenset({0x20, 0x40, 0x90, 0xD0, 0xE0})
"""First bytes of CONNACK, PUBACK, SUBACK, PINGRESP and DISCONNECT. Others paho would answer, one by one, for ever."""
_UNSUPPORTED = "Unsupported protocol version"


class End(Enum):
    """Why a stay is over, as far as it decides what comes next."""

    LOST = "lost"
    """The connection ended, or was never made."""
    UNSUPPORTED = "unsupported"
    """The broker does not speak this version of MQTT, or closed without a word, as some then do."""
    REFUSED = "refused"
    """The broker answered that it will not have us."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a broker allows."""

    max_packet: int
    in_flight: int
    qos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Whom a session tells what happens. Nothing here may raise."""

    message: Callable[[bytes, bytes, bool], None]
    """Topic, payload, and whether it was retained."""
    acknowledged: Callable[[int, bool], None]
    """Message ID of a QoS 1 message, and whether the broker took it."""
    room: Callable[[], None]
    """More may be published."""


class _Client(mqtt.Client):
    """paho's client on a connection that stands already: its own way to make one keeps everybody waiting."""

    def __init__(self, link: Link, options: MqttOptions, version: MQTTProtocolVersion) -> None:
        self._link = link
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if version is MQTTProtocolVersion.MQTTv5 else True,
            protocol=version,
            reconnect_on_failure=False,
            manual_ack=True,
        )

    def _create_socket(self) -> Link:
        return self._link


class _Packed:
    """Properties that are packed once: paho asks them for nothing but `pack`, and takes 20 us to do it anew."""

    def __init__(self, properties: Properties) -> None:
        self._packed: bytes = properties.pack()  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        return self._packed


class Session:
    """One stay. `open` the link, `greet` the broker, then `publish`, until `link.lost` is done."""

    def __init__(self, options: MqttOptions, version: MQTTProtocolVersion, events: Events) -> None:
        self._options = options
        self._events = events
        self._v5 = version is MQTTProtocolVersion.MQTTv5
        self.version = version
        self.reason = ""
        """What the broker said when it refused us or sent us away, else empty."""
        self.welcome = Welcome(MAX_PACKET, 0, 0)
        self.link = Link(self)
        self._properties: dict[int, Properties] = {}
        self._outcome: asyncio.Future[End | None] = asyncio.get_running_loop().create_future()
        self._ready = False
        self._unwritten = 0
        self.subscribed = False
        """The broker lets us read."""
        self._client = self._make_client(version)

    def _make_client(self, version: MQTTProtocolVersion) -> _Client:
        options = self._options
        client = _Client(self.link, options, version)
        if options.username is not None:
            client.username_pw_set(options.username, options.password)
        if options.will is not None:
            properties = _expiring(EXPIRY, PacketTypes.WILLMESSAGE) if self._v5 else None
            client.will_set(options.topic, options.will, 0, retain=False, properties=properties)
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        if options.qos:
            client.on_publish = self._on_publish
        client.on_socket_register_write = _leave_to_push
        return client

    async def greet(self) -> End | None:
        """Introduce ourselves and subscribe; None when the broker has us, else why not. The link has to stand."""
        properties = None
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
            properties.MaximumPacketSize = MAX_PACKET
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self._client.connect_async(
            self._options.host,
            self._options.port,
            self._options.keepalive,
            clean_start=True if self._v5 else mqtt.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        self._client.reconnect()
        self.write()
        await asyncio.wait((self._outcome, self.link.lost), return_when=asyncio.FIRST_COMPLETED)
        if self._outcome.done():
            return self._outcome.result()
        # Without a word: brokers of 3.1.1 hang up on a version they do not know.
        return End.LOST if self._ready or not self._v5 else End.UNSUPPORTED

    async def keep(self) -> None:
        """Mind the keepalive until the connection ends."""
        while not self.link.lost.done():
            self._guarded(self._client.loop_misc)
            self.write()
            await asyncio.wait((self.link.lost,), timeout=TICK)

    @property
    def can_publish(self) -> bool:
        """The link takes more."""
        return self.link.open and not self.link.paused

    def fits(self, data: bytes) -> bool:
        """The broker takes a message of this size."""
        return len(data) + len(self._options.topic) + len(CONTENT_TYPE) + 2 * _HEADER <= self.welcome.max_packet

    def publish(self, data: bytes, expiry: int) -> int | None:
        """Publish on our own topic, with `expiry` in seconds; gives the message ID where it will be acknowledged."""
        properties = None
        if self._v5:
            properties = self._properties.get(expiry)
            if properties is None:
                packed = _Packed(_expiring(expiry, PacketTypes.PUBLISH))
                properties = self._properties[expiry] = cast("Properties", packed)
        qos = self.welcome.qos
        info = self._client.publish(self._options.topic, data, qos, retain=False, properties=properties)
        return info.mid if qos else None

    def write(self) -> None:
        """Hand what was published to the kernel."""
        self._guarded(self._client.loop_write)
        self.link.push()

    async def leave(self) -> None:
        """Say goodbye and end the connection. The last will is published here: a broker forgets that of who leaves."""
        if self._ready and self.link.open:
            if self._options.will is not None and self.can_publish:
                self._client.publish(self._options.topic, self._options.will, 0, retain=False)
            self._client.disconnect()
            self.write()
        self.link.close()
        await asyncio.wait((self.link.lost,), timeout=TICK)
        self.link.abort()

    # What paho and the link tell

    def published(self, first: int, body: bytes) -> None:
        """Hand on what somebody published, and acknowledge it where that is asked for."""
        try:
            message = decode_publish(first, body, v5=self._v5)
        except ValueError as error:
            self._break(str(error))
            return
        if not self._ready:
            self._break("a message came before the welcome")
            return
        if message.number:
            self._unwritten += self.link.paused
            if self._unwritten > MAX_UNWRITTEN:
                self._break("it takes no acknowledgements")
                return
            self._client.ack(message.number, 1)
        self._events.message(message.topic, message.payload, message.retained)

    def packet(self, first: int) -> None:
        """Let paho read what else came."""
        if first in _FROM_BROKERS:
            self._guarded(self._client.loop_read)
        else:
            self._break(f"a packet of type {first >> 4}")

    def turn_ends(self) -> None:
        """Write what the received caused, as acknowledgements."""
        if self._client.want_write():
            self.write()

    def room(self) -> None:
        """Go on writing."""
        self._unwritten = 0
        self.write()
        self._events.room()

    def _guarded(self, step: Callable[[], MQTTErrorCode]) -> None:
        """Let paho work. Bytes that it cannot take end the connection, not this process."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 -- a parser of others met bytes of others; what it may raise is not told
            self._break(type(error).__name__)

    def _break(self, why: str) -> None:
        self.reason = f"it does not keep to MQTT: {why}"
        self.link.abort()

    def _on_connect(
        self, client: mqtt.Client, data: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self.reason = _said(reason, properties)
            self._settle(End.UNSUPPORTED if reason == _UNSUPPORTED else End.REFUSED)
            return
        if self._ready:
            self._break("a second welcome")
            return
        self._ready = True
        self.welcome = self._limits(properties)
        everything = self._options.prefix + "+"
        if self._v5:
            # Retained messages are asked for, and told from live ones, so that they are seen, counted and refused.
            wanted = SubscribeOptions(self._options.qos, noLocal=True, retainAsPublished=True, retainHandling=0)
            self._client.subscribe(everything, options=wanted)
        else:
            self._client.subscribe(everything, self._options.qos)

    def _on_subscribe(
        self, client: mqtt.Client, data: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        self.subscribed = not any(reason.is_failure for reason in reasons)
        if not self.subscribed:
            self.reason = "; ".join(_said(reason, properties) for reason in reasons)
        self._settle(None)

    def _on_disconnect(
        self,
        client: mqtt.Client,
        data: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.reason = _said(reason, properties)

    def _on_publish(
        self, client: mqtt.Client, data: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._events.acknowledged(mid, not reason.is_failure)

    def _settle(self, outcome: End | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def _limits(self, properties: Properties | None) -> Welcome:
        """What the broker allows. What it does not say has the protocol's default."""
        qos = min(self._options.qos, getattr(properties, "MaximumQoS", 1))
        if not self._v5:
            return Welcome(MAX_PACKET, MAX_IN_FLIGHT_V3, qos)
        return Welcome(
            max_packet=min(MAX_PACKET, getattr(properties, "MaximumPacketSize", MAX_PACKET)),
            in_flight=min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT)),
            qos=qos,
        )


def _expiring(seconds: int, packet: int) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = seconds
    properties.ContentType = CONTENT_TYPE
    return properties


def _said(reason: ReasonCode, properties: Properties | None) -> str:
    """The broker's words, made fit for a log."""
    text = getattr(properties, "ReasonString", "")
    words = f"{reason}: {text}" if text else str(reason)
    return "".join(letter if letter.isprintable() else "?" for letter in words[:LONGEST_REASON])


def _leave_to_push(client: mqtt.Client, data: object, socket: object) -> None:
    """That paho has something to write. Whoever let it work writes when it is done, all in one piece."""
