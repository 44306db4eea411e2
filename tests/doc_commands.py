"""Every command that a shell block of README, CONTRIBUTING, docs and the serving recipes shows, and which test runs it.

What is added to a command makes it small (a smaller world, fewer steps) or keeps it apart from what else runs on the machine (a
free port, a directory of its own). Commands stand in the order in which they are run: later ones use what earlier ones wrote.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "serving/recipes/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

WORLD = "train_questions=64 heldout_questions=16 noise_pages=8"
FEW = "data.prompts_per_step=6 data.group_size=4 train.eval_limit=6 train.save_interval=1 optimizer.warmup_steps=0"

# Run by test_docs_commands.py: command -> (what is added, what it must say on stdout). `{url}`: of the search server.
SECONDS: dict[str, tuple[str, str]] = {
    "mmsr1 atlas build build/atlas entities=300": (f"entities=24 {WORLD}", "mmsr1 atlas inspect build/atlas"),
    "mmsr1 maths build build/maths": ("train_questions=64 heldout_questions=16", "wrote build/maths"),
    "mmsr1 plugins": ("", "mmsearch"),
    "mmsr1 doctor": ("", "megatron"),
    "mmsr1 doctor configs/atlas.yaml": ("output=runs/looked-at --only disk --only search", "small files"),
    "mmsr1 plan configs/qwen2.5-vl-7b-fvqa.yaml --nodes 4 --gpus 8": ("", "16 ranks as TP4 x PP1 x DP4"),
    "mmsr1 plan configs/atlas.yaml placement.engines.nodes=1 --nodes 2 --gpus 0": ("", "2 ranks as TP2 x PP1 x DP1"),
    "mmsr1 estimate configs/qwen2.5-vl-7b-fvqa.yaml --config-json configs/shapes/Qwen2.5-VL-7B-Instruct.json": ("", "largest"),
    "mmsr1 estimate configs/qwen2-vl-2b-maths.yaml --config-json configs/shapes/Qwen2-VL-2B-Instruct.json --prompt-tokens 700 "
    "--sampled-tokens 300 --observed-tokens 0 --picture-tokens 500": ("", "1.15 prompts a second and GPU"),
    "mmsr1 plan configs/qwen3-vl-30b-a3b-fvqa.yaml --layouts --config-json configs/shapes/Qwen3-VL-30B-A3B-Instruct.json": (
        "",
        "layouts of 32 ranks fit H100",
    ),
    "mmsr1 serve --new-key anna gateway.keys=gateway.keys": ("", "mmsr1-"),
    "mmsr1 search serve corpus=build/atlas": ("cache=runs/a/search-cache.sqlite --port 0", "searching bm25 over build/atlas"),
    "mmsr1 search query 'Where does the Velo river end?'": ("--url {url}", "1. "),
    "mmsr1 search stats": ("{url}", "bm25"),
    "mmsr1 search export runs/a/search-cache.sqlite a.mmsr1snap": ("", "a.mmsr1snap"),
    "mmsr1 search import a.mmsr1snap store.sqlite": ("", "store.sqlite"),
    "mmsr1 search convert cache.pkl --rows fvqa_train.parquet --out recorded": ("", "picture"),
    "mmsr1 search estimate configs/qwen2.5-vl-7b-fvqa.yaml": ("data.train=[build/atlas/train.parquet]", "calls"),
    "python benchmarks/learning.py --seeds 0 1 2 --ablations": ("--table", "grpo, seed 0"),  # trains for hours without --table
    "python benchmarks/learning.py --maths --seeds 0": ("--table", "maths, seed 0"),
}
# Run by test_docs_story.py, which is slow: an engine, ranks, or both. `{engine}`: the URL of one that runs already.
MINUTES: dict[str, tuple[str, str]] = {
    "./scripts/quickstart.sh": (f"train.steps=2 {FEW}", ""),
    "mmsr1 train configs/atlas.yaml train.steps=40": (f"train.steps=3 {FEW}", ""),
    "mmsr1 train configs/maths.yaml": (f"train.steps=2 {FEW}", ""),
    "mmsr1 eval configs/atlas.yaml --policies": (FEW, "oracle"),
    "mmsr1 checkpoints list runs/atlas": ("", "step_000003"),
    "mmsr1 checkpoints verify runs/atlas": ("", "the run resumes from step_000003, which is whole"),
    "mmsr1 report runs/atlas": ("", "runs/atlas/report.html"),
    "mmsr1 data difficulty runs/atlas build/graded": ("", "wrote build/graded/train.parquet"),
    "mmsr1 export runs/atlas my-model": ("", ""),
    "mmsr1 train configs/atlas.yaml model.lora.rank=8 model.lora.alpha=16 algorithm.kl_coef=0.01 optimizer.lr=5e-4 "
    "output=runs/atlas-lora": (f"train.steps=2 {FEW}", ""),
    "mmsr1 export runs/atlas-lora my-merged-model": ("", ""),
    "mmsr1 export runs/atlas-lora my-adapter --adapter": ("", ""),
    "mmsr1 sft configs/atlas-sft.yaml model.path=build/atlas/model": ("train.steps=2 sft.examples_per_step=4", ""),
    "mmsr1 serve my-model": ("gateway.port=0", "API"),
    "mmsr1 serve my-model search.corpus=build/atlas": ("gateway.port=0 --engine {engine}", "API"),
    "mmsr1 serve runs/atlas/model runs=runs": ("gateway.port=0 --engine {engine}", "API"),
    "mmsr1 demo --open": ("gateway.port=0", "API"),  # the browser is `true`
    "mmsr1 demo runs=runs": ("gateway.port=0", "API"),
    "python benchmarks/search_server.py build/atlas": ("", ""),
    "python benchmarks/search_load.py": ("--calls 200 --distinct 50 --concurrency 16 --out out/load.json", ""),
    "python benchmarks/prefix_sharing.py": ("--prompt 100 --out out/prefixes.json", ""),
    "python benchmarks/host_cost.py": ("--trajectories 32 --tokens 200 --out out/host.json", ""),
    "python benchmarks/gateway.py": ("--streams 2 --rounds 1 --out out/gateway.json", ""),
    "python benchmarks/throughput.py": (f"--steps 1 --output out/throughput {FEW}", ""),
}
# Not run by what stands above: why, or where it is run.
ELSEWHERE: dict[str, str] = {
    "git clone <this repository> megatron-mmsr1 && cd megatron-mmsr1": "the address is the reader's",
    "./scripts/test.sh": "these tests themselves",
    "./scripts/test.sh --fast": "some of these tests",
    "./scripts/env.sh": "tests/test_scripts.py runs it against an environment that is there; a new one is 6 GB",
    **dict.fromkeys(
        (
            "mmsr1 slurm submit configs/atlas.yaml slurm.partition=gpu --follow",
            *(f"mmsr1 slurm {verb} configs/atlas.yaml" for verb in ("status", "logs", "cancel")),
            "mmsr1 slurm submit configs/atlas.yaml --then eval,export",
            "mmsr1 slurm submit configs/atlas.yaml output=runs/first placement.engines.nodes=1 train.steps=2 "
            "train.eval_limit=4 data.prompts_per_step=8 slurm.cpus_per_node=4 --then eval,export",
            "mmsr1 slurm status runs/first",
            "mmsr1 slurm submit configs/atlas.yaml --sweep optimizer.lr=5e-5,1e-4",
        ),
        "wants a cluster; tests/test_slurm_cluster.py and tests/test_slurm_atlas.py bring one and run the same",
    ),
    "mmsr1 doctor configs/atlas.yaml --only engine": "starts an engine; tests/test_doctor_engine.py starts a smaller one",
    "mmsr1 report runs/seed0 runs/seed1 runs/seed2 --seeds": "wants three runs; tests/test_report_curves.py has two",
    "mmsr1 watch runs/atlas": "runs until Ctrl-C; tests/test_watch.py starts it over a smaller run",
    "./scripts/gpu_check.sh": "wants a GPU",
    "mmsr1 bench gpu --part mfu": "wants a GPU",
    "mmsr1 bench gpu --tiny --device cpu --budget 3000": "tests/test_gpu_check.py runs it, into a directory of its own",
    "./scripts/gpu_check.sh --collect build/wheels": "wants a package index",
    "./scripts/gpu_check.sh --wheels build/wheels": "wants a GPU; tests/test_gpu_check.py runs how it refuses wheels",
}
SERVERS = ("mmsr1 search serve", "mmsr1 serve my", "mmsr1 serve runs", "mmsr1 demo")  # run until Ctrl-C


def shown() -> dict[str, list[str]]:
    """Each command once, comments and prompts left out, with the pages that show it."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    text = shlex.join([words[0].removeprefix(".venv/bin/"), *words[1:]])
                    found.setdefault(text if "<" not in line else " ".join(words), []).append(str(page.relative_to(ROOT)))
    return found
