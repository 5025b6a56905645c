"""Reports as tests make and read them: a tree that needs every tag to be closed in its order."""

from html.parser import HTMLParser
from pathlib import Path

from recipes.report import main

VOID = {"meta", "link", "br", "img", "input", "hr"}


def make(output, *words) -> Path:
    """Make a report; its page."""
    assert main([*map(str, words), "-o", str(output)]) == 0
    return Path(output) / "index.html"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Node:
    """One element; ``text`` is that of everything inside."""

    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, dict(attributes), parent
        self.children = []

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag=None, **attributes):
        """Elements inside, in order, by tag and by attributes (``class_`` for ``class``)."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        for child in self.children:
            if isinstance(child, Node):
                has = all(child.attributes.get(name) == value for name, value in wanted.items())
                if (tag is None or child.tag == tag) and has:
                    yield child
                yield from child.all(tag, **attributes)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.open = Node("document", {}, None)

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        node = Node(tag, attributes, self.open)
        self.open.children.append(node)
        if tag not in VOID:
            self.open = node

    def handle_endtag(self, tag):
        assert self.open.tag == tag, f"</{tag}> ends <{self.open.tag}> at {self.getpos()}"
        self.open = self.open.parent

    def handle_data(self, text):
        self.open.children.append(text)


def read_page(path: Path) -> Node:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open is reader.root, f"<{reader.open.tag}> is never closed"
    return reader.root


def rows_of(page: Node, table: str) -> list[dict[str, Node]]:
    """Rows of the table of that id: cells by the column's title without arrows."""
    (found,) = page.all("table", id=table)
    head, body = found.all("thead"), found.all("tbody")
    titles = [cell.text.strip(" \xa0↑↓") for cell in next(head).all("th")]
    lines = [[n for n in line.all() if n.tag in ("th", "td")] for line in next(body).all("tr")]
    return [dict(zip(titles, line, strict=True)) for line in lines]


def shown(cell: Node) -> tuple[str, str]:
    """Value of a cell, and its interval."""
    small = [node.text for node in cell.all("span")]
    value = "".join(child for child in cell.children if isinstance(child, str)).strip()
    return value, small[0] if small else ""
