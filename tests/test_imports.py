"""The rules of the house, as the import statements tell them."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "megatron_mmsr1"
PARTS = (PACKAGE, "serving", "demo")
FILES = sorted(p for part in (*PARTS, "tests", "scripts", "benchmarks") for p in (ROOT / part).rglob("*.py"))
SOURCES = sorted(p for part in PARTS for p in (ROOT / part).rglob("*.py"))
# Replacements of other packages, put on the path of a process that is not ours: what they import is not the house's.
FOREIGN = ("cpu_shims",)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """`data` for megatron_mmsr1.data.images, `config` for megatron_mmsr1.config, else the top-level package."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else parts[0]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path, *, running_only: bool = False) -> tuple[str, ...]:
    """What a file imports, in functions too, and by name (`importlib.import_module("...")`); with `running_only` without what
    only the type checker reads."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if running_only and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from walk(child)

    found: list[str] = []
    for node in walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here"
            # "from package import name" may name a module; both are given, and the one that is none does no harm.
            found += [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Call) and "import_module" in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.append(str(name.value))
    return tuple(found)


OURS = [p for p in SOURCES if module(p).startswith(PACKAGE) and not set(FOREIGN) & set(p.parts)]


def in_room(*rooms: str) -> list[Path]:
    return [p for p in OURS if room(module(p)) in rooms]


def offenders(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    found = []
    for p in paths:
        for name in imports(p):
            if any(name == f or name.startswith(f + ".") for f in forbidden):
                found.append(f"{p.relative_to(ROOT)} imports {name}")
    return found


def test_the_light_rooms_import_no_engine_no_trainer_no_app() -> None:
    light = in_room("config", "trajectory", "protocol", "errors", "algorithm", "shaping", "reward", "search", "data")
    assert len(light) > 8
    assert not offenders(light, ("megatron", "sglang", "gradio", f"{PACKAGE}.megatron", f"{PACKAGE}.rollout"))


def test_algorithm_imports_only_torch() -> None:
    """And what settings and names are made of."""
    allowed = {"torch", "pydantic", PACKAGE} | set(sys.stdlib_module_names)
    ours = tuple(f"{PACKAGE}.{m}" for m in ("algorithm", "config.algorithm", "config.section", "errors", "plugins"))
    for p in in_room("algorithm"):
        for name in imports(p):
            assert name.split(".")[0] in allowed, f"{p}: {name}"
            assert name.startswith(ours) or not name.startswith(PACKAGE), f"{p}: {name}"


def test_shaping_is_pure() -> None:
    """It works on rewards, lengths and groups: the standard library, settings and the structure that flows."""
    allowed = {PACKAGE} | set(sys.stdlib_module_names)
    ours = tuple(f"{PACKAGE}.{m}" for m in ("shaping", "config", "errors", "trajectory"))
    paths = in_room("shaping")
    assert len(paths) > 1
    for p in paths:
        for name in imports(p):
            assert name.split(".")[0] in allowed, f"{p}: {name}"
            assert name.startswith(ours) or not name.startswith(PACKAGE), f"{p}: {name}"


def test_estimates_are_pure() -> None:
    """Told from the config and config.json alone, on any machine."""
    allowed = {PACKAGE} | set(sys.stdlib_module_names)
    ours = tuple(f"{PACKAGE}.{m}" for m in ("estimate", "config", "errors", "models", "cluster.fits", "cluster.stages"))
    paths = in_room("estimate")
    assert len(paths) > 5
    for p in paths:
        for name in imports(p):
            assert name.split(".")[0] in allowed, f"{p}: {name}"
            assert name.startswith(ours) or not name.startswith(PACKAGE), f"{p}: {name}"


# A model family's half for the trainer: what stands beside its __init__.py, which is light, for data and rollouts.
HEAVY_HALVES = [
    p for p in in_room("models") if p.name in ("_policy.py", "_text.py") or (p.parent.name != "models" and p.name[0] != "_")
]


def test_the_light_half_of_a_model_family_stays_light() -> None:
    light = [p for p in in_room("models") if p not in HEAVY_HALVES]
    assert len(light) >= 5 and len(HEAVY_HALVES) >= 3
    assert not offenders(light, ("megatron", "torch", "transformers", "sglang", f"{PACKAGE}.megatron", f"{PACKAGE}.rollout"))
    assert not offenders(HEAVY_HALVES, (f"{PACKAGE}.megatron", f"{PACKAGE}.rollout"))


def test_only_its_room_imports_megatron_core() -> None:
    outside = set(SOURCES) - set(in_room("megatron")) - set(HEAVY_HALVES)
    assert not offenders([p for p in sorted(outside) if not set(FOREIGN) & set(p.parts)], ("megatron",))


# The one place that knows both sides: the verbs hand the app to the server, each loaded by name when the verb runs.
COMPOSES = ROOT / PACKAGE / "cli" / "serve.py"


def test_nothing_imports_what_stands_above_it() -> None:
    """The package knows neither server nor app, and the server no app: `demo` imports `serving`, which imports the package."""
    assert not offenders([p for p in OURS if p != COMPOSES], ("serving", "demo", "gradio", "tests", "benchmarks"))
    server = [p for p in SOURCES if room(module(p)) == "serving"]
    assert len(server) > 8
    assert not offenders(server, ("demo", "gradio", "tests", "benchmarks"))


# Imports in functions that would close a circle, each with its reason.
LATE = {
    # The keys of a tool's section are the tool's own: they are looked up in the registry when a config is read.
    (f"{PACKAGE}.config.tools", f"{PACKAGE}.tools"),
}


def test_what_a_run_is_made_of_does_not_know_the_run() -> None:
    parts = in_room("eval", "checkpoints", "rollout", "sync", "publish", "megatron", "data", "config")
    assert not offenders(parts, (f"{PACKAGE}.run", f"{PACKAGE}.train", f"{PACKAGE}.cli"))


def test_no_circle() -> None:
    """Among modules, by all that runs: an import inside a function hides no circle, but for those of LATE."""
    known = {module(p): p for p in SOURCES}
    graph = {
        m: {n for n in imports(p, running_only=True) if n in known and n != m and (m, n) not in LATE} for m, p in known.items()
    }
    state: dict[str, int] = {}

    def visit(m: str, trail: tuple[str, ...]) -> None:
        if state.get(m) == 1:
            pytest.fail("a circle: " + " -> ".join([*trail[trail.index(m) :], m]))
        if state.get(m):
            return
        state[m] = 1
        for n in sorted(graph[m]):
            visit(n, (*trail, m))
        state[m] = 2

    for m in sorted(graph):
        visit(m, ())


def test_the_trainer_never_says_cuda() -> None:
    """It runs where there is none; what differs lives in the platform layer (which also routes the random state that
    checkpoint.py keeps). The doctor asks what is there, and so does whoever starts the engine."""
    trainer = in_room("train", "run", "eval", "algorithm", "reward", "data", "sync", "megatron")
    allowed = {ROOT / PACKAGE / "megatron" / f"{n}.py" for n in ("platform", "cpu", "checkpoint")}
    said = [
        f"{p.relative_to(ROOT)}:{node.lineno}"
        for p in trainer
        if p not in allowed
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and ast.unparse(node) == "torch.cuda"
    ]
    assert not said


def test_a_file_holds_one_idea() -> None:
    long = [f"{p.relative_to(ROOT)} has {n} lines" for p in FILES if (n := len(p.read_text().splitlines())) > 400]
    assert not long


def test_no_bare_except() -> None:
    for p in FILES:
        for node in ast.walk(tree(p)):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{p}:{node.lineno}"


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {m.split(".")[0] for m in out.splitlines()[-1].split()}


HEAVY = {"torch", "transformers", "numpy", "sglang", "megatron", "pydantic", "yaml", "rich", "aiohttp", "matplotlib"}


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["search", "query", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    assert not HEAVY & loaded_by(f"import {PACKAGE}.cli; {PACKAGE}.cli.main({argv!r})")


@pytest.mark.parametrize(
    "name",
    [
        "config",
        "trajectory",
        "protocol",
        "errors",
        "procs.service",
        "procs.progress",
        "eval.results",
        "run.launch",
        "checkpoints.manifest",
        "estimate.report",
        "run.lock",
    ],
)
def test_contracts_load_without_torch(name: str) -> None:
    assert not {"torch", "transformers", "sglang", "megatron"} & loaded_by(f"import {PACKAGE}.{name}")


@pytest.mark.parametrize("name", ["search.client", "search.server", "reward.mmsearch", "data.images"])
def test_tools_load_without_torch(name: str) -> None:
    assert not {"torch", "sglang", "megatron"} & loaded_by(f"import {PACKAGE}.{name}")


def test_the_choice_of_an_attention_loads_no_trainer() -> None:
    """`mmsr1 doctor` asks for it on any machine, and megatron.core may be imported only once `platform.install` has run."""
    assert not {"megatron", "transformers"} & loaded_by(f"import {PACKAGE}.megatron.attention.choice")
