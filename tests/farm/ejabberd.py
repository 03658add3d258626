"""A cluster of ejabberd nodes as the broker: MQTT 5, each node on a loopback port. Knows nothing of cachebus.

Erlang's nodes find each other through a port mapper, epmd; the cluster has one of its own, on a port of its own, so
that nothing is left running and no other Erlang on this machine is met.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.farm.process import Process, eventually
from tests.servers import find, free_port

JOIN_DEADLINE = 30.0
"""Seconds in which a node has to have joined: it restarts its database for that."""
_COOKIE = "farm"


class Epmd(Process):
    """Erlang's port mapper, in the foreground."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "epmd")
        self.port = free_port()

    def environment(self) -> Mapping[str, str]:
        return os.environ | {"ERL_EPMD_PORT": str(self.port), "ERL_EPMD_ADDRESS": "127.0.0.1"}

    def command(self) -> Sequence[str]:
        return ["epmd"]

    def is_ready(self) -> bool:
        return _listens(self.port)


class Ejabberd(Process):
    """One node. Any username of the form NAME@localhost is let in, with any password."""

    def __init__(self, directory: Path, *, name: str, epmd: Epmd) -> None:
        super().__init__(directory, name)
        self.epmd = epmd
        self.port = free_port()

    @property
    def node(self) -> str:
        """Its name among Erlang's."""
        return f"{self.name}@localhost"

    def url(self) -> str:
        """As a transport's `url`."""
        return f"mqtt://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        (self.directory / "ejabberd.yml").write_text(
            "hosts: [localhost]\nloglevel: warning\nauth_method: [anonymous]\nanonymous_protocol: login_anon\n"
            "allow_multiple_connections: true\n"
            f'listen:\n  - {{port: {self.port}, ip: "127.0.0.1", module: mod_mqtt, max_payload_size: 400000}}\n'
            "modules:\n  mod_mqtt:\n"
            '    access_publish: {"cachebus/#": [{allow: all}]}\n'
            '    access_subscribe: {"cachebus/#": [{allow: all}]}\n'
        )

    def environment(self) -> Mapping[str, str]:
        return self.epmd.environment() | {
            "EJABBERD_CONFIG_PATH": str(self.directory / "ejabberd.yml"),
            "EJABBERD_LOG_PATH": str(self.directory / "ejabberd.log"),
            "ERL_CRASH_DUMP": str(self.directory / "erl_crash.dump"),
            "ERL_LIBS": _libraries(),
            "HOME": str(self.directory),
        }

    def command(self) -> Sequence[str]:
        database = f'"{self.directory / "database"}"'
        return ["erl", "-noinput", *self._names(self.name), "-mnesia", "dir", database, "-s", "ejabberd"]

    def is_ready(self) -> bool:
        """The port opens before the rest of it stands; a join in between fails."""
        return _listens(self.port) and "{ejabberd," in self.ask("application:which_applications()")

    def join(self, other: Ejabberd) -> None:
        """Make one cluster of two nodes; what this one knew is forgotten."""
        answer = self.ask(f"ejabberd_cluster:join('{other.node}')")
        assert "ok" in answer, answer
        eventually(lambda: other.node in self.ask("mnesia:system_info(running_db_nodes)"), JOIN_DEADLINE, "joined")
        eventually(self.is_ready, JOIN_DEADLINE, "ready again")

    def ask(self, expression: str) -> str:
        """What an Erlang expression gives when this node evaluates it."""
        code = (
            f"{{ok,T,_}}=erl_scan:string({_quoted(expression + '.')}),{{ok,E}}=erl_parse:parse_exprs(T),"
            f"io:format(\"~p\",[rpc:call('{self.node}',erl_eval,exprs,[E,[]])]),halt()."
        )
        arguments = [*self._names(f"ask-{os.getpid()}"), "-hidden", "-eval", code]
        erl = find("erl")
        assert erl
        done = subprocess.run(
            [erl, "-noinput", *arguments], env=dict(self.environment()), capture_output=True, text=True, timeout=30
        )
        return done.stdout + done.stderr

    def _names(self, name: str) -> list[str]:
        address = "{127,0,0,1}"
        return ["-sname", f"{name}@localhost", "-setcookie", _COOKIE, "-kernel", "inet_dist_use_interface", address]


class EjabberdCluster:
    """Two nodes that are one broker; entered they run, left they are gone."""

    def __init__(self, directory: Path) -> None:
        self.epmd = Epmd(directory)
        self.nodes = tuple(Ejabberd(directory, name=name, epmd=self.epmd) for name in ("first", "second"))
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.epmd)
            for node in self.nodes:
                stack.callback(node.kill)  # nothing of it is needed again, and a clean end takes seconds
                node.prepare()
                node.launch()
            for node in self.nodes:
                eventually(node.is_ready, JOIN_DEADLINE, f"{node.name} is ready")
            self.nodes[1].join(self.nodes[0])
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.3):
            return True
    except OSError:
        return False


def _libraries() -> str:
    """Where Debian put ejabberd: its control script knows."""
    script = find("ejabberdctl")
    assert script
    found = re.search(r"^ERL_LIBS='?([^'\n]+)'?$", Path(script).read_text(), re.MULTILINE)
    assert found, f"{script} names no ERL_LIBS"
    return found[1]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
