"""Everything shown as code in the README, the docs and the docstrings runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import geoopt_projunn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULES = [info.name for info in pkgutil.walk_packages(geoopt_projunn.__path__, "geoopt_projunn.")]


@pytest.mark.filterwarnings("ignore:The gradient of parameter `mix.bias`")  # which a page shows
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = PYTHON_BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks, f"{page.name} shows no code"
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name):
    if ".kernels." in name and not name.endswith(".launching"):
        pytest.importorskip("triton", reason="needs triton, which torch for CPUs does not bring")
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_the_examples_of_the_manifold_are_run():
    module = importlib.import_module("geoopt_projunn.manifold")
    assert doctest.testmod(module).attempted > 0


def test_the_first_block_of_the_readme_trains_and_stays_orthogonal(capsys):
    block = PYTHON_BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))[1]
    namespace = {}
    exec(block, namespace)
    printed = re.search(r"(-?[\d.]+), off the manifold by (\S+)", capsys.readouterr().out)
    total, error = map(float, printed.groups())
    # The least sum of a unit vector's 64 entries is -8.
    assert total < -7.5
    assert error < 1e-5
