"""Search parameters with Optuna, each trial an experiment of DVC's.

    python experiments/search.py --trials 20 pseudo_label.cdul.threshold=0.0:0.4 views.snippets.grid=2,3,4

A range `low:high` is sampled between its ends, on a logarithmic scale where `log:` stands before it, in whole numbers
where both ends are whole numbers; a list `a,b,c` is a choice. DVC runs for a trial only what its parameters change, so
that the cheap ones are tried in seconds. Studies are kept in experiments/studies.db: the same command goes on with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from clipdistill.errors import ArtifactError, ClipdistillError, ParamsError

# Found with the labels of the training split: those of the evaluation split stay unseen until the search is over.
METRIC = "metrics/summary.json:label_mAP.cdul_refined"
STUDIES = Path("experiments") / "studies.db"

Suggestion = Callable[[optuna.Trial], Any]


def parse_dimension(text: str) -> tuple[str, Suggestion]:
    """Read KEY=low:high, KEY=log:low:high or KEY=a,b,c.

    Returns:
        The parameter's path, and what draws a value of it for a trial.

    Raises:
        ParamsError: it is none of these, or the range is empty or, on a logarithmic scale, not above 0.
    """
    key, _, domain = text.partition("=")
    if not key or not domain:
        raise ParamsError(f"{text!r}: write KEY=low:high, KEY=log:low:high or KEY=a,b,c")
    if ":" not in domain:
        choices = domain.split(",")
        return key, lambda trial: trial.suggest_categorical(key, choices)
    log = domain.startswith("log:")
    ends = domain.removeprefix("log:").split(":")
    try:
        whole = all(end.isdigit() for end in ends)
        low, high = (int(end) if whole else float(end) for end in ends)
    except ValueError:
        raise ParamsError(f"{text!r}: a range is low:high, two numbers") from None
    if low >= high or (log and low <= 0):
        raise ParamsError(f"{text!r}: a range rises, and on a logarithmic scale it begins above 0")
    if whole:
        return key, lambda trial: trial.suggest_int(key, int(low), int(high), log=log)
    return key, lambda trial: trial.suggest_float(key, low, high, log=log)


def run_experiment(name: str, values: dict[str, Any], targets: Sequence[str]) -> None:
    """Run `dvc exp run` in the workspace; its output goes to the terminal.

    Raises:
        ClipdistillError: it failed, and said why itself.
    """
    overrides = [word for key, value in values.items() for word in ("-S", f"{key}={value}")]
    command = ["dvc", "exp", "run", "--force", "--name", name, *overrides, *targets]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise ClipdistillError(f"`{' '.join(command)}` failed: mend what it says above; the same search then goes on")


def read_metric(name: str) -> float:
    """Read FILE:KEY, a number of a JSON file, its key a dotted path.

    Raises:
        ArtifactError: the file or the key is missing, or it holds no number (an evaluation without labels, say).
    """
    file, _, key = name.partition(":")
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
        for part in key.split("."):
            value = value[part]
        return float(value)
    except (OSError, KeyError, TypeError, ValueError):
        raise ArtifactError(f"{name}: no such number after the run; name another with --metric FILE:KEY") from None


def search(options: argparse.Namespace) -> optuna.Study:
    """Run the trials that are still wanted, one after the other."""
    dimensions = dict(parse_dimension(text) for text in options.dimensions)
    study = optuna.create_study(
        study_name=options.study,
        storage=f"sqlite:///{STUDIES}",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=options.seed),
    )

    def objective(trial: optuna.Trial) -> float:
        values = {key: suggest(trial) for key, suggest in dimensions.items()}
        run_experiment(f"{options.study}-{trial.number}", values, options.targets)
        return read_metric(options.metric)

    done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    study.optimize(objective, n_trials=max(0, options.trials - done))
    return study


def main() -> None:
    """Parse the command line, search, and say what was best and how to take it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dimensions", nargs="+", metavar="KEY=DOMAIN", help="low:high, log:low:high or a,b,c")
    parser.add_argument("--trials", type=int, default=20, help="trials of the study in all (20)")
    parser.add_argument("--metric", default=METRIC, help=f"FILE:KEY that is to be highest ({METRIC})")
    parser.add_argument("--study", default="search", help="its name, and that of its experiments before the number")
    parser.add_argument("--seed", type=int, default=0, help="seed of Optuna's sampler (0)")
    parser.add_argument("--target", dest="targets", action="append", default=[], help="stage to run up to; repeatable")
    try:
        study = search(parser.parse_args())
    except ClipdistillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    best = study.best_trial
    print(f"best of {len(study.trials)}: {best.value:g} in {study.study_name}-{best.number}, {best.params}")
    print(f"take it: dvc exp apply {study.study_name}-{best.number}")


if __name__ == "__main__":
    main()
