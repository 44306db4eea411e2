"""The page of a trained model: README.md beside its weights. What was trained, on what, how it searched, how to serve it.

Whatever a config, a data file or an evaluation calls itself is shown as text: it makes no link, no heading, no cell and no tag.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from megatron_mmsr1 import __version__, config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.eval.key import model_id
from megatron_mmsr1.eval.results import EvalResult, compare, load_all, of_model, searched
from megatron_mmsr1.protocol import Prompts
from megatron_mmsr1.publish import serving_file
from megatron_mmsr1.untyped import is_dict

README = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
# What marks, links or cuts a cell; "www." and "@" are links by themselves.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#!|~:@]|(?<=www)\.)", re.IGNORECASE)
NAME_CHARS = 120


def write(run: Path, directory: Path, *, step: int) -> None:
    """README.md and serving.yaml into `directory`, a model that the run in `run` had after `step` steps.

    Raises UsageError or RunError if the run's config or an evaluation cannot be read.
    """
    cfg = config.load(run / "config.yaml")
    serving_file.write(cfg, directory)
    found = load_all(run / "eval") if (run / "eval").is_dir() else []
    evals, refused = of_model(found, step, model_id(directory))
    for why in refused:
        print(f"the model's {README} goes without it: {why}", file=sys.stderr)
    write_text(directory / README, card(cfg, step=step, evals=evals, days=_days(run), search=searched(run, evals)))


def card(cfg: RunConfig, *, step: int, evals: list[EvalResult], days: tuple[str, str] | None, search: dict[str, Any]) -> str:
    """As markdown. `days`: the first and the last one of the training, as YYYY-MM-DD in UTC. `search`: as `searched` has it."""
    name = _plain(cfg.name)
    parts = [
        _front_matter(cfg),
        f"# {esc(name)}\n",
        "A large multimodal model that answers questions about pictures and searches where it does not know. Each of its turns "
        "is a reason and then an image search, a text search, or the answer.\n",
        _section("Base and data", _base_and_data(cfg)),
        _section("Protocol", _protocol(cfg)),
        _section("Training", _training(cfg, step)),
        _section("Search", _search(cfg, search, days)),
        _section("Evaluation", _evaluation(cfg, evals)),
        _section("Limits of use", [LIMITS + "\n"]),
        _section("How to serve it", [_how(name)]),
        f"Written by megatron-mmsr1 {__version__}.\n",
    ]
    return "\n".join(parts)


LIMITS = """\
- What it says may be wrong, with a source or without: a source is what a search found, not a proof. Read it.
- It was trained with the search backend that is named above. With another one, or with today's web, its habits may not fit.
- Web pages and pictures that it finds are untrusted. They are marked as data, which is no guarantee that none misleads it.
- It knows the tools and limits of this page only; more rounds, other tools or longer pictures are outside its training.
- Questions, and the pictures that are searched for, go to the search backend that serves it. With a live one they leave the
  machine."""


# ------------------------------------------------------------------------------------------------------------------ parts
def _front_matter(cfg: RunConfig) -> str:
    front: dict[str, Any] = {
        "license": _license(Path(cfg.model.path)),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["multimodal", "search", "tool-use", cfg.algorithm.name.rpartition(":")[2], "megatron-mmsr1"],
    }
    base = _repository(Path(cfg.model.path))
    if base is not None:
        front = {"base_model": base} | front
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _base_and_data(cfg: RunConfig) -> list[str]:
    base = _repository(Path(cfg.model.path)) or Path(cfg.model.path).name
    known = _license(Path(cfg.model.path))
    said = "not known: see its own page before you pass this model on" if known == "unknown" else code(known)
    data = cfg.data.train if not cfg.algorithm.supervised else [cfg.sft.source]
    lora = cfg.model.lora
    return _list(
        f"Base: {code(base)}; licence {said}",
        f"Language model: adapters of rank {lora.rank}, merged into {', '.join(lora.targets)}" if lora else "",
        f"Trained on: {_files(data)}",
        f"Evaluated on: {_files(cfg.data.heldout)}" if cfg.data.heldout else "",
        f"Vision tower: {'frozen' if cfg.model.vision_frozen else 'trained'}; pictures of {cfg.model.min_pixels} to "
        f"{cfg.model.max_pixels} pixels",
    )


def _protocol(cfg: RunConfig) -> list[str]:
    p = cfg.protocol
    prompts = Prompts.load(p.prompts)
    rows = [
        ("assistant turns", p.max_rounds),
        ("image searches", p.image_searches),
        ("text searches", p.text_searches),
        ("results a search", p.top_k),
        ("tokens of the first prompt", p.max_prompt_tokens),
        ("tokens of a turn", p.max_turn_tokens),
        ("tokens after the first prompt", p.max_response_tokens),
    ]
    shown = [f"- {what}: {indented(text)}" for what, text in _texts(prompts) if text.strip()]
    called = Path(p.prompts).name if Path(p.prompts).suffix else p.prompts
    return [_table(("at most", ""), rows), f"Prompts ({code(called)}):\n", "\n".join(shown)]


def _texts(p: Prompts) -> Iterable[tuple[str, str]]:
    return (
        ("system", p.system),
        ("before the question (`<image>`: the pictures)", p.first),
        ("after an image search", p.after_image),
        ("after a text search", p.after_text),
    )


def _training(cfg: RunConfig, step: int) -> list[str]:
    m, t, d = cfg.megatron, cfg.train, cfg.data
    digest = hashlib.sha256(config.dump(cfg).encode()).hexdigest()[:16]
    grpo = not cfg.algorithm.supervised
    batch = (
        f"{d.prompts_per_step} prompts of {d.group_size} rollouts" if grpo else f"{cfg.sft.examples_per_step} demonstrations"
    )
    return _list(
        f"{code(cfg.algorithm.name.rpartition(':')[2])}, {step} of {t.steps} steps, each of {batch}; seed {cfg.seed}",
        f"learning rate {cfg.optimizer.lr:g}, {cfg.optimizer.schedule}" + (f"; KL {cfg.algorithm.kl_coef:g}" if grpo else ""),
        f"reward {code(_reward(cfg))}" if grpo else "",
        f"{t.ranks} ranks: tensor {m.tensor_parallel}, pipeline {m.pipeline_parallel}, context {m.context_parallel}, "
        f"expert {m.expert_parallel}, data {cfg.data_parallel}; {cfg.model.dtype}",
        f"configuration {code(digest)}",
    )


def _reward(cfg: RunConfig) -> str:
    said = cfg.reward.model_dump(mode="json", serialize_as_any=True)
    return ", ".join(str(v) if k == "name" else f"{k} {v}" for k, v in said.items())


def _search(cfg: RunConfig, held: dict[str, Any], days: tuple[str, str] | None) -> list[str]:
    s = cfg.search
    corpus = f" over the corpus {code(Path(s.corpus).name)}" if s.corpus else ""
    when = "" if days is None else f"on {days[0]}" if days[0] == days[1] else f"from {days[0]} to {days[1]}"
    return _list(
        f"text {code(s.text.backend)}, image {code(s.image.backend)}, pages {code(s.read.backend)}, summaries "
        f"{code(s.summarise.backend)}{corpus}",
        f"snapshot {code(str(held['id']))}, mode {code(str(held.get('mode', s.mode)))}" if held.get("id") else f"mode {s.mode}",
        f"searched {when} (UTC)" if when else "",
    )


def _evaluation(cfg: RunConfig, evals: list[EvalResult]) -> list[str]:
    if not evals:
        return ["Not evaluated.\n"]
    rows = [(m.title, *m.cells) for m in compare(evals)]
    note = "By kind and by category: % right / % of responses that search. Temperature"
    return [_table(("", *(e.name for e in evals)), rows), f"{note} {cfg.rollout.eval_temperature:g}.\n"]


def _how(name: str) -> str:
    served = _shell(name)
    said = json.dumps(served)
    return f"""\
