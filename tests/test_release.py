"""One version and one date, in the package, the changelog and the citation."""

import re
from pathlib import Path

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
