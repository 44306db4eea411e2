"""The first node's side of a job: the other nodes' supervisors as machines on which commands are started."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from megatron_mmsr1.cluster.agent import written
from megatron_mmsr1.cluster.wire import Line, Lost
from megatron_mmsr1.errors import Interrupted, RunError
from megatron_mmsr1.procs.machine import Spawn
from megatron_mmsr1.procs.ports import bind
from megatron_mmsr1.procs.stacks import RankState

ANSWER_S, END_EXTRA_S = 60.0, 15.0
LOST_CODE = 255


class RemoteProcess:
    """A command on another node (`procs.machine.Process`)."""

    def __init__(self, node: RemoteNode, number: int, what: Spawn, pid: int) -> None:
        self.name, self.log, self.grace_s, self.pid = what.name, what.log, what.grace_s, pid
        self._node, self._number = node, number
        self._end: dict[str, Any] | None = None
        self._over = threading.Event()

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    @property
    def returncode(self) -> int:
        """128 + n after signal n; 255 where the node was lost."""
        self._over.wait()
        return int(self._end["code"]) if self._end else LOST_CODE

    def describe_end(self) -> str:
        return str(self._end["said"]) if self._end else f"{self.name} is lost with {self._node}"

    def why(self) -> str:
        return str(self._end["why"]) if self._end else f"{self._node} is lost."

    def ranks(self) -> list[RankState]:
        return [RankState(**r) for r in self._node.ask("ranks", process=self._number)["ranks"]]

    def ask_to_end(self) -> None:
        with contextlib.suppress(Lost):  # then it has ended
            self._node.tell("end", process=self._number)

    def end(self) -> None:
        """And wait for it; a node that does not answer ends what it runs itself."""
        if not self.ended:
            self.ask_to_end()
            self._over.wait(self.grace_s + END_EXTRA_S)

    def has_ended(self, how: dict[str, Any] | None) -> None:
        """Told by the node's reader; None: the node is lost."""
        self._end = how
        self._over.set()


class RemoteNode:
    """One supervisor that has joined (`procs.machine.Machine`)."""

    def __init__(self, line: Line, who: dict[str, Any]) -> None:
        self.name, self.step, self.address = str(who["node"]), str(who["step"]), str(who["address"])
        self.lost: str = ""  # why, once it is
        self._line = line
        self._numbers = itertools.count(1)
        self._processes: dict[int, RemoteProcess] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._done = threading.Event()
        for target in (self._read, lambda: line.beat(self._done)):
            threading.Thread(target=target, daemon=True, name=f"node {self.name}").start()

    def __str__(self) -> str:
        return f"node {self.name} (step {self.step}{': ' + self.lost if self.lost else ''})"

    def free_port(self) -> int:
        return int(self.ask("free_port", host=self.address)["port"])

    def launch(self, what: Spawn) -> tuple[RemoteProcess, int]:
        number = next(self._numbers)
        process = RemoteProcess(self, number, what, 0)
        with self._changed:
            self._processes[number] = process
        answer = self.ask("launch", process=number, launch=written(what))
        process.pid = int(answer["pid"])
        return process, int(answer["port"])

    def tell(self, what: str, **rest: Any) -> None:
        self._line.send({"what": what, **rest})

    def ask(self, what: str, **rest: Any) -> dict[str, Any]:
        """Raises RunError for an answer that is an error, or none."""
        number = next(self._numbers)
        try:
            self.tell(what, id=number, **rest)
        except Lost as e:
            raise RunError(f"{self} is lost: {e}") from None
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self.lost, ANSWER_S)
            answer = self._answers.pop(number, None)
        if answer is None:
            raise RunError(f"{self} {'is lost' if self.lost else f'did not answer within {ANSWER_S:.0f} s'} ({what})")
        if "error" in answer:
            raise RunError(f"{self}: {answer['error']}")
        return answer

    def leave(self) -> None:
        """The job is done: it ends what it runs, and itself."""
        with contextlib.suppress(Lost):  # it has left
            self.tell("leave")
        self._done.set()
        self._line.close()

    def _read(self) -> None:
        try:
            for message in self._line.received():
                with self._changed:
                    if message["what"] == "ended":
                        self._processes.pop(message["process"]).has_ended(message)
                    else:
                        self._answers[message["id"]] = message
                    self._changed.notify_all()
        except Lost as e:
            with self._changed:
                self.lost = str(e)
                for process in self._processes.values():
                    process.has_ended(None)
                self._changed.notify_all()


class Head:
    """Listens for the nodes of the job. A context manager: leaving it sends them away, which ends all that they run."""

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._secret = secret
        self._socket = bind(host, port)
        self._socket.listen(512)
        self.nodes: dict[tuple[str, str], RemoteNode] = {}  # by step and node
        self.refused = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True, name="head").start()

    def wait_for(self, steps: Iterable[tuple[str, list[str]]], timeout_s: float) -> None:
        """Until each node of each step has joined. Raises RunError that names those that have not."""
        wanted = {(step, node) for step, names in steps for node in names}
        with self._changed:
            self._changed.wait_for(lambda: wanted <= self.nodes.keys(), timeout_s)
        missing = sorted(f"{node} (step {step})" for step, node in wanted - self.nodes.keys())
        if missing:
            raise RunError(
                f"after {timeout_s:.0f} s {len(missing)} of {len(wanted)} nodes have not joined: {', '.join(missing[:8])}; see "
                "the logs of their steps (placement.join_timeout_s)"
            )

    def check(self) -> None:
        """Raises Interrupted once a node is lost."""
        for node in self.nodes.values():
            if node.lost:
                raise Interrupted(f"{node} is lost: the same command goes on from the latest checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for node in self.nodes.values():
            node.leave()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return  # it was closed
            threading.Thread(target=self._greet, args=(sock,), daemon=True).start()

    def _greet(self, sock: socket.socket) -> None:
        line = Line(sock)
        try:
            who = line.greet_node(self._secret)
            node = RemoteNode(line, who)
        except (Lost, KeyError, TypeError, ValueError):
            self.refused += 1
            line.close()
            return
        with self._changed:
            self.nodes[node.step, node.name] = node
            self._changed.notify_all()
