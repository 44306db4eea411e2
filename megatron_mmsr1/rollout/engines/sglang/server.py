"""Start an SGLang server beside this process: on CUDA as it is, on a CPU with the arguments that its wheel needs there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.http import Unanswered, answers, get, post
from megatron_mmsr1.procs.liveness import pace
from megatron_mmsr1.procs.machine import Here
from megatron_mmsr1.procs.ports import require_port
from megatron_mmsr1.procs.service import Command
from megatron_mmsr1.rollout.engines.base import Launch
from megatron_mmsr1.rollout.engines.sglang.control import RELEASED
from megatron_mmsr1.rollout.engines.sglang.settings import SGLangSettings

# A scheduler with requests in flight does not end on SIGTERM, and holds nothing worth saving.
STOP_GRACE_S = 1.0
NAME = "the engine"
_SHARED = ("sglang_loads_", "sgl_shm")  # beginnings of the names in /dev/shm that SGLang leaves there whenever it ends
FOLLOW = "follow"  # an argument of ours among SGLang's (entry.py)
# What torchrun tells its workers would make SGLang join their process group.
_FOREIGN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def command(launch: Launch) -> Command:
    """A server of the checkpoint in `launch.model`.

    `settings.sglang` holds SGLang's own arguments, which win over ours. `trains_pictures` turns off SGLang's cache of picture
    features, which it never clears: neither an update of the weights nor a flush does, and a picture seen before would keep the
    features of the old vision tower. SGLang's arguments are written beside the log, with the suffix `.args.json`.

    Raises UsageError for a path without a model, RunError if the port is taken.
    """
    cfg: SGLangSettings = launch.settings
    config = _model_config(launch.model)
    native = dict(cfg.sglang)
    named = native.pop("port", None)
    here = isinstance(launch.machine, Here)
    port = int(named) + launch.place if named else launch.machine.free_port()
    if named and here:
        require_port(port, NAME)
    host = str(native.pop("host", launch.machine.address))
    cpu = not (launch.gpus or has_cuda()) if "device" not in native else native["device"] == "cpu"
    arguments = {
        "model_path": str(launch.model.resolve()),  # it tells others what it serves
        "host": host,
        "port": port,
        "random_seed": launch.seed,
        **_common(config),
    }
    if launch.version:
        arguments["weight_version"] = str(launch.version)
    if launch.follow is not None:
        arguments[FOLLOW] = str(launch.follow.resolve())
    if launch.streams:
        # The ids that are new with each event, instead of all so far: the events of a long turn stay short.
        arguments["incremental_streaming_output"] = True
    arguments |= {**(_cpu() if cpu else _gpus(launch, native)), **native}
    if launch.releases and not cpu:
        arguments.setdefault("enable_memory_saver", True)
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    spec = launch.log.with_suffix(".args.json")
    spec.write_text(json.dumps(arguments, indent=1))
    every_s, answer_s = pace(cfg.hung_after_s)

    def alive(url: str) -> bool:
        """It samples a token, unless it is sampling others'. One paused for an update answers nothing: the limit must be
        longer than an update takes. One without its memory answers nothing for as long as the trainer has it."""
        return (launch.releases and _has_released(url, answer_s)) or answers(f"{url}/health_generate", timeout_s=answer_s)

    return Command(
        name=NAME,
        argv=[sys.executable, "-m", "megatron_mmsr1.rollout.engines.sglang.entry", str(spec)],
        log=launch.log,
        url=f"http://{host}:{port}",
        env={**_environment(cpu, launch.trains_pictures), **launch.devices},
        without=_FOREIGN,
        ready=_ready,
        ready_within_s=cfg.startup_timeout_s,
        ready_setting="engine.startup_timeout_s",
        alive=alive,
        alive_every_s=every_s,
        hung_after_s=cfg.hung_after_s,
        refusal="SGLang refuses its arguments",
        shared=_SHARED,
        grace_s=STOP_GRACE_S,
        machine=launch.machine,
    )


def _gpus(launch: Launch, native: dict[str, Any]) -> dict[str, Any]:
    """Those after the ones of the engines before it, where it is not told."""
    if launch.gpus is not None or not launch.place:
        return {}
    a = {k: int(native.get(k) or 1) for k in ("tp_size", "pp_size", "dp_size")}
    each = a["tp_size"] * a["pp_size"] * (1 if native.get("enable_dp_attention") else a["dp_size"])
    return {"base_gpu_id": launch.place * each}


def _ready(url: str) -> bool:
    """Whether it generates. Its own warm-up is skipped, and with it the end of that: freezing the garbage collector."""
    body = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    if not _accepts(url, "/generate", body, timeout_s=60):
        return False
    _accepts(url, "/freeze_gc", {}, timeout_s=10)
    return True


def _has_released(url: str, timeout_s: float) -> bool:
    try:
        said = get(f"{url}/model_info", timeout_s=timeout_s)
        return said.ok and said.json().get("weight_version") == RELEASED
    except Unanswered:
        return False


def _accepts(url: str, path: str, body: dict[str, Any], *, timeout_s: float) -> bool:
    try:
        return post(url + path, body, timeout_s=timeout_s).ok
    except Unanswered:
        return False


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
        # Gloo and the rendezvous store (entry.py) listen for this machine alone, unless the person says where.
        **({} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"}),
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
