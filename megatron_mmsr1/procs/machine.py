"""Where a command runs: on this machine, or on another one that a supervisor of ours stands on (`cluster.head`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_mmsr1.procs.child import Child
from megatron_mmsr1.procs.ports import HOST, bind, free_port
from megatron_mmsr1.procs.stacks import RankState


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """A process to start; plain data, so that it can be told to another machine.

    `env` is added to the environment there, `without` is left out of it. `listen`: a host and port (0: any) of a socket that is
    bound there and inherited under the number that follows `--fd`. The rest as `procs.service.Command` has it.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    without: Sequence[str] = ()
    cwd: Path | None = None
    listen: tuple[str, int] | None = None
    shared: Sequence[str] = ()
    grace_s: float = 10.0


class Process(Protocol):
    """A command that was started; `procs.child.Child` on this machine."""

    name: str
    log: Path

    @property
    def pid(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def returncode(self) -> int:
        """Of one that has ended; 128 + n after signal n."""
        ...

    def describe_end(self) -> str: ...
    def why(self) -> str: ...
    def ask_to_end(self) -> None: ...
    def end(self) -> None: ...
    def ranks(self) -> list[RankState]:
        """The ranks below it as they are now, with their stacks."""
        ...


class Machine(Protocol):
    """`address`: where processes of the job reach what listens there. `name`: for messages and names of logs."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...

    def free_port(self) -> int:
        """One that could be bound there just now. Raises RunError."""
        ...

    def launch(self, what: Spawn) -> tuple[Process, int]:
        """Start it; also the port that was bound for it, 0 without `listen`. Raises RunError."""
        ...


class Here:
    """This machine. `address`: by default what listens here is for this machine alone."""

    name = ""

    def __init__(self, address: str = HOST) -> None:
        self.address = address

    def free_port(self) -> int:
        return free_port(self.address)

    def launch(self, what: Spawn) -> tuple[Process, int]:
        env = {k: v for k, v in os.environ.items() if k not in what.without} | dict(what.env)
        with contextlib.ExitStack() as stack:
            argv, inherits, port = [*what.argv], [], 0
            if what.listen is not None:
                sock = stack.enter_context(bind(*what.listen))
                port = sock.getsockname()[1]
                argv, inherits = [*argv, "--fd", str(sock.fileno())], [sock.fileno()]
            child = Child(
                what.name,
                argv,
                log=what.log,
                env=env,
                cwd=what.cwd,
                inherits=inherits,
                shared=what.shared,
                grace_s=what.grace_s,
            )
            return child, port


HERE = Here()
