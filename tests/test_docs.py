"""The examples of README and docs run, block after block, in a folder of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


def test_there_are_examples_to_run():
    assert any(_blocks(page) for page in PAGES if page.name == "README.md")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page) and page.name != "architecture.md"], ids=lambda page: page.name
)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, code in enumerate(_blocks(page), 1):
        exec(compile(code, f"{page.name}, example {number}", "exec"), names)
    capsys.readouterr()
