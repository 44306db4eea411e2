"""Start an SGLang server beside this process: on CUDA as it is, on a CPU with the arguments that its wheel needs there."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.supervisor import HOST, Child, Supervisor, free_port, require_port, tail
from megatron_mmsr1.rollout.engines.sglang import SGLangSettings

# A scheduler with requests in flight does not end on SIGTERM, and holds nothing worth saving.
STOP_GRACE_S = 1.0
NAME = "the engine"
# What torchrun tells its workers would make SGLang join their process group.
_FOREIGN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(slots=True)
class Engine:
    """A server that answers at `url`. A context manager: leaving it stops the server."""

    url: str
    process: Child
    supervisor: Supervisor
    started_s: float  # seconds from launch to the first generated token

    def check(self) -> None:
        """RunError with the log's last lines if the server has ended."""
        self.supervisor.check()

    def stop(self) -> None:
        """End the server with everything it started; harmless if it has ended."""
        if NAME in self.supervisor.children:
            self.supervisor.stop(NAME)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def launch(
    model_path: str | Path,
    cfg: SGLangSettings,
    log: Path,
    *,
    seed: int = 0,
    version: int = 0,
    trains_pictures: bool = False,
    port: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Engine:
    """A server of the checkpoint in `model_path` that has generated a token. It dies with this process.

    `cfg.sglang` holds SGLang's own arguments, which win over ours. `version` is what it answers that its weights are.
    `trains_pictures` turns off SGLang's cache of picture features, which it never clears: neither an update of the weights nor
    a flush does, and a picture seen before would keep the features of the old vision tower. `port` wins over the argument of
    that name. `progress` is called about once a second with the seconds waited. Output goes to `log`; SGLang's arguments to
    `log` with the suffix `.args.json`.

    Raises UsageError for a path without a model or an argument that SGLang refuses; RunError if the port is taken, the server
    dies, or `cfg.startup_timeout_s` passes, with the end of the log.
    """
    config = _model_config(Path(model_path))
    native = dict(cfg.sglang)
    named = port or native.pop("port", None)
    native.pop("port", None)
    port = require_port(int(named), NAME) if named else free_port()
    host = str(native.pop("host", HOST))
    cpu = not has_cuda() if "device" not in native else native["device"] == "cpu"
    arguments = {"model_path": str(model_path), "host": host, "port": port, "random_seed": seed, **_common(config)}
    if version:
        arguments["weight_version"] = str(version)
    arguments |= {**(_cpu() if cpu else {}), **native}
    log.parent.mkdir(parents=True, exist_ok=True)
    spec = log.with_suffix(".args.json")
    spec.write_text(json.dumps(arguments, indent=1))

    supervisor = Supervisor(grace_s=STOP_GRACE_S)
    started = time.monotonic()
    argv = [sys.executable, "-m", "megatron_mmsr1.rollout.engines.sglang.entry", str(spec)]
    child = supervisor.start(
        NAME, ["env", *(f"-u{name}" for name in _FOREIGN), *argv], log=log, env=_environment(cpu, trains_pictures)
    )
    engine = Engine(f"http://{host}:{port}", child, supervisor, 0.0)
    try:
        _wait(engine, cfg.startup_timeout_s, progress)
        engine.started_s = time.monotonic() - started
    except BaseException:  # Ctrl-C included: nothing that we started may stay
        engine.stop()
        raise
    return engine


def _wait(engine: Engine, timeout_s: float, progress: Callable[[float], None] | None) -> None:
    began = time.monotonic()
    shown = 0.0
    child = engine.process
    while not _generates(engine.url):
        waited = time.monotonic() - began
        if child.process.poll() is not None:
            if child.process.returncode == 2:  # argparse, or our own check of the names
                raise UsageError(f"SGLang refuses its arguments; the end of {child.log}:\n{tail(child.log, 3)}")
            raise RunError(child.describe_end())
        if waited > timeout_s:
            raise RunError(
                f"the engine at {engine.url} was not ready within engine.startup_timeout_s={timeout_s:g} s; the end of its log,"
                f" {child.log}:\n{tail(child.log)}"
            )
        if progress and waited - shown >= 1.0:
            shown = waited
            progress(waited)
        time.sleep(0.1)
    # SGLang tries this itself, but before its socket is open when its warm-up is skipped.
    _post(engine.url, "/freeze_gc", {}, timeout_s=10)


def _generates(url: str) -> bool:
    body = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    return _post(url, "/generate", body, timeout_s=60) == 200


def _post(url: str, path: str, body: dict[str, Any], *, timeout_s: float) -> int:
    """The HTTP status, 0 without an answer."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=timeout_s)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


def _common(config: dict[str, Any]) -> dict[str, Any]:
    dtype = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    return {
        # Left to itself SGLang runs a float32 checkpoint in float16.
        "dtype": "float32" if dtype == "float32" else "auto",
        # Its own warm-up wants a chat template that takes a picture, and kills the server if there is none.
        "skip_server_warmup": True,
        # A line a request is thousands a step.
        "log_level_http": "warning",
        # A group's rollouts, and every turn after the first, show the engine pictures that it has processed before.
        "mm_preprocess_cache_size_mb": 256,
    }


def _cpu() -> dict[str, Any]:
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "disable_overlap_schedule": True,
        "enable_deterministic_inference": True,  # honours a request's sampling_seed
        "sleep_on_idle": True,  # an idle scheduler would eat the core that the trainer works on
        "max_total_tokens": 65536,
    }


def _environment(cpu: bool, trains_pictures: bool) -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[4])
    env = {
        "PYTHONPATH": os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "SGLANG_TIMEOUT_KEEP_ALIVE": "600",  # by default a connection idle for 5 seconds is closed, perhaps as it is taken up
    }
    if trains_pictures:
        env["SGLANG_VLM_CACHE_SIZE_MB"] = "0"
    if "SGLANG_CUDA_COREDUMP_BEFORE_CRASH" not in os.environ:
        # Else an engine that lost a process waits a minute for core dumps, and goes on taking requests meanwhile.
        env["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] = "0"
    if "SGLANG_PYSPY_DUMP_BEFORE_CRASH" not in os.environ:
        env["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] = "0"
    if cpu:
        env |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            # Models that fit a CPU gain nothing from a second thread, and the trainer wants its core.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
            "TORCHDYNAMO_DISABLE": "1",  # compiling would want a C++ compiler and most of the start-up time
        }
    return env


def _model_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise UsageError(f"{path}: no Hugging Face checkpoint there (config.json is missing)")
    return json.loads((path / "config.json").read_text())


def has_cuda() -> bool:
    """Whether engines run on GPUs here."""
    import torch

    return torch.cuda.is_available()
