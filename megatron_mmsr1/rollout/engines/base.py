"""The engine seam's interface: how an engine is started, how turns are sampled from it, how its weights are changed.

Three objects, because three different processes hold them. Whoever starts the run makes a `procs.service.Service` of
`Engine.command`; the rollout worker samples through a `Client`; the trainer changes weights through one `Control` an engine.
An engine that serves over HTTP writes a `Wire` and gets its `Client` from `rollout.engine.EngineClient`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from megatron_mmsr1.config import EngineConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.machine import HERE, Machine
from megatron_mmsr1.procs.service import Command
from megatron_mmsr1.rollout.generation import Generation, OnTokens

if TYPE_CHECKING:
    import torch

# What happens to turns that run when generation is paused: they end as aborted and are asked again; they go back to the queue
# and their prefix is computed anew; they stand still and go on over the cache of the old weights.
PauseMode = Literal["abort", "retract", "in_place"]


class Unreachable(RunError):
    """Nothing answers at an engine's address."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to sample. `ids` hold one image pad for each of `images` (encoded pictures), in order.

    A log-prob that an engine returns is log_softmax(logits / temperature) over the vocabulary without `banned_ids`; at
    temperature 0 the best token is taken and its log-prob is the one of temperature 1. `stop_ids` end the turn and stay in it.
    `seed` (63 bits), ids, pictures and weights decide what is sampled, if the engine samples deterministically.
    """

    ids: Sequence[int]
    images: Sequence[bytes]
    max_new_tokens: int
    temperature: float
    seed: int
    banned_ids: Sequence[int] = ()
    stop_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine says that it holds; `version` 0: weights that nobody published to it."""

    path: Path | None  # the checkpoint loaded last, as the engine names it; None: it does not say
    version: int
    tokenizer: Path | None = None  # the directory that its tokenizer was read from; None: the same as the checkpoint
    architecture: str = ""  # the model class in the checkpoint's config.json; "": it does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What an engine is started with: it serves the checkpoint in `model` as `version`, and writes what it says to `log`.

    `settings` are the part's own `Settings`. `trains_pictures`: the run updates the vision tower or its merger, so no feature
    of a picture may outlive an update. `follow`: the run's directory for weights; started again, the engine serves what was
    published there last (`sync.published`). `place`: how many engines of this machine come before it; its port, where one is
    set, and its devices come after theirs. `machine`: where it runs, and on which address others reach it. `gpus`: its devices
    there; default: those after the ones of the engines before it. `releases`: it must be able to give their memory back.
    `streams`: most turns are streamed.
    """

    model: Path
    settings: Any
    log: Path
    seed: int = 0
    version: int = 0
    trains_pictures: bool = False
    follow: Path | None = None
    place: int = 0
    machine: Machine = HERE
    gpus: Sequence[int] | None = None
    releases: bool = False
    streams: bool = False

    @property
    def devices(self) -> dict[str, str]:
        """Of the environment: the process sees no other GPU."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))}


class Sampler(Protocol):
    """Anything that samples a turn: a client, one of its conversations, a scripted policy."""

    async def generate(
        self,
        engine_ids: Sequence[int],
        images: Sequence[bytes],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        banned_ids: Sequence[int] = (),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Sample one turn (see `Turn`). Raises EngineError; a cancelled call is aborted in the engine."""
        ...


class Client(Sampler, Protocol):
    """Samples turns from one or several engines that hold the same weights. Belongs to one event loop."""

    def conversation(self, group: str) -> Sampler:
        """Its turns go to one engine while it is well; near others of `group`."""
        ...

    def expect(self, version: int | None) -> None:
        """From now on turns are answered with weights of this version where there is more than one engine: one that was started
        again may hold older ones, until the next update. None: with any."""
        ...

    async def close(self) -> None: ...


class Wire(Protocol):
    """How one kind of engine speaks HTTP: a turn as a request, its answer as a Generation."""

    generate_path: str
    # Answers 200 while the engine generates; within seconds, whatever else it is busy with.
    health_path: str

    def request(self, turn: Turn, request_id: str, *, stream: bool) -> bytes:
        """The JSON body of a generate request that `abort` can name."""
        ...

    def read(self, url: str, status: int, answer: Any, seconds: float, raw: bytes = b"") -> Generation:
        """The answer's JSON (None: it is none, see `raw`) as a Generation. Raises EngineError for an error, an abort, or what
        does not hold together."""
        ...

    async def gather(self, lines: AsyncIterator[bytes], on_tokens: OnTokens) -> Any:
        """A streamed answer's lines put together to the JSON that `read` takes, new ids told as they come."""
        ...

    def abort(self, request_id: str) -> tuple[str, dict[str, Any]]:
        """Path and body of the request that ends another."""
        ...


class Control(Protocol):
    """One engine, from the trainer's side. Every method blocks and raises RunError that names the engine and its reason;
    Unreachable where nothing answers at its address.

    An update is `load` (a checkpoint on a disk that the engine reads) or `begin`, `send` as often as needed, `end`. After an
    update that raised, the engine's weights are unknown: they may be the old ones, the new ones or a mixture, and whoever
    updates must pause it, load whole weights and compare checksums (`sync.update` does). Both drop every cache that was
    computed from the old weights: prefixes, and features of pictures.
    """

    url: str

    def health(self) -> None:
        """Returns once the engine has generated a token."""
        ...

    def served(self) -> Served: ...

    def version(self) -> int:
        """Of the weights that the next token is sampled with, by sampling one."""
        ...

    def pause(self, mode: PauseMode = "abort") -> None:
        """From its return on no token is sampled; new turns wait."""
        ...

    def resume(self) -> None: ...

    def abort(self) -> None:
        """End every turn that runs."""
        ...

    def load(self, directory: Path, version: int) -> None:
        """Take all weights from the Hugging Face checkpoint in `directory`, which the engine reads under the same path."""
        ...

    def begin(self, version: int) -> None: ...

    def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Some whole tensors by their Hugging Face names, on the CPU or on a device that the engine can reach."""
        ...

    def end(self, version: int) -> None:
        """All tensors were sent: they are what the engine serves from now on, under `version`."""
        ...

    def checksum(self) -> str:
        """Of the weights that the engine holds; equal for equal weights in engines of one layout. "" if it cannot tell."""
        ...

    def flush(self) -> None:
        """Drop cached prefixes."""
        ...

    def release(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        """Give device memory back while the trainer needs it; paused before. RunError where the engine cannot. Given back,
        weights are lost: until `reclaim` and an update the engine says no version of ours."""
        ...

    def reclaim(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        """Take it again; weights must be updated after that. Nothing, where the engine has given nothing back: it may have been
        started again since."""
        ...


@runtime_checkable
class SaysAttention(Protocol):
    """A control whose engine tells by which kernels it attends."""

    def attention(self) -> str:
        """As the engine calls them. Raises RunError."""
        ...


class Engine(Protocol):
    """A part of the seam. `Settings` are the keys of the config's section `engine` while `engine.name` names this part."""

    @property
    def Settings(self) -> type[EngineConfig]: ...

    def command(self, launch: Launch) -> Command:
        """The process that serves; `ready` once it has generated a token. Whoever starts it may start it again, at the same
        URL. Raises UsageError for what the person can mend, RunError for a port that is taken."""
        ...

    def client(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = 300.0,
        retries: int = 2,
        stop_ids: Sequence[int] = (),
        hung_after_s: float = 120.0,
        outage_s: float = 0.0,
    ) -> Client:
        """See `rollout.engine.EngineClient` for the arguments."""
        ...

    def control(self, url: str, *, timeout_s: float = 600.0) -> Control: ...
