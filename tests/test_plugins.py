"""Parts by name: found where they are, refused with the file and the rule that they break."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import SerializeAsAny, ValidationError

from megatron_mmsr1.config.explain import explain_all
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.registry import Registry, requires
from megatron_mmsr1.plugins.settings import PartSettings

PART = """
from megatron_mmsr1.config.section import Section

class Settings(Section):
    name: str = "{name}"
    weight: float = 1.0

class Part:
    Settings = Settings
    async def run(self): ...

PART = Part
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two parts and what is none."""
    home = tmp_path / "a_room"
    home.mkdir()
    for file, text in {
        "__init__": "from megatron_mmsr1.plugins.registry import Registry, requires\n"
        "REGISTRY = Registry('thing', 'a_room', 'PART', key='thing.name', check=requires(async_methods=('run',)))\n",
        "base": "",
        "_helper": "",
        "one": PART.format(name="one"),
        "two": PART.format(name="two"),
    }.items():
        (home / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_room", raising=False)
    return home


@pytest.fixture
def registry(room: Path) -> Registry[Any]:
    return Registry("thing", "a_room", "PART", key="thing.name", check=requires(async_methods=("run",)))


def test_a_file_of_the_room_is_a_part_and_no_list_names_it(room: Path, registry: Registry[Any]) -> None:
    assert registry.names() == ["one", "two"]
    (room / "three.py").write_text(PART.format(name="three"))
    assert registry.names() == ["one", "three", "two"]
    assert registry.get("three").Settings().name == "three"
    assert {r.name: r.file for r in registry.listed()}["three"] == str(room / "three.py")


def test_a_persons_own_is_named_by_module_or_by_file(
    tmp_path: Path, registry: Registry[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "elsewhere" / "mine.py"
    file.parent.mkdir()
    file.write_text(PART.format(name="mine"))
    assert registry.get(f"{file}:Part").Settings().name == "mine"
    monkeypatch.syspath_prepend(str(file.parent))
    assert registry.get("mine:Part").Settings().name == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PART = object()", "it has no method run; its Settings must be a subclass"),
        (PART.format(name="x").replace("async ", ""), "run must be an async method"),
        ("import no_such_module", "cannot be imported (ModuleNotFoundError"),
        ("def (", "cannot be imported (SyntaxError"),
        ("OTHER = 1", "has no PART"),
    ],
)
def test_a_broken_one_is_refused_by_file_and_rule(tmp_path: Path, registry: Registry[Any], text: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UsageError) as e:
        registry.get(f"{file}:PART")
    assert said in str(e.value) and str(file) in str(e.value) and "thing.name" in str(e.value)


def test_a_misspelt_name_gets_the_one_that_was_meant(registry: Registry[Any]) -> None:
    with pytest.raises(UsageError, match="did you mean one"):
        registry.get("onne")


def test_a_section_takes_the_keys_of_the_part_that_it_names(room: Path) -> None:
    class Config(Section):
        thing: Annotated[SerializeAsAny[Section], PartSettings("a_room", "one")] = None  # type: ignore[assignment]

    cfg = Config.model_validate({"thing": {"name": "two", "weight": 2}})
    assert cfg.model_dump() == {"thing": {"name": "two", "weight": 2.0}}
    assert Config.model_validate_json(cfg.model_dump_json()) == cfg
    with pytest.raises(ValidationError) as e:
        Config.model_validate({"thing": {"wieght": 2}})
    assert e.value.errors()[0]["loc"] == ("thing", "wieght") and e.value.errors()[0]["type"] == "extra_forbidden"
    with pytest.raises(ValidationError, match="no such thing"):
        Config.model_validate({"thing": {"name": "tow"}})


def test_a_misspelt_key_of_a_part_gets_the_one_that_was_meant(room: Path) -> None:
    class Inner(Section):
        thing: Annotated[SerializeAsAny[Section], PartSettings("a_room", "one")] = None  # type: ignore[assignment]

    class Config(Section):
        inner: Inner | None = None
        named: dict[str, Inner] = {}  # noqa: RUF012 (pydantic copies it)

    for raw, key in (
        ({"inner": {"thing": {"name": "two", "wieght": 2}}}, "inner.thing.wieght"),
        ({"named": {"x": {"thing": {"wieght": 2}}}}, "named.x.thing.wieght"),
    ):
        with pytest.raises(ValidationError) as e:
            Config.model_validate(raw)
        assert explain_all(e.value, Config, raw) == f"  unknown key {key}: did you mean weight?"
