"""What experiments/search.py makes of its command line; the search itself is run in tests/pipeline."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import search
from clipdistill.errors import ArtifactError, ParamsError


def draw(text: str, trials: int = 20) -> tuple[str, list[object]]:
    key, suggest = search.parse_dimension(text)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return key, [suggest(study.ask()) for _ in range(trials)]


def test_domains() -> None:
    key, values = draw("pseudo_label.cdul.threshold=0.0:0.4")
    assert key == "pseudo_label.cdul.threshold"
    assert all(isinstance(value, float) and 0 <= value <= 0.4 for value in values)
    assert set(draw("views.snippets.grid=2:4")[1]) == {2, 3, 4}
    assert set(draw("views.snippets.grid=2,3")[1]) == {"2", "3"}
    rates = draw("train.recipe.learning_rate=log:1e-5:1e-3", 200)[1]
    assert 60 < sum(rate < 1e-4 for rate in rates) < 140


@pytest.mark.parametrize("text", ["threshold", "threshold=", "a=1:0", "a=log:0:1", "a=1:2:3", "a=x:y"])
def test_an_unlawful_domain_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match=text.split("=", maxsplit=1)[0]):
        search.parse_dimension(text)


def test_a_metric_is_a_number_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text('{"mAP": {"cdul": 90.67}}')
    assert search.read_metric(f"{file}:mAP.cdul") == 90.67
    for name in (f"{file}:mAP.ccd", f"{file}:mAP", f"{tmp_path / 'none.json'}:mAP"):
        with pytest.raises(ArtifactError, match="no such number"):
            search.read_metric(name)
