"""The report page: it holds all it shows, escapes it, stays small, and gives a browser no cause to complain."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import HOSTILE, QUOTED, RUN, WIDE_RUN, make_gallery, write_metrics, write_precision

from browser import needs_chromium, opened
from clipdistill.evaluation import report_figures, report_page
from clipdistill.evaluation.gallery import Gallery
from clipdistill.evaluation.run_record import StageTime
from clipdistill.params import Params

LINES = """
const range = document.createRange();
range.selectNodeContents(arguments[0]);
return new Set([...range.getClientRects()].map((piece) => Math.round(piece.top))).size;
"""
NAMES = ["cat", HOSTILE, 'a "b" & c', "x" * 60]


def page(folder: Path, names: list[str], gallery: Gallery | None, run: report_page.Run = RUN, **options: object) -> str:
    write_metrics(folder / "metrics", names, **options)
    return report_page.render(report_figures.read(folder / "metrics"), gallery, run)


class Outline(HTMLParser):
    """Elements with their attributes, and the text of every element of a kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def test_style_and_script_are_let_in_by_their_hashes_and_nothing_else_is(tmp_path: Path) -> None:
    text = page(tmp_path, NAMES, make_gallery(NAMES))
    outline = Outline(text)
    (policy,) = [a["content"] for tag, a in outline.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    (style,), (_, script) = outline.texts["style"], outline.texts["script"]
    for content in (style, script):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    for _, attributes in outline.elements:
        assert not {"style", "srcset"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))


def test_names_of_classes_and_files_are_only_text(tmp_path: Path) -> None:
    text = page(tmp_path, NAMES, make_gallery(NAMES))
    assert HOSTILE not in text
    outline = Outline(text)
    assert [tag for tag, _ in outline.elements].count("script") == 2
    assert "b" not in {tag for tag, _ in outline.elements}
    captions = [attributes["title"] for tag, attributes in outline.elements if tag == "figcaption" and attributes]
    assert captions == [QUOTED] * 24
    data = json.loads(outline.texts["script"][0])
    assert [name for name, _ in data["classes"]] == NAMES
    assert any(tag.strip().startswith(HOSTILE) for tag in outline.texts["button"])


def test_the_page_says_what_the_metrics_say(tmp_path: Path) -> None:
    text = page(tmp_path, ["cat"], None)
    for number in range(6):
        assert f">{50 + 5 * number}.00<" in text
    for part in ("1 min 35 s", "100 views", "0123456789ab", "2.15.0", "RN50 openai", "name: made", "format."):
        assert part in text
    # Four students, but for the labels of the one that learns from the ground truth.
    assert text.count("<polyline") == 11
    write_precision(tmp_path / "metrics", "cdul")
    text = report_page.render(report_figures.read(tmp_path / "metrics"), None, RUN)
    assert text.count("<polyline") == 12
    assert "Precision over recall" in text
    rows = [row for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL) if "81.00" in row]
    found = [re.findall(r"<td>([\d.-]+)</td>", row)[-4:] for row in rows]
    assert found[0] == ["-", "-", "71.00", "81.00"]
    assert found[4] == ["15.00", "21.00", "75.00", "81.00"]
    kinds = re.findall(r'<th scope="colgroup" colspan="2">([\w ]+)</th>', text)
    assert kinds == ["top 3", "own thresholds", "best thresholds"]


def test_the_page_says_whose_thresholds_the_tags_are_of(tmp_path: Path) -> None:
    gallery = make_gallery(["cat"], 3)
    for number, (own, known, unknown) in enumerate(
        [
            (gallery.own, ("its own threshold", "CLIP, which has none, from score 0.5"), "A class is predicted"),
            (gallery.methods, ("its own threshold",), "which has none"),
            ([], ("A class is predicted from score 0.5 on",), "its own threshold"),
        ]
    ):
        text = " ".join(page(tmp_path / str(number), ["cat"], replace(gallery, own=own)).split())
        assert all(part in text for part in known)
        assert unknown not in text


def test_an_experiment_is_named_and_its_commit_explained(tmp_path: Path) -> None:
    for name in (None, "proud-lion"):
        text = page(tmp_path / str(name), ["cat"], None, replace(RUN, experiment=name))
        assert ("<dt>experiment</dt><dd>proud-lion</dd>" in text) == (name is not None)
        assert ("the one that the experiment begins at" in text) == (name is not None)
        assert "checked out when the report was made" in text


