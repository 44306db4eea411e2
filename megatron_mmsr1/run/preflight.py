"""What can be known to be wrong with a run before its first process starts: said in seconds, and by the launcher.

The ranks check again what they read. Here it is about hours: a row, a shard or a server that is missing should not show after
the engine has loaded, or at step 700.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs import http
from megatron_mmsr1.run.preflight_layout import layout
from megatron_mmsr1.run.preflight_rows import check_rows, prompt_length

TRIES, PAUSE_S, TIMEOUT_S = 3, 1.0, 5.0  # of a server that should run already


def train(cfg: RunConfig) -> None:
    """Raises UsageError or RunError that names the setting, file, row, weight shard, checkpoint shard or port."""
    if cfg.algorithm.supervised:
        raise UsageError(
            f"mmsr1 train wants an algorithm with rollouts (algorithm.name: grpo), not {cfg.algorithm.name}; mmsr1 sft runs a "
            "cold start"
        )
    model(cfg.model.path, "model.path", cfg.model.family)
    pixels(cfg)
    if cfg.algorithm.kl_coef and cfg.model.reference:
        model(cfg.model.reference, "model.reference", cfg.model.family)
    resumes = checkpoint(Path(cfg.output))
    if not cfg.data.train:
        raise UsageError("data.train names no parquet file to train on")
    if cfg.train.mode == "train-only":
        replay(cfg)
    else:
        local_services(cfg)
    layout(cfg)
    if not resumes:  # a run that is resumed was checked when it began
        if cfg.shaping.curriculum.column is not None:
            curriculum(cfg, cfg.shaping.curriculum.column)
        length = prompt_length(cfg)
        check_rows(cfg, cfg.data.train, "data.train", length)
        if cfg.train.mode == "full":
            check_rows(cfg, cfg.data.heldout, "data.heldout", length)


def curriculum(cfg: RunConfig, column: str) -> None:
    """Every row of the training data has its difficulty."""
    from megatron_mmsr1.data.dataset import PromptDataset

    PromptDataset(cfg.data.train).numbers(column)


def sft(cfg: RunConfig) -> None:
    """As `train`, for a cold start."""
    if not cfg.algorithm.supervised:
        raise UsageError(
            f"mmsr1 sft wants a supervised algorithm (algorithm.name: sft), not {cfg.algorithm.name}; mmsr1 train runs GRPO"
        )
    model(cfg.model.path, "model.path", cfg.model.family)
    layout(cfg)
    checkpoint(Path(cfg.output))
    if not cfg.sft.drawn and not Path(cfg.sft.source).is_file():
        raise UsageError(f"sft.source: no file of demonstrations at {cfg.sft.source}")


def evaluate(cfg: RunConfig, *, engine: bool) -> None:
    """As `train`, for `mmsr1 eval`; scripted policies do without an `engine`, but read and write the model's tokens."""
    model(cfg.model.path, "model.path", cfg.model.family)
    pixels(cfg)
    local_services(cfg, engine=engine)
    if not cfg.data.heldout:
        raise UsageError("data.heldout names no parquet file to evaluate on")
    check_rows(cfg, cfg.data.heldout, "data.heldout", prompt_length(cfg))


def model(path: str, key: str, family: str | None = None) -> None:
    """The checkpoint directory is of a known family, each of its shards is whole, and it has a tokenizer and a processor."""
    from megatron_mmsr1.models import of_checkpoint
    from megatron_mmsr1.sync.checkpoint import tensors

    directory = Path(path)
    if not directory.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise UsageError(
            f"{key}: there is no directory {path}. If it is a name on the Hugging Face hub, fetch it first and name the "
            f"directory: hf download {path} --local-dir models/{directory.name}, then {key}=models/{directory.name}"
        )
    files = of_checkpoint(directory, family, key)
    try:
        tensors(directory)
    except RunError as e:
        raise RunError(f"{key}: {e} Download or export the checkpoint again.") from None
    needed = [("tokenizer.json", "vocab.json")]
    if files.family.sees_pictures:
        needed.append(("preprocessor_config.json", "processor_config.json"))
    for names in needed:
        if not any((directory / n).is_file() for n in names):
            raise UsageError(
                f"{key}: {directory} has no {' or '.join(names)}: copy the checkpoint whole, not its weights alone"
            )


