"""The documentation tells the truth: links lead somewhere, commands fit their programs, code runs, JSON and YAML are read."""
from __future__ import annotations

import json

import pytest
from doc_commands import ROOT, anchors, blocks, check, commands, inline_commands, links, pages

PAGES = pages()
LANGUAGES = {"sh", "python", "yaml", "json", "text", ""}  # the last two: output


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for line, target in links(page):
        path, _, anchor = target.partition("#")
        goal = (ROOT / page).parent / path if path else ROOT / page
        assert goal.exists(), f"{page}:{line}: {target}"
        if anchor and goal.suffix == ".md":
            assert anchor in anchors(str(goal.resolve().relative_to(ROOT))), f"{page}:{line}: {target}"


def test_every_page_is_linked_from_the_index():
    linked = {target.partition("#")[0] for _, target in links("docs/README.md")}
    assert {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_every_command_fits_its_program(page, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()  # the target of a redirection
    found = blocks(page)
    assert {b.language for b in found} <= LANGUAGES
    wrong = []
    monkeypatch.chdir(ROOT)
    for block in [b for b in found if b.language == "sh"] + inline_commands(page):
        for words in commands(block, tmp_path):
            try:
                check(words)
            except AssertionError as error:
                wrong.append(f"{page}:{block.line}: {' '.join(words)}\n    {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_json_blocks_are_json(page):
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
