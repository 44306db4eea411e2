"""`mmsr1 node`: the supervisor of one node in one step of a job. It starts and ends processes as the first node's process says.

When the connection ends, whatever ends it, everything it started ends, and it exits with 1: Slurm then ends the step.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_mmsr1.cluster.nodes import own_address
from megatron_mmsr1.cluster.wire import HEAD, TOKEN, Line, Lost, head_address, token
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.machine import HERE, Process, Spawn
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.signals import exit_on_signals

JOIN_S, POLL_S, TRY_S = 300.0, 0.1, 1.0


def run(step: str) -> None:
    """Until the first node's process says that the job is done (returns) or is lost (RunError)."""
    where = head_address()
    if where is None:
        raise UsageError(f"{HEAD} must say where the job's first process listens: ADDRESS:PORT")
    node = name()
    line = _connect(where)
    line.greet_head(token(), {"step": step, "node": node, "address": own_address(node)})
    print(f"node {node}, step {step}: joined {where[0]}:{where[1]}", file=sys.stderr, flush=True)
    with exit_on_signals():
        Agent(line).serve()


def name() -> str:
    """As Slurm calls this node, which need not be its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class Agent:
    """The children of one connection."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.children: dict[int, Process] = {}
        self._orders: queue.SimpleQueue[dict[str, Any] | Lost] = queue.SimpleQueue()
        self._done = threading.Event()

    def serve(self) -> None:
        """Obey until told to leave. Raises RunError once the first node is lost; nothing that was started is left."""
        for target in (self._read, lambda: self.line.beat(self._done)):
            threading.Thread(target=target, daemon=True).start()
        try:
            while self._obey():
                self._tell_ends()
        finally:
            self._done.set()
            for child in self.children.values():
                child.ask_to_end()
            for child in self.children.values():
                child.end()
            self.line.close()

    def _read(self) -> None:
        try:
            for message in self.line.received():
                self._orders.put(message)
        except Lost as e:
            self._orders.put(e)

    def _obey(self) -> bool:
        """One order, if one comes in time; False once the job is done."""
        try:
            order = self._orders.get(timeout=POLL_S)
        except queue.Empty:
            return True
        if isinstance(order, Lost):
            raise RunError(f"the job's first process is lost: {order}")
        if order["what"] == "leave":
            return False
        try:
            said = self._do(order)
        except (RunError, OSError) as e:
            said = {"error": str(e)}
        if said is not None:
            self.line.send({"what": "answer", "id": order["id"], **said})
        return True

    def _do(self, order: dict[str, Any]) -> dict[str, Any] | None:
        match order["what"]:
            case "launch":
                child, port = HERE.launch(read(order["launch"]))
                self.children[order["process"]] = child
                return {"pid": child.pid, "port": port}
            case "end":
                self.children[order["process"]].ask_to_end()  # its end is told when it has come
                return None
            case "free_port":
                return {"port": free_port(str(order["host"]))}
            case "ranks":
                return {"ranks": [asdict(r) for r in self.children[order["process"]].ranks()]}
            case other:
                return {"error": f"this node does not know the order {other}"}

    def _tell_ends(self) -> None:
        for number, child in list(self.children.items()):
            if child.ended:
                del self.children[number]
                child.end()  # what a killed guard left
                end = {"code": child.returncode, "said": child.describe_end(), "why": child.why()}
                self.line.send({"what": "ended", "process": number, **end})


def written(what: Spawn) -> dict[str, Any]:
    """A launch as plain JSON; paths are made whole, for the same file system is there."""
    plain = {f.name: getattr(what, f.name) for f in fields(Spawn)}  # not the rest of a `Command`
    return plain | {"log": str(what.log.resolve()), "cwd": str((what.cwd or Path.cwd()).resolve())}


def read(raw: dict[str, Any]) -> Spawn:
    """What `written` wrote. The job's token stays with its supervisors."""
    listen = (raw["listen"][0], raw["listen"][1]) if raw["listen"] else None
    whole: dict[str, Any] = raw | {
        "log": Path(raw["log"]),
        "cwd": Path(raw["cwd"]),
        "listen": listen,
        "without": [*raw["without"], TOKEN, HEAD],
    }
    return Spawn(**whole)


def _connect(where: tuple[str, int]) -> Line:
    """The first process may start later than this one."""
    until = time.monotonic() + JOIN_S
    while True:
        try:
            return Line(socket.create_connection(where, timeout=5))
        except OSError as e:
            if time.monotonic() > until:
                raise RunError(f"nothing listens at {where[0]}:{where[1]} after {JOIN_S:.0f} s ({e})") from None
        time.sleep(TRY_S)
