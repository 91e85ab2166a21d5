"""The page of all results: what is on it, that nothing is missing or loaded, and where `l2o report` puts it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_examples import LEARNED, METHODS, SETTINGS, STEPS, SUM_STEPS, loss, write_benchmark, write_study

from meta_train.page import page_html, page_markdown, write_page
from meta_train.page_sections import curve_data, find_directories, read_section
from meta_train.report import write_report
from meta_train.report_all import expand, report_all
from meta_train.report_results import banded_methods, loss_limits, read_results, rows_of
from meta_train.report_styles import DARK, LIGHT, method_styles


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page") / "results"
    write_report(write_benchmark(root / "made-up"))
    write_study(root / "study")
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def page(root) -> str:
    return page_html([read_section(directory) for directory in find_directories(root)], root)


def data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


# --- sections ---


def test_directories_of_results_are_found_at_any_depth_benchmarks_first(root):
    write_study(root / "a/deep")
    write_study(root / "made-up/wandb/offline-run")
    names = [path.relative_to(root).as_posix() for path in find_directories(root)]
    assert names == ["made-up", "a/deep", "study"]


def test_a_section_has_name_question_and_one_sentence_of_verdict(root):
    made, study = (read_section(directory) for directory in find_directories(root))
    assert (made.name, made.question) == ("made-up", "Who is <fast> & who is not?")
    assert made.verdict == (
        "**lstm-one** beats the best classic in 2 of 2 settings; **published & two** beats the best classic in "
        "1 of 2 settings; **wild** beats the best classic in 0 of 2 settings."
    )
    assert (study.name, study.question, study.curves) == ("study", "what does it cost?", None)
    assert study.verdict == "*first*: it pays, mostly."


def test_a_readme_without_title_or_verdict_is_shown_under_its_folders_name(tmp_path):
    (tmp_path / "README.md").write_text("Only text.\n")
    section = read_section(tmp_path)
    assert (section.name, section.question, section.verdict) == (tmp_path.name, "", "")


def test_a_directory_without_readme_has_no_section(tmp_path):
    with pytest.raises(ValueError, match="has no README.md to show"):
        read_section(tmp_path)


def test_a_section_of_damaged_files_is_an_error_that_names_the_directory(root):
    (root / "made-up/curves.csv").write_text("setting,method\n<20> units,SGD\n")
    with pytest.raises(ValueError, match="made-up is not a benchmark's directory: KeyError"):
        read_section(root / "made-up")


def test_the_curves_are_those_of_the_csv_files_and_what_is_not_finite_is_null(root):
    curves = curve_data(read_results(root / "made-up"))
    assert [panel["title"] for panel in curves["panels"]] == list(SETTINGS)
    assert [method["name"] for method in curves["methods"]] == list(METHODS)
    for panel in curves["panels"]:
        assert panel["steps"] == list(range(STEPS)) and panel["mark"] == SUM_STEPS
        for method in METHODS:
            expected = [loss(panel["title"], method, step) for step in range(STEPS)]
            found = panel["series"][method]["mean"]
            # five digits in the file
            assert found == [None if value == float("inf") else pytest.approx(value, rel=1e-4) for value in expected]
        assert panel["series"]["SGD"]["q25"][3] == pytest.approx(0.8 * loss(panel["title"], "SGD", 3), rel=1e-4)
        assert panel["series"]["wild"]["mean"][-1] is None


def test_a_method_that_lacks_steps_has_gaps(root):
    file = root / "made-up/curves.csv"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("<20> units,NAG,7,")]
    file.write_text("\n".join(lines) + "\n")
    (panel, other) = curve_data(read_results(root / "made-up"))["panels"]
    assert [step for step in range(STEPS) if panel["series"]["NAG"]["mean"][step] is None] == [7]
    assert None not in other["series"]["NAG"]["mean"]


def test_bands_are_those_of_learned_rules_and_the_best_classic_of_each_setting(root):
    results = read_results(root / "made-up")
    first, second = (banded_methods(rows_of(results.summary, setting)) for setting in SETTINGS)
    assert first == {*LEARNED, "NAG"} and second == {*LEARNED, "momentum"}


def test_a_diverging_curve_does_not_stretch_the_axis(root):
    low, high = loss_limits(rows_of(read_results(root / "made-up").curves, SETTINGS[0]))
    assert high == pytest.approx(25.0)  # ten times the losses at step 0
    assert low == pytest.approx(loss(SETTINGS[0], "lstm-one", STEPS - 1), rel=1e-4)


@pytest.mark.parametrize("values", [["0", "-1"], ["nan", "inf"]])
def test_limits_exist_even_where_no_loss_can_be_drawn(values):
    assert loss_limits([{"step": "0", "mean": value} for value in values]) == (0.1, 1.0)


# --- styles ---


def test_every_method_of_a_figure_is_drawn_differently_and_learned_rules_are_solid():
    summary = [{"method": f"l{i}", "kind": "learned"} for i in range(12)]
    summary += [{"method": f"c{i}", "kind": "classic"} for i in range(12)]
    styles = method_styles(summary)
    assert len(set(styles.values())) == 24
    assert all((style.dash == ()) == (name[0] == "l") == bool(style.marker) for name, style in styles.items())


@pytest.mark.parametrize(("palette", "ground"), [(LIGHT, "#ffffff"), (DARK, "#14171a")], ids=["light", "dark"])
def test_lines_have_a_contrast_of_three_to_the_page(palette, ground):
    assert f"--ground: {ground}" in (Path(__file__).parents[2] / "meta_train/page.css").read_text()

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for colour in palette:
        bright, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 3, colour


# --- the page ---


class Elements(HTMLParser):
    """Collects elements, and checks that they are nested."""

    VOID = ("meta", "link", "img")

    def __init__(self, page: str):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_has_every_section_with_verdict_command_table_and_curves(page):
    elements = Elements(page).found
    assert page.count("<section") == 2 and page.count("<h1>") == 1
    assert '<a href="#s0">made-up</a>: Who is &lt;fast&gt; &amp; who is not? <strong>lstm-one</strong> beats' in page
    assert "<code>l2o benchmark made-up</code>" in page and "<code>l2o study --out results/study</code>" in page
    assert page.count("<table>") == 3
    assert [facts["data-figure"] for tag, facts in elements if "data-figure" in facts] == ["0"]
    assert data(page).keys() == {"0"}
    images = [facts["src"] for tag, facts in elements if tag == "img"]
    assert len(images) == 1 and images[0].startswith("data:image/png;base64,")


def test_the_page_loads_nothing_and_forbids_itself_to(page):
    elements = Elements(page).found
    for tag, facts in elements:
        assert "src" not in facts or facts["src"].startswith("data:")
        assert tag != "link" or facts["href"].startswith("data:")
    assert "@import" not in page and "url(#" in page and not re.search(r"url\((?!#|`)", page)
    assert any("default-src 'none'" in facts.get("content", "") for tag, facts in elements if tag == "meta")


def test_what_results_say_cannot_become_part_of_the_script(root):
    facts = json.loads((root / "made-up/protocol.json").read_text())
    evil = "</script><script>alert(1)</script>{{script}}"
    facts["settings"] = {evil: "Task()"}
    (root / "made-up/protocol.json").write_text(json.dumps(facts))
    for name in ("summary.csv", "curves.csv"):
        text = (root / f"made-up/{name}").read_text()
        (root / f"made-up/{name}").write_text(text.replace(SETTINGS[0], evil))
    write_report(root / "made-up")
    page = page_html([read_section(root / "made-up")], root)
    assert data(page)["0"]["panels"][0]["title"] == evil
    assert page.count("<script") == 2 and "{{script}}" in page


def test_a_page_is_rebuilt_to_the_same_bytes(root):
    sections = [read_section(directory) for directory in find_directories(root)]
    first = [file.read_bytes() for file in write_page(sections, root / "report")]
    assert [file.read_bytes() for file in write_page(sections, root / "report")] == first


def test_the_markdown_page_has_all_readmes_one_level_lower_with_links_that_lead_there(root):
    sections = [read_section(directory) for directory in find_directories(root)]
    text = page_markdown(sections, root)
    assert [line for line in text.splitlines() if re.match("##? ", line)] == [
        "# l2o: results", "## made-up: Who is <fast> & who is not?", "## study: what does it cost?",
        "# not a heading | ![not a picture](figure.png)",
    ]  # fmt: skip
    assert "- [made-up](#made-up-who-is-fast--who-is-not): Who" in text
    assert "![curves](made-up/curves.png)" in text and "[link](study/details.md)" in text
    assert "(https://example.org/a?b=1&c=2)" in text
    for target in re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE):
        assert (root / target).is_file()


# --- l2o report ---


def test_one_directory_is_rebuilt_alone(root):
    (root / "made-up/README.md").unlink()
    sections, files = report_all([root / "made-up"], None)
    assert files == [root / "made-up/README.md", root / "made-up/curves.png"] and all(map(Path.is_file, files))
    assert [section.name for section in sections] == ["made-up"]
    assert not list(root.glob("report.*"))


@pytest.mark.parametrize("names", [(), ("results",), ("results/made-up", "results/study")], ids=str)
def test_none_a_folder_or_several_directories_also_get_a_page_beside_them(names, root, monkeypatch):
    monkeypatch.chdir(root.parent)
    (root / "made-up/curves.png").unlink()
    before = (root / "study/README.md").read_bytes()
    _, files = report_all([Path(name) for name in names], None)
    assert [file.as_posix() for file in files] == [
        "results/made-up/README.md", "results/made-up/curves.png", "results/report.md", "results/report.html",
    ]  # fmt: skip
    assert all(map(Path.is_file, files)) and (root / "study/README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("page.html", ["page.md", "page.html"]),
        ("a/page.md", ["a/page.md", "a/page.html"]),
        ("a/b", ["a/b/report.md", "a/b/report.html"]),
    ],
)
def test_the_page_goes_where_out_says(out, files, root, tmp_path):
    _, written = report_all([root / "made-up"], tmp_path / out)
    assert written[2:] == [tmp_path / file for file in files]
    assert "../" * files[0].count("/") + "results/made-up/curves.png" in written[2].read_text()


def test_directories_in_several_folders_need_a_place_for_the_page(root, tmp_path):
    other = write_study(tmp_path / "runs/other")
    with pytest.raises(ValueError, match="lie in several folders .*; say with --out where the page goes"):
        report_all([root / "made-up", other], None)
    assert len(report_all([root / "made-up", other], tmp_path / "page.html")[1]) == 4


def test_no_directory_and_no_results_folder_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no results/ here; name at least one directory"):
        expand([])


def test_a_single_study_is_shown_as_its_command_wrote_it(root):
    before = (root / "study" / "README.md").read_text()
    (section,), written = report_all([root / "study"], None)
    assert (section.markdown, (root / "study" / "README.md").read_text(), written) == (before, before, [])


def test_a_single_directory_without_results_is_refused(root):
    with pytest.raises(ValueError, match="nothing is not a benchmark's directory"):
        report_all([root / "nothing"], None)


def test_a_directory_without_results_is_an_error_among_others_too(root):
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not a benchmark's directory"):
        report_all([root / "made-up", root / "empty"], None)


def test_a_directory_named_twice_is_shown_once(root):
    assert expand([root, root / "study"]) == [root / "made-up", root / "study"]


def test_a_page_that_cannot_be_written_is_an_os_error(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_page([read_section(root / "study")], tmp_path / "file/report")