def test_times_of_several_days_are_told_apart(tmp_path: Path) -> None:
    (first,) = RUN.times
    for number, (day, several) in enumerate([("2026-01-02", False), ("2026-01-03", True)]):
        run = replace(RUN, times=[first, replace(first, name="train@ccd", finished=f"{day}T01:00:00+00:00")])
        text = " ".join(page(tmp_path / str(number), ["cat"], None, run).split())
        assert ("<td>2026-01-02</td>" in text, "<td>2026-01-03</td>" in text) == (several, several)
        assert ("all on 2026-01-02" in text, "on several days" in text) == (not several, several)


def test_numbers_a_second_are_told_in_thousands(tmp_path: Path) -> None:
    times = [StageTime("a", 2.0, "", {"views": 24_690}), StageTime("b", 10.0, "", {"images": 3})]
    text = page(tmp_path, ["cat"], None, replace(RUN, times=times))
    assert "<td>12,345 views</td>" in text
    assert "<td>0.3 images</td>" in text


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("methods", [("teacher",), ("teacher", "cdul"), ()])
def test_a_page_with_less_to_show_says_so(tmp_path: Path, methods: tuple[str, ...], labelled: bool) -> None:
    text = page(tmp_path, ["cat"], None, methods=methods, labelled=labelled)
    assert ("no ground truth" in text) == (not labelled)
    assert "No method has scored the images" in text
    assert ("CLIP, whole image" in text) == bool(methods)


def test_without_ground_truth_the_gallery_has_predictions_alone(tmp_path: Path) -> None:
    text = page(tmp_path, NAMES, make_gallery(NAMES, 5, labelled=False), labelled=False)
    kinds = {kind for _, a in Outline(text).elements for kind in re.findall(r"^tag (\w+)", a.get("class") or "")}
    assert kinds <= {"predicted", "below"}
    assert "the most decided" in text


def test_a_page_of_a_thousand_classes_and_noisy_images_is_below_three_megabytes(tmp_path: Path) -> None:
    names = [f"class {number} ".ljust(60, "x") for number in range(1000)]
    assert len(page(tmp_path, names, make_gallery(names)).encode()) < 3_000_000


def test_equal_figures_give_equal_pages(tmp_path: Path) -> None:
    first, second = (page(tmp_path / name, NAMES, make_gallery(NAMES, 3)) for name in ("a", "b"))
    assert first == second


def test_facts_are_left_out_where_nothing_is_known(tmp_path: Path) -> None:
    assert list(report_page.facts(report_figures.read(tmp_path), Params())) == ["Teacher", "Student"]
    write_metrics(tmp_path, ["cat"])
    facts = report_page.facts(report_figures.read(tmp_path), Params())
    assert (facts["Classes"], facts["Training images"], facts["Evaluation images"]) == ("1", "12,000", "9")


@needs_chromium
@pytest.mark.slow
def test_a_thousand_hostile_classes_in_a_browser(tmp_path: Path) -> None:
    names = [f"{HOSTILE} {number} ".ljust(60, "W") for number in range(1000)]
    (tmp_path / "report.html").write_text(page(tmp_path, names, make_gallery(names), WIDE_RUN))
    with opened(tmp_path / "report.html", tmp_path / "profile") as browser:
        for width in (320, 390, 1280):
            assert browser.width(width) <= width
            cells = browser.all("#run .numbers td")
            assert len(cells) == 6
            # A number and its unit stay on one line.
            assert {browser.driver.execute_script(LINES, cell) for cell in cells} == {1}
        rows = browser.all("#class-list .row")
        assert len(rows) == 16
        gains = [float(row.text.split()[-1].replace("\u2212", "-")) for row in rows]
        assert gains == sorted(gains, reverse=True)
        for row in rows:
            first, second, gain = (float(text.replace("\u2212", "-")) for text in row.text.split()[-3:])
            assert first - second == pytest.approx(gain, abs=0.11)
        browser.click(browser.all("#show-all")[0])
        assert len(browser.all("#class-list .row")) == 1000
        browser.select("[name=first]").select_by_value("teacher")
        assert "0 gained, 0 lost, 1000 as before" in browser.all("#counts")[0].text
        browser.all("[name=wanted]")[0].send_keys("> 77 w")
        (row,) = browser.all("#class-list .row")
        assert names[77] in row.text
        browser.all("[name=wanted]")[0].send_keys("!")
        assert browser.all("#counts")[0].text == "No class matches."
        assert browser.all("#class-heads") == []
        assert browser.all("#class-list .row") == []
        assert browser.requests() == set()
        assert browser.complaints() == []
