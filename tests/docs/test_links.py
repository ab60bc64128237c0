"""Every link of the documentation leads somewhere, and every page is found from the index."""

from pathlib import Path
from urllib.parse import urlsplit

from tests.docs.pages import PAGES, ROOT, anchors, links, name

INDEX = ROOT / "docs" / "README.md"
GUIDES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
IN_GROUPS = [ROOT / "docs" / "reference", ROOT / "docs" / "results"]  # of which the index lists the directory


def target(page: Path, link: str) -> tuple[Path, str]:
    """The file or directory, and the place in it, to which a link leads that stays in the repository."""
    parts = urlsplit(link)
    return (page.parent / parts.path).resolve() if parts.path else page, parts.fragment


def inside(page: Path) -> list[str]:
    return [link for link in links(page) if not urlsplit(link).scheme]


def test_every_link_leads_somewhere() -> None:
    for page, link in ((one, link) for one in PAGES for link in inside(one)):
        path, place = target(page, link)
        assert path.exists(), f"{name(page)} links to {link}: there is no such file"
        assert path.is_relative_to(ROOT), f"{name(page)} links to {link}: that is outside"
        assert not place or place in anchors(path), f"{name(page)} links to {link}: the page has no such heading"


def test_links_of_all_kinds_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    headings = "# A `b` c: d_e, f\n\n## Twice\n\n## Twice\n\n"
    page.write_text(headings + "[x](a.md#b) ![y](c.svg)\n\n| [z](d/) |\n|---|\n| [w][v] |\n\n[v]: e.md\n")
    assert list(links(page)) == ["a.md#b", "c.svg", "d/", "e.md"]
    assert anchors(page) == {"a-b-c-d_e-f", "twice", "twice-1"}


def test_the_index_lists_every_page() -> None:
    listed = {target(INDEX, link)[0] for link in inside(INDEX)} | {INDEX}
    missing = [name(page) for page in (*GUIDES, *IN_GROUPS) if not {page, page / "README.md"} & listed]
    assert not missing, f"add to {name(INDEX)}"


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        for path, _ in (target(page, link) for link in inside(page)):
            ahead += [path] if path.suffix == ".md" else sorted(path.glob("*.md")) if path.is_dir() else []
    assert set((ROOT / "docs").rglob("*.md")) <= reached
