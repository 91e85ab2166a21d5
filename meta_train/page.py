"""One page with the tables and curves of all results: report.md, and report.html, a file that needs nothing else."""

import functools
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from meta_train.page_markdown import embed, inline, relocate, to_html
from meta_train.page_sections import Section
from meta_train.report_styles import DARK, LIGHT

TITLE = "l2o: results"
INTRODUCTION = (
    "Optimizers that were trained themselves, raced with tuned classics. Every section has its question, the verdict, "
    "the table, the curves and the command that made them; losses count: lower is better."
)
_HINT = "Click a column's head to sort. Point at a curve to read its values; click a method to hide or show it."


def write_page(sections: Sequence[Section], stem: Path) -> tuple[Path, Path]:
    """Write one page, as Markdown and as HTML.

    Args:
        stem: where to write, without suffix, such as results/report.

    Returns: the two files.

    Raises:
        OSError: if the files cannot be written.
    """
    files = stem.parent / f"{stem.name}.md", stem.parent / f"{stem.name}.html"
    stem.parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(page_markdown(sections, stem.parent))
    files[1].write_text(page_html(sections, stem.parent))
    return files


def page_markdown(sections: Sequence[Section], folder: Path) -> str:
    """Return all READMEs as one, headings one level lower, links and pictures seen from `folder`."""
    overview = "\n".join(f"- [{section.name}](#{_slug(section)}){_summary(section)}" for section in sections)
    parts = [f"# {TITLE}\n\n{INTRODUCTION}\n\n{overview}\n"]
    for section in sections:
        prefix = _prefix(section, folder)
        pieces = re.split(r"(^```.*?^```)", section.markdown, flags=re.MULTILINE | re.DOTALL)
        pieces[::2] = [_moved(piece, prefix) for piece in pieces[::2]]  # every second piece is fenced code
        parts.append("".join(pieces))
    return "\n".join(parts)


def page_html(sections: Sequence[Section], folder: Path) -> str:
    """Return the page: styles, script and data are part of it, and it loads nothing."""
    figures = {str(index): section.curves for index, section in enumerate(sections) if section.curves}
    overview = "".join(
        f'<li><a href="#s{index}">{html.escape(section.name)}</a>{inline(_summary(section))}</li>'
        for index, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{index}">{_section_html(index, section, folder)}</section>'
        for index, section in enumerate(sections)
    )
    parts = {
        "title": TITLE,
        "introduction": INTRODUCTION,
        "hint": _HINT,
        "overview": overview,
        "body": body,
        "style": _fill(_asset("page.css"), {"light": _palette(LIGHT), "dark": _palette(DARK)}),
        "script": _asset("page_tables.js") + _asset("page_curves.js"),
        "data": json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return _fill(_asset("page.html"), parts)


def _fill(template: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts.get(found[1], found[0]), template)


def _section_html(index: int, section: Section, folder: Path) -> str:
    prefix = _prefix(section, folder)

    def picture(alt: str, target: str) -> str:
        if section.curves and target == "curves.png":
            fallback = f'<a href="{html.escape(prefix + target)}">{html.escape(target)}</a>'
            noscript = f"<noscript>The curves need JavaScript; as a picture: {fallback}</noscript>"
            return f'<div class="curves" data-figure="{index}">{noscript}</div>'
        return embed(section.directory, alt, target)

    return to_html(section.markdown, prefix, picture)


def _moved(text: str, prefix: str) -> str:
    """Return Markdown for a page that stands elsewhere: headings one level lower, relative links behind `prefix`."""
    text = re.sub(r"^(?=#{1,5} )", "#", text, flags=re.MULTILINE)
    return re.sub(r"\]\(([^)\s]+)\)", lambda found: f"]({relocate(found[1], prefix)})", text)


def _summary(section: Section) -> str:
    """Return question and verdict, to follow the section's name."""
    question = f": {section.question}" if section.question else ""
    return question + (f" {section.verdict}" if section.verdict else "")


def _prefix(section: Section, folder: Path) -> str:
    return os.path.relpath(section.directory, folder).replace(os.sep, "/") + "/"


def _slug(section: Section) -> str:
    """Return the anchor that GitHub and GitLab give the section's heading."""
    heading = section.markdown.splitlines()[0].removeprefix("# ") if section.markdown else section.name
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _palette(colours: Sequence[str]) -> str:
    return "".join(f"--c{index}:{colour};" for index, colour in enumerate(colours))


@functools.cache
def _asset(name: str) -> str:
    return resources.files("meta_train").joinpath(name).read_text(encoding="utf-8")
