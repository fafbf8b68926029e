"""The report page: it holds all it shows, escapes it, stays small, and gives a browser no cause to complain."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import HOSTILE, QUOTED, RUN, make_gallery, write_metrics

from browser import needs_chromium, opened
from clipdistill.evaluation import report_figures, report_page
from clipdistill.evaluation.gallery import Gallery
from clipdistill.params import Params

NAMES = ["cat", HOSTILE, 'a "b" & c', "x" * 60]


def page(folder: Path, names: list[str], gallery: Gallery | None, **options: object) -> str:
    write_metrics(folder / "metrics", names, **options)
    return report_page.render(report_figures.read(folder / "metrics"), gallery, RUN)


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
    assert text.count("<polyline") == 12


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
    (tmp_path / "report.html").write_text(page(tmp_path, names, make_gallery(names)))
    with opened(tmp_path / "report.html", tmp_path / "profile") as browser:
        assert browser.width(390) <= 390
        assert browser.width(1280) <= 1280
        rows = browser.all("#class-list .row")
        assert len(rows) == 16
        gains = [float(row.text.split()[-1].replace("\u2212", "-")) for row in rows]
        assert gains == sorted(gains, reverse=True)
        browser.click(browser.all("#show-all")[0])
        assert len(browser.all("#class-list .row")) == 1000
        browser.select("[name=first]").select_by_value("teacher")
        assert "0 gained, 0 lost, 1000 as before" in browser.all("#counts")[0].text
        browser.all("[name=wanted]")[0].send_keys("> 77 w")
        (row,) = browser.all("#class-list .row")
        assert names[77] in row.text
        assert browser.requests() == set()
        assert browser.complaints() == []
