"""Search parameters with Optuna, each trial an experiment of DVC's.

    python experiments/search.py --trials 20 pseudo_label.cdul.threshold=0.0:0.4 views.snippets.grid=2,3,4

A range `low:high` is sampled between its ends, on a logarithmic scale where `log:` stands before it, in whole numbers
where both ends are whole numbers; a list `a,b,c` is a choice. DVC runs for a trial only what its parameters change, so
that the cheap ones are tried in seconds. Studies are kept in experiments/studies.db: the same command goes on with it.
At its end the workspace is as it was before; `dvc exp apply` takes a trial.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import yaml

from clipdistill.errors import ArtifactError, ClipdistillError, ParamsError

# Found with the labels of the training split: those of the evaluation split stay unseen until the search is over.
METRIC = "metrics/summary.json:label_mAP.cdul_refined"
STUDIES = Path("experiments") / "studies.db"
PARAMS = "params.yaml"

# A list or a quoted text may hold commas and colons.
_CHOICE = re.compile(r"""\[(?:'[^']*'|"[^"]*"|[^]'"])*\]|'[^']*'|"[^"]*"|[^,\['"]+""")
_WHOLE = re.compile(r"-?[0-9]+")

Suggestion = Callable[[optuna.Trial], Any]


def parse_dimension(text: str) -> tuple[str, Suggestion]:
    """Read KEY=low:high, KEY=log:low:high or KEY=a,b,c, where a choice may be a list or a quoted text.

    Returns:
        The parameter's path, and what draws a value of it for a trial.

    Raises:
        ParamsError: it is none of these, or the range is empty, endless or, on a logarithmic scale, not above 0.
    """
    key, _, domain = text.partition("=")
    choices = _CHOICE.findall(domain)
    bare = [choice for choice in choices if choice[0] not in "['\""]
    if not key or ",".join(choices) != domain or not choices or any("=" in choice for choice in bare):
        raise ParamsError(f"{text!r}: write KEY=low:high, KEY=log:low:high or KEY=a,b,c")
    if not any(":" in choice for choice in bare):
        return key, lambda trial: trial.suggest_categorical(key, choices)
    log = domain.startswith("log:")
    ends = domain.removeprefix("log:").split(":")
    try:
        whole = all(_WHOLE.fullmatch(end) for end in ends)
        low, high = (int(end) if whole else float(end) for end in ends)
    except ValueError:
        raise ParamsError(f"{text!r}: a range is low:high, two numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        raise ParamsError(f"{text!r}: a range rises, has an end, and on a logarithmic scale begins above 0")
    if whole:
        return key, lambda trial: trial.suggest_int(key, int(low), int(high), log=log)
    return key, lambda trial: trial.suggest_float(key, low, high, log=log)


def check_known(keys: Iterable[str]) -> None:
    """Refuse what is no parameter, before a study is made for it.

    Raises:
        ParamsError: params.yaml has no such key.
    """
    content = yaml.safe_load(Path(PARAMS).read_text(encoding="utf-8"))
    for key in keys:
        value = content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ParamsError(f"{key}: {PARAMS} has no such parameter; `clipdistill params` names all")
            value = value[part]


def wait_for(command: Sequence[str]) -> int:
    """Run a command to its end, or to ours: where this process is to stop, it is interrupted and waited for first.

    Returns:
        Its exit code.
    """
    # In a group of its own: interrupted alone, DVC waits for its stage.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait()
        except (KeyboardInterrupt, SystemExit):
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise


def run_experiment(name: str, values: dict[str, Any], targets: Sequence[str]) -> None:
    """Run `dvc exp run` in the workspace; its output goes to the terminal.

    Raises:
        ClipdistillError: it failed, and said why itself.
    """
    if git("for-each-ref", f"refs/exps/*/*/{name}"):
        # Of a study whose database is gone. (`--force` would replace it, and run every stage again.)
        wait_for(["dvc", "exp", "remove", "--quiet", name])
    overrides = [word for key, value in values.items() for word in ("-S", f"{key}={value}")]
    command = ["dvc", "exp", "run", "--name", name, *overrides, *targets]
    print("$", " ".join(command), flush=True)
    if wait_for(command):
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


def git(*arguments: str) -> list[str]:
    """Run git; the lines that it prints.

    Raises:
        ClipdistillError: it failed, and said why itself.
    """
    command = ["git", *arguments]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise ClipdistillError(
            f"`{' '.join(command)}` failed: a search needs a checkout, for its trials are experiments"
        )
    return result.stdout.splitlines()


@contextmanager
def workspace_kept() -> Iterator[None]:
    """Leave tracked files and DVC's data as they were before the block; what was changed already stays changed.

    Raises:
        ParamsError: params.yaml differs from the commit: a trial would be of other parameters than its name says.
    """
    changed = set(git("diff", "--name-only", "HEAD"))
    if PARAMS in changed:
        cure = f"commit it, or `git restore --staged --worktree {PARAMS}`; then search"
        raise ParamsError(f"{PARAMS} differs from the commit: {cure}")
    try:
        yield
    finally:
        if of_trials := sorted(set(git("diff", "--name-only", "HEAD")) - changed):
            git("restore", "--source=HEAD", "--staged", "--worktree", "--", *of_trials)
            # By force: a training that was ended has left half of its curves in their place.
            take_data = ["dvc", "checkout", "--quiet", "--force"]
            if subprocess.run(take_data, check=False).returncode:
                sys.stderr.write(
                    "some data of the commit are not on this machine: `dvc pull` or `dvc repro` brings them\n"
                )


def keep_to(study: optuna.Study, subject: dict[str, Any]) -> None:
    """Write down what a new study searches, and hold an old one to it.

    Raises:
        ParamsError: the trials that the study holds are of something else.
    """
    if not finished(study):
        study.set_user_attr("subject", subject)
    kept = study.user_attrs.get("subject", {})
    if differing := [name for name, value in subject.items() if kept.get(name) != value]:
        was = "; ".join(f"{name} {kept.get(name, 'unknown')}" for name in differing)
        raise ParamsError(
            f"study {study.study_name!r} searched something else ({was}), and its trials do not compare with these: "
            "name another with --study"
        )


def search(options: argparse.Namespace) -> optuna.Study:
    """Run the trials that are still wanted, one after the other."""
    if not STUDIES.parent.is_dir() or not Path(PARAMS).is_file():
        raise ParamsError(f"no {STUDIES.parent}/ and {PARAMS} here: run it from the top of the checkout")
    dimensions = dict(parse_dimension(text) for text in options.dimensions)
    if len(dimensions) < len(options.dimensions):
        raise ParamsError("one parameter has two domains; give each once")
    check_known(dimensions)

    # First of all, since it refuses: what is refused leaves no study.
    with workspace_kept():
        study = optuna.create_study(
            study_name=options.study,
            storage=f"sqlite:///{STUDIES}",
            load_if_exists=True,
            direction="maximize",
        )
        lists = {name: sorted(getattr(options, name)) for name in ("targets", "dimensions")}
        keep_to(study, {"metric": options.metric, **lists})
        # The sampler's state is not kept: from the same seed, a study that goes on would draw its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=options.seed + len(study.trials))
        while finished(study) < options.trials:
            run_trial(study, dimensions, options)
    return study


def run_trial(study: optuna.Study, dimensions: dict[str, Suggestion], options: argparse.Namespace) -> None:
    """Run one trial more; what ends it early leaves it in the study as failed."""
    trial = study.ask()
    name = f"{study.study_name}-{trial.number}"
    try:
        run_experiment(name, {key: suggest(trial) for key, suggest in dimensions.items()}, options.targets)
        value = read_metric(options.metric)
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    study.tell(trial, value)
    print(f"{name}: {value:g}, {trial.params}", flush=True)


def finished(study: optuna.Study) -> int:
    """Number of trials that have a value."""
    return sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)


def _count(text: str) -> int:
    """A number from 1 on, for argparse, which makes a message of the error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _metric(text: str) -> str:
    """FILE:KEY, for argparse: a trial may take hours before it is read."""
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f"{text!r}: write FILE:KEY")
    return text


def _name(text: str) -> str:
    """What DVC takes as the beginning of an experiment's name, for argparse."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, - and _ make a name")
    return text


def end_tidily() -> None:
    """Make what tells a process to end an exception: the workspace is put back all the same."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` has the second ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda signum, _: sys.exit(128 + signum))
    # A script's `&` has interrupts ignored, by DVC and its stages too: they could not be told to end.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Parse the command line, search, and say what was best and how to take it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dimensions", nargs="+", metavar="KEY=DOMAIN", help="domain: low:high, log:low:high or a,b,c")
    parser.add_argument("--trials", type=_count, default=20, help="trials of the study in all (20)")
    parser.add_argument("--metric", type=_metric, default=METRIC, help=f"FILE:KEY that is to be highest ({METRIC})")
    parser.add_argument(
        "--study", type=_name, default="search", help="its name, and that of its experiments before the number"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of Optuna's sampler (0)")
    parser.add_argument("--target", dest="targets", action="append", default=[], help="stage to run up to; repeatable")
    end_tidily()
    try:
        study = search(parser.parse_args())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on with the study\n")
        sys.exit(130)
    except ClipdistillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    best = study.best_trial
    print(f"best of {len(study.trials)}: {best.value:g} in {study.study_name}-{best.number}, {best.params}")
    print(f"take it: dvc exp apply {study.study_name}-{best.number}")


if __name__ == "__main__":
    main()
