"""Somebody else's MQTT client: publishes whatever it likes, and shows every message with all that MQTT says of it."""

from __future__ import annotations

import ssl
import threading
from types import TracebackType
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.farm.process import eventually

DEADLINE = 10.0
"""Seconds in which a broker of the farm answers."""


class Client:
    """Connected once entered; `messages` holds what came, oldest first."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, name: str = "stranger") -> None:
        self.messages: list[mqtt.MQTTMessage] = []
        self._port = port
        self._subscribed = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False
        )
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.on_message = lambda client, data, message: self.messages.append(message)
        self._client.on_subscribe = lambda *arguments: self._subscribed.set()

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        eventually(self._client.is_connected, DEADLINE, "the broker welcomes a stranger")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, topics: str) -> None:
        """Wait until the broker has agreed."""
        self._subscribed.clear()
        self._client.subscribe(topics, options=SubscribeOptions(qos=1, retainAsPublished=True))
        assert self._subscribed.wait(DEADLINE), "the broker does not answer"

    def publish(self, topic: str, data: bytes, *, retain: bool = False) -> None:
        """Wait until the broker has it; whether it does anything with it is its own affair."""
        self._client.publish(topic, data, qos=1, retain=retain).wait_for_publish(DEADLINE)
