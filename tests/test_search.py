"""What experiments/search.py makes of its command line; the search itself is run in tests/pipeline."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import search
from clipdistill.errors import ArtifactError, ClipdistillError, ParamsError


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A search takes signals for its own process: give them back to that of the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def draw(text: str, trials: int = 20) -> tuple[str, list[object]]:
    key, suggest = search.parse_dimension(text)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return key, [suggest(study.ask()) for _ in range(trials)]


def test_domains() -> None:
    key, values = draw("pseudo_label.cdul.threshold=0.0:0.4")
    assert key == "pseudo_label.cdul.threshold"
    assert all(isinstance(value, float) and 0 <= value <= 0.4 for value in values)
    assert set(draw("views.snippets.grid=2:4")[1]) == {2, 3, 4}
    assert set(draw("views.snippets.grid=-1:1", 40)[1]) == {-1, 0, 1}
    assert set(draw("views.snippets.grid=2,3")[1]) == {"2", "3"}
    lists = """prompts.templates=['a photo of a {}.'],["it: a {}, here",'a [{}]=']"""
    assert set(draw(lists)[1]) == {"['a photo of a {}.']", """["it: a {}, here",'a [{}]=']"""}
    rates = draw("train.recipe.learning_rate=log:1e-5:1e-3", 200)[1]
    assert 60 < sum(rate < 1e-4 for rate in rates) < 140


UNLAWFUL = ["threshold", "threshold=", "a=1:0", "a=log:0:1", "a=1:2:3", "a=x:y", "a=1:2,3"]
UNLAWFUL += ["a=0.0:inf", "a=nan:1", "a=b=c", "a=1,,2", "a=[1,2"]


@pytest.mark.parametrize("text", UNLAWFUL)
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


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit of params.yaml and a table of metrics; `dvc checkout` has nothing to do in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "summary.json").write_text("{}\n")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "dvc").write_text('#!/bin/sh\necho "$@" > given\n')
    (bin_folder / "dvc").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=":")
    for command in ("init --quiet", "add params.yaml summary.json", "commit --quiet --message=state"):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *command.split()], check=True)
    return tmp_path


def test_the_workspace_is_left_as_it_was_found(checkout: Path) -> None:
    (checkout / "summary.json").write_text('{"own": "change"}\n')

    def failing_trial() -> None:
        (checkout / "params.yaml").write_text("a: 2\n")
        (checkout / "summary.json").write_text('{"own": "and the trial"}\n')
        raise ArtifactError("of a trial")

    with pytest.raises(ArtifactError, match="of a trial"), search.workspace_kept():
        failing_trial()
    assert (checkout / "params.yaml").read_text() == "a: 1\n"
    assert (checkout / "summary.json").read_text() == '{"own": "and the trial"}\n'
    assert (checkout / "given").read_text() == "checkout --quiet --force\n"


def test_parameters_that_are_not_the_commits_are_refused(checkout: Path) -> None:
    (checkout / "params.yaml").write_text("a: 2\n")
    with pytest.raises(ParamsError, match="git restore"), search.workspace_kept():
        pytest.fail("the search began")
    assert (checkout / "params.yaml").read_text() == "a: 2\n"


def test_a_study_holds_trials_of_one_kind() -> None:
    study = optuna.create_study(study_name="zeta")
    subject = {"metric": "m.json:mAP", "targets": [], "dimensions": ["a=0:1"]}
    search.keep_to(study, {"metric": "mistaken"})
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    search.keep_to(study, subject)
    study.tell(study.ask(), 1.0)
    search.keep_to(study, subject)
    for change in ({"metric": "m.json:OF1"}, {"targets": ["evaluate"]}, {"dimensions": ["a=0:2"]}):
        with pytest.raises(ParamsError, match=rf"'zeta' .*{next(iter(change))}.* --study"):
            search.keep_to(study, subject | change)
    old = optuna.create_study(study_name="old")
    old.tell(old.ask(), 1.0)
    with pytest.raises(ParamsError, match="metric unknown"):
        search.keep_to(old, subject)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=0:1"], "run it from the top of the checkout"),
        (["--trials", "0", "a=0:1"], "'0' is no number from 1 on"),
        (["--metric", "metrics/summary.json", "a=0:1"], "'metrics/summary.json': write FILE:KEY"),
        (["--study", "two words", "a=0:1"], "'two words': letters, digits"),
    ],
)
def test_a_search_that_cannot_begin_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["search.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        search.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        (["a=0:1", "a=1,2"], "two domains"),
        (["b=0:1"], "b: params.yaml has no such parameter"),
        (["a.b=0:1"], "a.b: params.yaml has no such parameter"),
    ],
)
def test_what_is_refused_leaves_no_study(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dimensions: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["search.py", *dimensions])
    with pytest.raises(SystemExit):
        search.main()
    assert message in capsys.readouterr().err
    assert not (checkout / "experiments" / "studies.db").exists()
    assert not (checkout / "given").exists()


STUB = """#!/bin/sh
test "$1" = exp || exit 0
echo '{"mAP": 50}' > summary.json
for word; do case "$word" in a=*) echo "$word" >> drawn; test ! -f broken || exit 255;; esac; done
"""


def test_a_study_that_goes_on_draws_other_values_than_before(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "bin" / "dvc").write_text(STUB)
    # A database of its own costs seconds on a slow disk; the tests of the pipeline have one.
    storage, create = optuna.storages.InMemoryStorage(), optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **options: create(**options | {"storage": storage}))

    def search_on(trials: int) -> list[str]:
        options = {"dimensions": ["a=0.0:1.0"], "metric": "summary.json:mAP", "study": "s", "targets": [], "seed": 0}
        search.search(argparse.Namespace(trials=trials, **options))
        return re.findall(r"^s-(\d): 50,", capsys.readouterr().out, re.MULTILINE)

    assert search_on(2) == ["0", "1"]
    (checkout / "broken").touch()
    with pytest.raises(ClipdistillError, match="the same search then goes on"):
        search_on(4)
    (checkout / "broken").unlink()
    capsys.readouterr()
    assert search_on(4) == ["3", "4"]
    drawn = (checkout / "drawn").read_text().split()
    assert len(drawn) == len(set(drawn)) == 5


def test_a_search_can_be_told_to_end_where_a_script_began_it() -> None:
    """As `nohup` and a script's `&` leave the signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    search.end_tidily()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
