"""Charts: where shapes stand, and that any text is only text."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree.ElementTree import Element

import pytest
from defusedxml import ElementTree
from hypothesis import given
from hypothesis import strategies as st

from clipdistill.evaluation.charts import Series, bar, line_chart, ticks


def parsed(text: str) -> Element:
    return ElementTree.fromstring(text)


@pytest.mark.parametrize(("value", "width"), [(61.04, 61.04), (0.0, 0.0), (100.0, 100.0), (130.0, 100.0), (-5.0, 0.0)])
def test_a_bar_is_as_long_as_its_value(value: float, width: float) -> None:
    track, fill = parsed(bar(value, "cdul"))
    assert track.get("width") == "100%"
    assert fill.get("width") == f"{width:.2f}%"


@given(low=st.floats(-1e6, 1e6), spread=st.floats(0, 1e6))
def test_ticks_enclose_the_range_in_few_even_steps(low: float, spread: float) -> None:
    found = ticks(low, low + spread)
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    slack = 1e-9 * max(1.0, abs(low), spread)
    assert found[0] <= low + slack
    assert found[-1] >= low + spread - slack


def test_points_stand_where_their_values_are() -> None:
    chart = parsed(line_chart("mAP", [Series("cdul", "CDUL", ((1, 60.0), (2, 80.0), (5, 100.0)))]))
    circles = [element for element in chart.iter() if element.tag == "circle"]
    assert [(c.get("cx"), c.get("cy")) for c in circles] == [
        ("0.00%", "100.00%"),
        ("25.00%", "50.00%"),
        ("100.00%", "0.00%"),
    ]
    (line,) = [element for element in chart.iter() if element.tag == "polyline"]
    assert line.get("points") == "0.00,100.00 25.00,50.00 100.00,0.00"
    assert [element.text for element in chart if element.get("class") == "step"] == ["1", "2", "3", "4", "5"]


def test_an_axis_may_be_wider_than_its_points() -> None:
    chart = parsed(line_chart("PR", [Series("cdul", "CDUL", ((25.0, 90.0), (75.5, 40.0)))], span=(0, 100)))
    assert [circle.get("cx") for circle in chart.iter("circle")] == ["25.00%", "75.50%"]
    assert [element.text for element in chart if element.get("class") == "step"] == ["0", "20", "40", "60", "80", "100"]


def test_one_epoch_is_a_point_without_a_line() -> None:
    chart = parsed(line_chart("loss", [Series("ccd", "CCD", ((1, 0.5),))]))
    tags = [element.tag for element in chart.iter()]
    assert (tags.count("circle"), tags.count("polyline")) == (1, 0)
    assert "nan" not in ElementTree.tostring(chart, encoding="unicode")


def test_many_epochs_are_a_line_without_points_and_few_numbers() -> None:
    points = tuple((float(x), math.sin(x)) for x in range(1, 301))
    chart = parsed(line_chart("loss", [Series("ccd", "CCD", points)]))
    assert not [element for element in chart.iter() if element.tag == "circle"]
    assert len([element for element in chart if element.get("class") == "step"]) <= 7


def test_names_are_text_and_never_markup() -> None:
    hostile = '"><script>alert(1)</script>'
    chart = parsed(line_chart(hostile, [Series("cdul", hostile, ((1, 1.0), (2, 2.0)))]))
    assert chart.get("aria-label") == hostile
    assert "script" not in {element.tag for element in chart.iter()}
