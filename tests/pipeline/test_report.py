"""The report of a real run: what DVC thinks of it, and what a browser does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import Project

from browser import Page, needs_chromium, opened

pytestmark = pytest.mark.slow

DECODE = "const [image, done] = arguments; image.decode().then(() => done(image.naturalWidth), () => done(0))"


def test_the_report_is_of_this_run_and_reruns_nothing(finished: Project) -> None:
    text = (finished.folder / "metrics" / "report.html").read_text()
    for method in ("teacher", "cdul", "ccd", "supervised"):
        assert f">{finished.json(f'metrics/{method}.json')['val']['mAP']:.2f}<" in text
    (commit,) = re.findall(r"commit</dt><dd>(\w{12})</dd>", text)
    assert commit in finished.run("git", "rev-list", "--abbrev-commit", "--abbrev=12", "HEAD~1").stdout.split()
    assert "Not recorded here" not in text
    assert finished.json(".work/times/scenes/train@ccd.json")["seconds"] > 0
    assert finished.json(".work/times/scenes/predict@ccd.json")["counts"] == {"images": 20}
    assert "train@<wbr>ccd</th>" in text
    assert finished.changed() == set()
    assert not finished.run("git", "status", "--porcelain").stdout
    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())
    assert lock["stages"]["report"]["outs"][0]["size"] < 3_000_000


def test_the_times_of_a_run_are_no_output(project: Project) -> None:
    before = (project.folder / "metrics" / "report.html").read_bytes()
    times = project.folder / ".work" / "times" / "scenes"
    (times / "format.json").write_text('{"seconds": 1, "finished": "", "counts": {}}')
    assert project.changed() == set()
    project.run("stages/run", "report")
    assert (project.folder / "metrics" / "report.html").read_bytes() != before


@needs_chromium
def test_a_browser_opens_the_report_and_everything_in_it_works(finished: Project, tmp_path: Path) -> None:
    with opened(finished.folder / "metrics" / "report.html", tmp_path / "profile") as page:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                assert page.width(width, scheme) <= width
        assert len(page.all("#methods .bars .row")) == 8
        assert len(page.all("#curves svg.chart")) == 4
        rows = [row.text for row in page.all("#class-list .row")]
        assert 1 <= len(rows) <= 12
        page.select("[name=first]").select_by_value("supervised")
        assert [row.text for row in page.all("#class-list .row")] != rows
        page.all("[name=wanted]")[0].send_keys("zzz")
        assert page.all("#class-list .row") == page.all("#class-heads") == []
        assert page.all("#counts")[0].text == "No class matches."
        for method in ("teacher", "supervised", "cdul"):
            page.select("[name=method]").select_by_value(method)
            shown = {said.get_attribute("data-method") for said in page.all(".said")}
            assert shown == {method}
            assert bool(page.all("button.tag")) == (method != "teacher")
        _press_every_tag(page)
        for link in page.all("nav a"):
            page.click(link)
        page.click(page.all("summary")[0])
        assert "update_rounds: 2" in page.all("pre")[0].text
        assert page.requests() == set()
        assert page.complaints() == []


def _press_every_tag(page: Page) -> None:
    figures = page.all("figure[data-picture]")
    assert len(figures) == 20
    for figure in figures:
        for tag in [found for found in figure.find_elements("css selector", "button.tag") if found.is_displayed()]:
            page.click(tag)
            heat = figure.find_element("css selector", ".heat")
            assert heat.is_displayed()
            assert page.driver.execute_async_script(DECODE, heat) == 24
    tag = page.all("button.tag[aria-pressed=true]")[0]
    count = len(page.all(".heat"))
    page.click(tag)
    assert len(page.all(".heat")) == count - 1
