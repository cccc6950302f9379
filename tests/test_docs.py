"""Everything shown as code in the README, the docs and the docstrings runs."""

import ast
import doctest
import importlib.util
import pkgutil
import re
import warnings
from pathlib import Path

import pytest

import geoopt_projunn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = [info.name for info in pkgutil.walk_packages(geoopt_projunn.__path__, "geoopt_projunn.")]


# What a page shows on purpose.
SHOWN = ("ignore:The gradient of parameter `mix.bias`", "ignore:A step of parameter `weight`")


def blocks_of(page):
    """Return the Python blocks of a page, as parameters named by page and line."""
    text = page.read_text(encoding="utf-8")
    for match in PYTHON_BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield pytest.param(match[1], id=f"{page.name}:{line}")


@pytest.mark.filterwarnings(*SHOWN)
@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks_of(page)])
def test_a_block_of_a_page_runs_alone(block, monkeypatch, tmp_path):
    others = needs(block)
    for module in others:
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if others:  # they may warn of what is theirs
            warnings.simplefilter("ignore")
        exec(compile(block, "<block of a page>", "exec"), {"__name__": "__main__"})


def needs(block):
    """Return the modules that a block names in its first line, "# needs: lightning, peft"."""
    match = re.match(r"# needs: (.+)", block)
    return re.split(r",\s*", match[1].strip()) if match else []


def test_the_first_line_of_a_block_says_what_it_needs():
    assert needs("# needs: lightning, peft\nimport lightning") == ["lightning", "peft"]
    assert needs("import torch") == []


def test_the_messages_that_troubleshooting_quotes_exist():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith('| "')]
    quotes = [quote for row in rows for quote in re.findall(r'"([^"]+)"', row.split(" | ")[0])]
    assert len(quotes) > 20
    said = list(messages())
    for quote in quotes:
        for part in quote.split("…"):
            assert any(part.strip() in text for text in said), quote


def messages():
    """Return what the package's source has as strings, without what is put into them."""
    for path in Path(geoopt_projunn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name):
    if ".kernels." in name and not name.endswith(".launching"):
        pytest.importorskip("triton", reason="needs triton, which torch for CPUs does not bring")
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_the_examples_of_the_manifold_are_run():
    module = importlib.import_module("geoopt_projunn.manifolds")
    assert doctest.testmod(module).attempted > 0


def test_the_first_block_of_the_readme_trains_and_stays_orthogonal(capsys):
    block = PYTHON_BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))[1]
    exec(block, {})
    printed = re.search(r"loss (\S+), ‖WWᵀ - I‖ = (\S+)", capsys.readouterr().out)
    loss, error = map(float, printed.groups())
    # Two random maps of 64 features to 32 differ by about 64.
    assert loss < 64 / 1000
    assert error < 1e-5


def extension(name):
    for module in ("griffe", "latex2mathml"):
        pytest.importorskip(module, reason="needs the extra of the documentation")
    path = ROOT / "docs" / "extensions" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arguments_that_are_described_together_are_shown_with_their_own_defaults():
    text = "k : int\n    rank\nbias, dropout\n    as in\n    torch\n\nNotes\n-----\nOne, two.\n"
    apart = "k : int\n    rank\nbias\n    as in\n    torch\ndropout\n    as in\n    torch\n"
    to_markdown = extension("sphinx_roles").to_markdown
    assert to_markdown(text) == f"{apart}\nNotes\n-----\nOne, two.\n"
    assert to_markdown("TypeError, ValueError\n    as") == "TypeError\n    as\nValueError\n    as\n"


def test_names_of_two_words_keep_their_distance_in_formulas():
    page = r'<span class="arithmatex">\(\operatorname{Re tr}(x)\)</span>'
    shown = re.sub("<[^>]+>", "|", extension("mathml").on_post_page(page))
    assert [part for part in shown.split("|") if part][:2] == ["Re", "tr"]


def test_no_directive_or_role_is_left_in_what_pages_show():
    """Of all docstrings of the package, whatever form their authors chose."""
    to_markdown = extension("sphinx_roles").to_markdown
    left = re.compile(r"^\s*\.\. \w+::|:(?:math|class|func|meth|mod|attr|data|sup|sub):`", re.M)
    for path in (ROOT / "geoopt_projunn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text is not None:
                assert not left.search(to_markdown(text)), (path, getattr(node, "name", ""))
