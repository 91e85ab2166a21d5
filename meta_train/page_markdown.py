"""Turn the Markdown of our READMEs into HTML: headings, paragraphs, lists, tables, code, links and pictures.

Not all of Markdown, but all that `results/*/README.md` is written in; what it does not know stays readable text.
"""

import base64
import html
import re
from collections.abc import Callable
from pathlib import Path

_ROW = re.compile(r"^\|.*\|\s*$")
_RULE = re.compile(r"^\|[\s:|-]+\|\s*$")
_ITEM = re.compile(r"^(?:[-*]|\d+\.) ")
_HEADING = re.compile(r"^(#{1,5}) (.*)")
_IMAGE = re.compile(r"^!\[([^]]*)\]\(([^)\s]+)\)$")
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}

Picture = Callable[[str, str], str]
"""(alternative text, target) → HTML of a picture."""


def to_html(text: str, prefix: str, picture: Picture) -> str:
    r"""Return Markdown as HTML; `#` becomes `<h2>`, since a page has one title of its own.

    Args:
        prefix: put before relative links, such as "mnist/".
        picture: what to show for a picture on a line of its own.

    >>> to_html("# A < B\nSee *this* and `x*y*`.", "", lambda alt, target: "")
    '<h2>A &lt; B</h2>\n<p>See <em>this</em> and <code>x*y*</code>.</p>'
    """
    return "\n".join(_block(lines, prefix, picture) for lines in _blocks(text))


def embed(folder: Path, alt: str, target: str) -> str:
    """Return an `<img>` that carries its file with it; a file that is not there is named."""
    path, mime = folder / target, _MIME.get(Path(target).suffix.lower())
    if mime is None or not path.is_file():
        return f'<p class="missing">(picture {html.escape(target)} is not there)</p>'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(alt)}" src="data:{mime};base64,{data}"></figure>'


def inline(text: str, prefix: str = "") -> str:
    """Return a line of Markdown as HTML: code, bold, italics and links."""
    parts = re.split(r"`([^`]+)`", text)  # every second part is code
    return "".join(
        f"<code>{html.escape(part)}</code>" if index % 2 else _emphasise(part, prefix)
        for index, part in enumerate(parts)
    )


def relocate(target: str, prefix: str) -> str:
    """Return where a link of a README leads when the text stands elsewhere."""
    return target if re.match(r"[a-z]+:|[#/]", target, re.IGNORECASE) else prefix + target


def _emphasise(text: str, prefix: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"\*\*(\S(?:[^*]*\S)?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<!\w)\*(\S(?:[^*]*\S)?)\*(?!\w)", r"<em>\1</em>", text)
    return re.sub(r"\[([^]]+)\]\(([^)\s]+)\)", lambda found: _link(found[1], found[2], prefix), text)


def _link(words: str, target: str, prefix: str) -> str:
    target = relocate(target, prefix)
    if re.match(r"(?!https?:|mailto:)[a-z]+:", target, re.IGNORECASE):  # javascript: and the like
        return words
    return f'<a href="{target.replace(chr(34), "%22")}">{words}</a>'


def _blocks(text: str) -> list[list[str]]:
    """Split at empty lines, and where a heading, a table, a list or a fence begins or ends."""
    blocks: list[list[str]] = []
    open_kind = None
    for line in text.splitlines():
        fenced = open_kind == "fence"
        kind = "fence" if fenced else _kind(line, open_kind)
        if kind in ("empty", "heading") or kind != open_kind:
            blocks.append([])
        blocks[-1].append(line)
        open_kind = None if kind in ("empty", "heading") or (fenced and line.startswith("```")) else kind
    return [block for block in blocks if block and block[0].strip()]


def _kind(line: str, open_kind: str | None) -> str:
    if not line.strip():
        return "empty"
    if line.startswith("```"):
        return "fence"
    if _HEADING.match(line):
        return "heading"
    if _ROW.match(line):
        return "table"
    if _ITEM.match(line):
        return "list"
    if line.startswith("    ") and open_kind in (None, "code"):
        return "code"
    return "list" if open_kind == "list" else "text"  # a list's item may go on in the next line


def _block(lines: list[str], prefix: str, picture: Picture) -> str:
    first = lines[0]
    if first.startswith("```"):
        return f"<pre><code>{html.escape(chr(10).join(lines[1:-1]))}</code></pre>"
    if heading := _HEADING.match(first):
        level = len(heading[1]) + 1
        return f"<h{level}>{inline(heading[2], prefix)}</h{level}>"
    if _ROW.match(first):
        return _table(lines, prefix)
    if _ITEM.match(first):
        return _list(lines, prefix)
    if first.startswith("    "):
        return f"<pre><code>{html.escape(chr(10).join(line[4:] for line in lines))}</code></pre>"
    if len(lines) == 1 and (image := _IMAGE.match(first.strip())):
        return picture(image[1], image[2])
    return f"<p>{inline(' '.join(lines), prefix)}</p>"


def _list(lines: list[str], prefix: str) -> str:
    items: list[str] = []
    for line in lines:
        if _ITEM.match(line):
            items.append(_ITEM.sub("", line))
        else:
            items[-1] += " " + line.strip()
    tag = "ol" if lines[0][0].isdigit() else "ul"
    return f"<{tag}>" + "".join(f"<li>{inline(item, prefix)}</li>" for item in items) + f"</{tag}>"


def _table(lines: list[str], prefix: str) -> str:
    rows = [[inline(cell.strip(), prefix) for cell in _cells(line)] for line in lines if not _RULE.match(line)]
    head = "".join(f'<th scope="col">{cell}</th>' for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip()[1:-1])