def pixels(cfg: RunConfig) -> None:
    """Pictures of the sizes that the config lets through are resized by nobody else: the engine's own processor must let them
    through as well, and make the same numbers of them, or engine and trainer see different ones.
    """
    from megatron_mmsr1.models import of_checkpoint

    files = of_checkpoint(cfg.model.path, cfg.model.family)
    files.check_freeze(cfg.model.frozen)
    if not files.family.sees_pictures:
        if cfg.protocol.image_searches:
            raise UsageError(
                f"model.path: {cfg.model.path} sees no pictures, and so has none to search by: set protocol.image_searches=0"
            )
        return
    files.check_processor()
    file, said = files.processor()
    size = said.get("size") or {}
    low = size.get("shortest_edge") or said.get("min_pixels") or 0  # both names are in use, and both count pixels
    high = size.get("longest_edge") or said.get("max_pixels") or cfg.model.max_pixels
    if cfg.model.min_pixels < low or cfg.model.max_pixels > high:
        raise UsageError(
            f"model.min_pixels={cfg.model.min_pixels} to model.max_pixels={cfg.model.max_pixels} exceeds {file}, which "
            f"takes pictures of {low} to {high} pixels: the engine would resize what the trainer does not; set both within"
        )


def checkpoint(out: Path) -> bool:
    """Whether a run in `out` would resume from a checkpoint. RunError names what is missing or torn in it."""
    from megatron_mmsr1.checkpoints.manifest import latest, verify

    directory = latest(out / "checkpoints")
    if directory is not None:
        verify(directory, contents=True)
    return directory is not None


def replay(cfg: RunConfig) -> None:
    from megatron_mmsr1.rollout.dump import dump_files, dump_path

    first = dump_path(cfg.train.replay or ".", 0)
    if not dump_files(cfg.train.replay or ".", 0):
        raise UsageError(f"train.replay: no rollouts at {first}: name the rollouts/ directory of a run")


def local_services(cfg: RunConfig, *, engine: bool = True) -> None:
    """What the search server and the engine of our own would stumble over."""
    from megatron_mmsr1.procs.ports import require_port
    from megatron_mmsr1.protocol import Prompts

    Prompts.load(cfg.protocol.prompts)
    if cfg.search.url is None and cfg.searches:
        search(cfg)
    native = getattr(cfg.engine, "sglang", {})  # another engine has no such key
    if engine and not cfg.engine.urls and native.get("port"):
        require_port(int(native["port"]), "the engine (engine.sglang.port)")


def search(cfg: RunConfig) -> None:
    """What a search server of our own will want: a corpus for what is local, a key for what is not, a store for a replay."""
    from megatron_mmsr1.search.backends.tools import check

    s = cfg.search
    if s.corpus is None and s.text.backend == "bm25" and s.mode != "replay-strict":
        raise UsageError(
            "nothing to search: name a server (search.url), a directory to serve (search.corpus) or search.text.backend"
        )
    if s.corpus is not None and not (Path(s.corpus) / "corpus.jsonl").is_file():
        raise UsageError(f"search.corpus: no corpus.jsonl in {s.corpus} (mmsr1 atlas build writes one)")
    if s.mode != "live" and s.mode != "record" and not (s.cache and Path(s.cache).is_file()):
        raise UsageError(f"search.mode={s.mode} needs search.cache to name a recorded store, not {s.cache}")
    if s.deadline_s > cfg.rollout.tool_timeout_s:
        raise UsageError(
            f"search.deadline_s={s.deadline_s:g} is above rollout.tool_timeout_s={cfg.rollout.tool_timeout_s:g}: a call "
            "would be given up before its partial result is there; lower the one or raise the other"
        )
    check(s)


def engines(cfg: RunConfig, *, publishes: bool) -> int:
    """The engines that the config names answer, and serve this model. Returns the version of their weights; see
    `sync.held.require_model` for `publishes`, which is its `weights` turned round, and what is raised."""
    from megatron_mmsr1.rollout import engines as kinds
    from megatron_mmsr1.sync.held import require_model

    for url in cfg.engine.urls:
        require_url(url, "engine.urls")
    controls = [kinds.get(cfg.engine.name).control(url, timeout_s=TIMEOUT_S) for url in cfg.engine.urls]
    return require_model(controls, Path(cfg.model.path), "engine.urls", weights=not publishes)


def search_answers(cfg: RunConfig) -> None:
    """The search server that the config names answers. RunError if it does not, within seconds."""
    if cfg.search.url is not None:
        answers(
            cfg.search.url,
            "/readyz",
            "search.url",
            "search server; start it (mmsr1 search serve), or name search.corpus instead to have one started",
        )


def answers(url: str, path: str, key: str, what: str) -> None:
    """Return once `url` + `path` gives 2xx; RunError after a few tries, UsageError for what is no http URL."""
    require_url(url, key)
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            answer = http.get(url.rstrip("/") + path, timeout_s=TIMEOUT_S)
            if answer.ok:
                return
            reason = f"HTTP {answer.status} from {path}"
        except http.Unanswered as e:
            reason = str(e)
    raise RunError(f"{key}: {url} does not answer ({reason}): no {what}")


def require_url(url: str, key: str) -> None:
    """UsageError for what is no http URL."""
    if not http.is_url(url):
        raise UsageError(f"{key}: {url!r} is no URL of a server; write it as http://HOST:PORT")
