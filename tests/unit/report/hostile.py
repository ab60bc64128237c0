"""Names that want to be more than names, and the readers that would notice."""

import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import yaml
from markdown_it import MarkdownIt

VOID = {"meta", "link", "br", "hr", "img", "input"}
CARD_KEYS = {
    "base_model",
    "base_model_relation",
    "license",
    "license_name",
    "license_link",
    "language",
    "datasets",
    "library_name",
    "pipeline_tag",
    "tags",
    "model-index",
}

HOSTILE = [
    # HTML and SVG
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "` onmouseover=`alert(1)",
    "javascript:alert(1)",
    "<a href='javascript:alert(1)'>x</a>",
    "<iframe src=//evil.example></iframe>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    "<form action=https://evil.example><input name=a></form>",
    "<!-- comment",
    "--><script>alert(1)</script>",
    "<![CDATA[ x ]]>",
    "]]><x/>",
    "<?xml version='1.0'?><!DOCTYPE x>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "</table></section></main></body></html>",
    "<style>*{background:url(https://evil.example)}</style>",
    # templates and formulas
    "{{ 7 * 7 }}{% for x in y %}",
    "${7*7} $\\frac{1}{2}$ $",
    "\\u003cscript\\u003e",
    # Markdown
    "[x](javascript:alert(1)) ![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example me@evil.example",
    "<https://evil.example>",
    "a | b || c\\| d",
    "**bold** _x_ ~~gone~~ `code` ``` ~~~",
    "~~~ html",
    "``` html",
    "a\n```\n<script>alert(1)</script>\n````\n",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "12) item",
    "> quote",
    "[x]: https://evil.example",
    "a\n===\nb\n---\n",
    "\\",
    # YAML
    "x\nlicense: mit\nbase_model: evil/model",
    "---\nlicense: mit\n---\n# x",
    "!!python/object/apply:os.system ['x']",
    "&anchor *anchor {a: b} [c, d] # e",
    "null",
    # what text may not hold, or should not
    "a\x00b\x07c\x1b[31m\ud800d",
    "a\ufffeb\uffffc\x85d\u2028e",
    "\u202egnp.exe \u2066x",
    "x" * 5000,
    "模型 🧠 ñ <b>é</b>\nsecond line",
]


class Page(HTMLParser):
    """The page as a tree of tags, checked on the way."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag, tuple(name for name, _ in attrs)] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def blocks(markdown: str) -> list[Any]:
    """What a reader that lets HTML through makes of it: every block, and of what its text consists."""
    return [
        (token.type, token.tag, token.attrs, token.info, [(child.type, child.attrs) for child in token.children or ()])
        for token in READER.parse(markdown)
    ]


def heading(markdown: str) -> str:
    """The first heading as it is shown."""
    tokens = READER.parse(markdown)
    start = next(i for i, token in enumerate(tokens) if token.type == "heading_open")
    return "".join(child.content for child in tokens[start + 1].children or ())


def front_matter(card: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and the rest of it."""
    assert card.startswith("---\n")
    metadata, rest = card[4:].split("\n---\n", 1)
    return yaml.safe_load(metadata), rest


def elements(xml: bytes) -> list[Any]:
    """Every element with the names of its attributes."""
    return [(element.tag, sorted(element.attrib), len(element)) for element in ET.fromstring(xml).iter()]
