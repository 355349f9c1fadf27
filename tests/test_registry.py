import sys

import pytest

from iqmjx import registry

KNOWN = {"decoder": "json:JSONDecoder", "text": str, "here": "broken_module:Class"}


def test_names_places_and_classes():
    import json

    assert registry.find("policy", "decoder", KNOWN) is json.JSONDecoder
    assert registry.find("policy", "text", KNOWN) is str
    assert registry.find("policy", "json:JSONEncoder", KNOWN) is json.JSONEncoder


def test_modules_are_imported_only_when_asked_for(tmp_path, monkeypatch):
    (tmp_path / "asked_for.py").write_text("class Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = {"thing": "asked_for:Thing", "text": str}
    registry.find("algo", "text", known)
    assert "asked_for" not in sys.modules
    assert registry.find("algo", "thing", known).__name__ == "Thing"
    del sys.modules["asked_for"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decodr", "--algo decodr: did you mean decoder[?], or any package.module"),
        ("xyz", "--algo xyz: choose one of decoder, text, here"),
        ("json:JSONEncode", "--algo json:JSONEncode: json has no JSONEncode; "),
        ("no_such_module:A", "there is no module no_such_module"),
        ("json.nothing.at:A", "there is no module json.nothing"),
        ("json:", "--algo json:: give package.module:Class"),
        (":A", "give package.module:Class"),
        ("..json:A", "give package.module:Class"),
    ],
)
def test_what_cannot_be_found_is_named_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        registry.find("algo", name, KNOWN)
    assert "\n" not in str(error.value)


def test_of_many_names_some_are_told():
    told = registry.close("xyz", [f"task{i}" for i in range(50)])
    assert told.startswith("choose one of task0, ") and "task11 or 38 others" in told


class Maker:
    def method(self, first, second): ...

    @classmethod
    def of_class(cls, first, second): ...

    @staticmethod
    def plain(first, second): ...

    none = None


@pytest.mark.parametrize("method", ["method", "of_class", "plain"])
def test_a_class_is_held_to_its_calls(method):
    registry.check("algo", "x:Maker", Maker, {method: "first, second"})
    for parameters in ("first", "", "first, second, third"):
        needs = rf"^--algo x:Maker: the class needs a method {method}\({parameters}\)$"
        with pytest.raises(ValueError, match=needs):
            registry.check("algo", "x:Maker", Maker, {method: parameters})
    for missing in ("nothing", "none"):
        with pytest.raises(ValueError, match=f"needs a method {missing}"):
            registry.check("algo", "x:Maker", Maker, {missing: "first"})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: .*no_such_dependency"),
        ("raise ValueError('mine')", "ValueError: mine"),
        ("class Class", "SyntaxError"),
    ],
)
def test_errors_inside_a_module_are_told_in_one_line(
    source, told, tmp_path, monkeypatch
):
    (tmp_path / "broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=f"--algo here: broken_module cannot be imported: {told}"
    ) as error:
        registry.find("algo", "here", KNOWN)
    assert "\n" not in str(error.value)