```bash
# serving.yaml says the rest; add search.corpus=DIRECTORY, or search.text.backend=NAME, where it names nothing to search
mmsr1 serve THIS_DIRECTORY gateway.name={served}
```

```bash
curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' -d @- <<'JSON'
{{"model": {said}, "messages": [{{"role": "user", "content": [
  {{"type": "image_url", "image_url": {{"url": "https://example.org/picture.jpg"}}}},
  {{"type": "text", "text": "When was this place founded?"}}]}}]}}
JSON
```

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")  # a key where the gateway wants one
said = client.chat.completions.create(
    model={said},
    messages=[{{"role": "user", "content": "When was the Eiffel Tower opened?"}}],
)
print(said.choices[0].message.content)
```
"""


# ---------------------------------------------------------------------------------------------------------------- helpers
def esc(text: str) -> str:
    """Any text as the same text in markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", html.escape(_plain(text), quote=False))


def code(text: str) -> str:
    """Any text as inline code."""
    return f"`{_plain(text).replace('`', chr(39)).replace('|', '/') or ' '}`"


def indented(text: str) -> str:
    """Any text as a block of code within a list."""
    return "\n\n" + "\n".join(f"      {line}" for line in text.strip().splitlines()) + "\n"


def _plain(text: str) -> str:
    shown = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    return shown if len(shown) <= NAME_CHARS else shown[:NAME_CHARS] + "…"


def _shell(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII) or "model"


def _section(title: str, parts: list[str]) -> str:
    return "\n".join([f"## {title}\n", *parts])


def _list(*lines: str) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines if line) + "\n"]


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, *rows]
    out = ["| " + " | ".join(esc(str(cell)) for cell in line) + " |" for line in lines]
    return "\n".join([out[0], "|---|" + "---:|" * (len(head) - 1), *out[1:]]) + "\n"


def _files(paths: Iterable[str]) -> str:
    return ", ".join(code(Path(p).name) for p in paths) or "nothing that is named"


def _license(base: Path) -> str:
    """As the base model's own page tells it."""
    front = _head(base / README)
    said = front.get("license")
    return said if isinstance(said, str) and _LICENSE.fullmatch(said) else "unknown"


def _head(page: Path) -> dict[str, Any]:
    try:
        text = page.read_text(encoding="utf-8")
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if is_dict(found) else {}


def _repository(base: Path) -> str | None:
    """OWNER/NAME where the base model says so."""
    try:
        said = json.loads((base / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) and _REPOSITORY.fullmatch(said) else None


def _days(run: Path) -> tuple[str, str] | None:
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        times = [json.loads(line)["time"] for line in (lines[0], lines[-1])]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    first, last = (time.strftime("%Y-%m-%d", time.gmtime(t)) for t in times)
    return first, last
