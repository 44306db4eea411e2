"""A process that receives named tensors as an engine would: it copies each into memory of its own and says what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from megatron_mmsr1.errors import RunError


class Receiver:
    """The trainer's side: as much of an engine's `Control` as an update of weights asks for. Tensors of the CPU go through
    shared memory, those of a GPU as CUDA IPC handles; both are what torch.multiprocessing makes of a tensor in a message."""

    def __init__(self, device: str) -> None:
        from torch import multiprocessing

        multiprocessing.set_sharing_strategy("file_system")  # the one that SGLang's control uses
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, device), daemon=True)
        self._process.start()
        theirs.close()
        self.url = f"receiver:{self._process.pid}"
        self._ask("checksum")  # it has imported torch

    def pause(self, mode: str = "abort") -> None:
        """It samples nothing."""

    def resume(self) -> None:
        """It samples nothing."""

    def begin(self, version: int) -> None:
        """It takes tensors at any time."""

    def send(self, tensors: Sequence[tuple[str, Any]]) -> None:
        self._ask("take", [(name, t.detach()) for name, t in tensors])

    def end(self, version: int) -> None:
        self._ask("end", version)

    def version(self) -> int:
        return self._ask("version")

    def checksum(self) -> str:
        return self._ask("checksum")

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _ask(self, what: str, value: Any = None) -> Any:
        try:
            self._pipe.send((what, value))
            ok, answer = self._pipe.recv()
        except (EOFError, OSError) as e:
            raise RunError(f"{self.url} has ended ({e!r})") from e
        if not ok:
            raise RunError(f"{self.url}: {answer}")
        return answer


def digest(tensors: dict[str, str]) -> str:
    """Of what each tensor is, by `fingerprint`."""
    return hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest()


def fingerprint(tensor: Any) -> str:
    """Type, shape and the sum of all bytes."""
    import torch

    total = tensor.contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64)
    return f"{tensor.dtype} {list(tensor.shape)} {int(total)}"


def _serve(pipe: Connection, device: str) -> None:
    import torch
    from torch import multiprocessing

    multiprocessing.set_sharing_strategy("file_system")
    held: dict[str, Any] = {}
    version = 0
    while True:
        try:
            what, value = pipe.recv()
        except EOFError:
            return
        except RuntimeError as e:  # a handle that this process cannot open
            pipe.send((False, f"{type(e).__name__}: {e}"))
            continue
        answer: Any = None
        if what == "take":
            for name, tensor in value:
                if name not in held:
                    held[name] = torch.empty_like(tensor, device=device)
                held[name].copy_(tensor)
            if device != "cpu":
                torch.cuda.synchronize()
        elif what == "end":
            version = value
        elif what == "version":
            answer = version
        elif what == "checksum":
            answer = digest({name: fingerprint(t) for name, t in held.items()})
        value = None  # the sender may free what it sent once it has the answer
        pipe.send((True, answer))
