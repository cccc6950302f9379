"""One version and one date, in the package, the changelog and the citation."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import geoopt_projunn

ROOT = Path(__file__).parents[1]


def found(file, pattern):
    return re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_newest_release_is_this_version_everywhere():
    releases = found("CHANGELOG.md", r"^## \[(\d\S+)\] - (\d{4}-\d\d-\d\d)$")
    assert releases[0][0] == geoopt_projunn.__version__
    assert found("CITATION.cff", r"^version: (\S+)\ndate-released: (\S+)$") == releases[:1]


def test_releases_are_listed_newest_first():
    dates = found("CHANGELOG.md", r"^## \[\d\S+\] - (\S+)$")
    assert len(dates) > 1
    assert dates == sorted(dates, reverse=True)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_make_without_a_new_python_says_what_to_do(python, tmp_path):
    command = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("This needs Python 3.11 or later")
    assert "make PYTHON=python3.12 demo" in done.stderr.splitlines()[0]
    assert list(tmp_path.iterdir()) == []
