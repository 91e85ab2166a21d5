"""Our READMEs as HTML: what is known becomes an element, everything else stays text and nothing becomes a script."""

import base64

import pytest

from meta_train.page_markdown import embed, inline, relocate, to_html


def convert(text: str) -> str:
    return to_html(text, "here/", lambda alt, target: f"<PICTURE {alt} {target}>")


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# One\n## Two\ntext", "<h2>One</h2>\n<h3>Two</h3>\n<p>text</p>"),
        ("a\nb\n\nc", "<p>a b</p>\n<p>c</p>"),
        ("text\n- a\n- b\n  more\n\nend", "<p>text</p>\n<ul><li>a</li><li>b more</li></ul>\n<p>end</p>"),
        ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("    x < 1\n    y", "<pre><code>x &lt; 1\ny</code></pre>"),
        ("```sh\n# a\n\n| b |\n```\nc", "<pre><code># a\n\n| b |</code></pre>\n<p>c</p>"),
        ("![an image](a.png)", "<PICTURE an image a.png>"),
        ("text\n![an image](a.png) in it", '<p>text !<a href="here/a.png">an image</a> in it</p>'),
    ],
    ids=["headings", "paragraphs", "list", "numbered", "indented", "fence", "picture", "picture within text"],
)
def test_blocks(markdown, expected):
    assert convert(markdown) == expected


def test_a_table_has_heads_and_cells():
    html = convert("text\n| a | **b** |\n|---|:-:|\n| 1 | `x` |\n| 2 |  |\nmore")
    assert html == (
        '<p>text</p>\n<div class="scroll"><table><thead><tr><th scope="col">a</th>'
        '<th scope="col"><strong>b</strong></th></tr></thead><tbody><tr><td>1</td><td><code>x</code></td></tr>'
        "<tr><td>2</td><td></td></tr></tbody></table></div>"
        "\n<p>more</p>"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*a b* and **c**", "<em>a b</em> and <strong>c</strong>"),
        ("2*3*4 and dm_cl_il and 5 * 6", "2*3*4 and dm_cl_il and 5 * 6"),
        ("`*a* <b>`", "<code>*a* &lt;b&gt;</code>"),
        ("a & b <script>", "a &amp; b &lt;script&gt;"),
        ("[a](b.md)", '<a href="here/b.md">a</a>'),
        ("[a](#b) [c](/d)", '<a href="#b">a</a> <a href="/d">c</a>'),
        ("[a](https://b.c/d?e=1&f=2)", '<a href="https://b.c/d?e=1&amp;f=2">a</a>'),
        ("[a](javascript:alert)", "a"),
        ("[a](JavaScript:alert)", "a"),
        ('[a](b"onclick="c)', '<a href="here/b%22onclick=%22c">a</a>'),
    ],
)
def test_inline(text, expected):
    assert inline(text, "here/") == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [("a/b.md", "../x/a/b.md"), ("#a", "#a"), ("/a", "/a"), ("https://a.b", "https://a.b")],
)
def test_relative_links_alone_are_relocated(target, expected):
    assert relocate(target, "../x/") == expected


def test_a_picture_is_embedded_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "a.exe").write_bytes(b"image")
    data = base64.b64encode(b"image").decode()
    assert embed(tmp_path, 'a "b"', "a.png") == (
        f'<figure><img alt="a &quot;b&quot;" src="data:image/png;base64,{data}"></figure>'
    )
    for other in ("b.png", "a.exe", "https://example.org/a.png"):
        html = embed(tmp_path, "a", other)
        assert other in html and "is not there" in html and "<img" not in html
