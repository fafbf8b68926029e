"""The report as one HTML page that holds everything it shows: no request to anywhere, nothing that runs but its own.

Template, style and script lie in `page/`. The template escapes whatever it is given; style and script are let in by
their hashes, and no policy lets in anything else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from clipdistill.evaluation import charts
from clipdistill.evaluation.gallery import Gallery
from clipdistill.evaluation.report_figures import Figures
from clipdistill.evaluation.run_record import StageTime
from clipdistill.evaluation.summary import METHODS
from clipdistill.params import Params

_FOLDER = Path(__file__).parent / "page"

# What the page begins with when it compares two methods: the best that learns without labels, and CLIP alone.
_COMPARED, _BASE = ("ccd", "cdul", "global"), ("teacher", "teacher_views")


@dataclass(frozen=True, slots=True)
class Run:
    """How the run was made.

    Attributes:
        dataset: its name.
        commit: of git.
        experiment: name of the DVC experiment; None where the run is none.
        versions: by package.
        params: all parameters, as YAML.
        summary: the few parameters that a reader asks for first, by name.
        times: of the stages that ran in this checkout.
        unrecorded: names of the other stages.
    """

    dataset: str
    commit: str
    experiment: str | None
    versions: Mapping[str, str]
    params: str
    summary: Mapping[str, str]
    times: list[StageTime]
    unrecorded: list[str]


def render(figures: Figures, gallery: Gallery | None, run: Run) -> str:
    """Write the page.

    Args:
        figures: of the metrics files.
        gallery: None where no method scored images.
        run: how it was made.

    Returns:
        HTML, below 3 MB with up to 1,000 classes.
    """
    style, script = (_read(name) for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": _percent, "duration": _duration, "rate": _rate, "data_uri": _data_uri}
    environment.filters |= {"sentence": _sentence, "breakable": _breakable}
    return environment.get_template("report.html.jinja").render(
        style=Markup(style),  # noqa: S704 - the project's own file
        script=Markup(script),  # noqa: S704 - the project's own file
        policy=_policy(style, script),
        figures=figures,
        gallery=gallery,
        run=run,
        names=METHODS,
        bar=charts.bar,
        line_chart=charts.line_chart,
        compared=_compared(figures),
        data=_data(figures, gallery),
    )


def facts(figures: Figures, params: Params) -> dict[str, str]:
    """What a reader asks for first, by name: the data, the teacher, the student.

    Args:
        figures: of the metrics files.
        params: all parameters.
    """
    data, student = figures.dataset, params.train.student
    found = {}
    if "classes" in data:
        found["Classes"] = f"{data['classes']:,}"
        found["Training images"] = f"{data['train']['images']:,}"
        found["Evaluation images"] = f"{data['val']['images']:,}"
    found["Teacher"] = " ".join(filter(None, [params.clip.model, params.clip.pretrained]))
    found["Student"] = f"{student.backbone}, {student.image_size} pixels"
    return found


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Content security policy: the two inline texts by their hashes, images from the page itself, nothing else."""
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{sums[0]}'; script-src 'sha256-{sums[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _compared(figures: Figures) -> list[str]:
    """Keys of the two methods that the classes are first compared by."""
    known = [method.key for method in figures.methods if any(method.key in row for row in figures.classes.values())]
    first = next((key for key in _COMPARED if key in known), known[-1] if known else "")
    second = next((key for key in _BASE if key in known), known[0] if known else "")
    return [first, second]


def _data(figures: Figures, gallery: Gallery | None) -> dict[str, Any]:
    """What the script reads: average precision by class, heatmaps by picture, method and column."""
    pictures = [picture for group in gallery.groups for picture in group.pictures] if gallery else []
    return {
        "classes": [[name, row] for name, row in figures.classes.items()],
        "heat": [
            {
                method: {column: base64.b64encode(png).decode() for column, png in said.heat.items()}
                for method, said in picture.said.items()
                if said.heat
            }
            for picture in pictures
        ],
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _sentence(text: str) -> str:
    """A text with a capital where it begins; what follows stays (CLIP)."""
    return text[:1].upper() + text[1:]


def _breakable(name: str) -> Markup:
    """A stage's name that may go on in the next line after @ and _, and nowhere within its words."""
    return Markup("").join(Markup("{}{}").format(part, Markup("<wbr>") if part in "@_" else "") for part in name)


def _duration(seconds: float) -> str:
    """A time for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _rate(number: float) -> str:
    """A number a second, with a decimal where it is small."""
    return f"{number:,.1f}" if number < 10 else f"{number:,.0f}"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
