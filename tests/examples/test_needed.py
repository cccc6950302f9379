"""Every example says what it needs, and takes only the options that it knows."""

import ast
import importlib.util
import sys

import pytest

from ._load import EXAMPLES, load

each_script = pytest.mark.parametrize(
    "name", sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))
)


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else 1)
    with pytest.raises(
        SystemExit, match=r"need scikit-learn, not .* `pip install '.\[examples\]'`"
    ):
        load("_needed")


@each_script
def test_each_example_looks_for_its_packages_first(name):
    source = (EXAMPLES / f"{name}.py").read_text("utf-8")
    imports = [node for node in ast.parse(source).body if is_import(node)]
    assert "_needed" in names_of(imports[0])


def is_import(node):
    """Return whether this imports a module that does not come with Python."""
    return any(name not in sys.stdlib_module_names for name in names_of(node))


def names_of(node):
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_python_without_its_help_texts_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(SystemExit, match=r"without its help texts .*: install its whole library"):
        load("_needed").help_texts()


@each_script
def test_an_example_refuses_an_unknown_option(name, capsys):
    with pytest.raises(SystemExit):
        load(name).main(["--unknown"])
    assert "unrecognized arguments: --unknown" in capsys.readouterr().err
