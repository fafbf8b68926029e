from collections.abc import Callable
from pathlib import Path

import pytest

from clipdistill import params
from clipdistill.errors import ParamsError


def load(tmp_path: Path, text: str) -> params.Params:
    (tmp_path / "params.yaml").write_text(text)
    return params.load(tmp_path / "params.yaml")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == params.Params()


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    """DVC writes `-S train.recipe.learning_rate=1e-5` as 1e-05, which YAML 1.1 reads as text."""
    assert load(tmp_path, "train: {recipe: {learning_rate: 1e-05}}").train.recipe.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense: 1", r"nonsense: unknown key; known here: dataset, scenes"),
        ("train: {recipe: {lr: 1}}", r"train\.recipe\.lr: unknown key; known here: .*learning_rate"),
        ("views: {global: {resizes: squash}}", r"views\.global\.resizes: unknown key; known here: resize"),
        ("train: {recipe: {epochs: '12'}}", r"train\.recipe\.epochs: .*integer, found '12'"),
        ("train: {recipe: {epochs: 0}}", r"train\.recipe\.epochs: .*greater than or equal to 1, found 0"),
        ("pseudo_label: {cdul: {threshold: -0.1}}", r"pseudo_label\.cdul\.threshold: .*greater than or equal to 0"),
        ("pseudo_label: {cdul: {weight: 1.5}}", r"pseudo_label\.cdul\.weight: .*less than or equal to 1"),
        ("pseudo_label: {temperature: 0.0}", r"pseudo_label\.temperature: .*greater than 0"),
        ("pseudo_label: {temperature: .nan}", r"pseudo_label\.temperature: .*finite"),
        ("views: {snippets: {grid: 0}}", r"views\.snippets\.grid"),
        ("views: {snippets: {overlap: 1.0}}", r"views\.snippets\.overlap: .*less than 1"),
        ("dataset: {name: ../up}", r"dataset\.name"),
        ("dataset: {name: x; touch y}", r"dataset\.name"),
        ("dataset: {name: $(touch y)}", r"dataset\.name"),
        ("dataset: {prompt_names: {cat: ''}}", r"dataset\.prompt_names\.cat"),
        ("dataset: {prompt_names: {cat: 3}}", r"dataset\.prompt_names\.cat: .*string, found 3"),
        ("dataset: {1: 2}", r"dataset\.1: Keys should be strings"),
        ("evaluate: {top_k: true}", r"evaluate\.top_k: .*integer, found True"),
        ("evaluate: {threshold: '0.5'}", r"evaluate\.threshold: .*number, found '0\.5'"),
        ("train: {recipe: {seed: 4294967296}}", r"train\.recipe\.seed: .*less than 4294967296"),
        ("pseudo_label: {temperature: moel}", r"pseudo_label\.temperature: .*'model', found 'moel'"),
        ("dataset: {open_vocabulary: all}", r"dataset\.open_vocabulary: .*'classes'.*found 'all'"),
        ("dataset: {unseen: cat}", r"dataset\.unseen: .*list, found 'cat'"),
        ("dataset: {reader: coco, open_vocabulary: attributes}", r"attributes needs reader voc and annotations xml"),
        (
            "dataset: {annotations: main, open_vocabulary: attributes}",
            r"attributes needs reader voc and annotations xml",
        ),
        ("dataset: {open_vocabulary: nuswide-925-81}", r"nuswide-925-81 needs reader nuswide: set it, or set"),
        ("dataset: {open_vocabulary: voc-15-5, unseen: [cat]}", r"voc-15-5 has its own unseen labels; empty `unseen`"),
        ("dataset: null", r"dataset: .*found None"),
        ("dataset: {reader: imagenet}", r"dataset\.reader: .*'voc'.*found 'imagenet'"),
        ("clip: {precision: int8}", r"clip\.precision: .*'fp32'"),
        ("clip: {source: open_clip}", r"clip: source open_clip needs `pretrained`"),
        ("clip: {source: file, weights: a.pt}", r"clip: source file needs `weights` and its `sha256`"),
        ("clip: {sha256: abc}", r"clip\.sha256"),
        ("prompts: {templates: []}", r"prompts\.templates"),
        ("prompts: {templates: [a photo]}", r"prompts: template 'a photo' must hold \{\} exactly once"),
        ("train: {cdul: {sigma: 0.1, step: 1.0}}", r"train\.cdul: step 1 overshoots .* at most 0\.2507"),
        ("mkt: {student: {weights: pretrained}}", r"mkt\.student: backbone clip starts from the teacher's weights"),
        (
            "mkt: {student: {backbone: resnet18, weights: a.pth}}",
            r"mkt\.student: a file of weights needs its `sha256` \(`sha256sum FILE` prints it\)",
        ),
        ("mkt: {student: {backbone: ''}}", r"mkt\.student\.backbone: .*at least 1 character"),
        ("mkt: {student: {image_size: teacher}}", r"mkt\.student\.image_size: .*'clip'"),
        ("mkt: {student: {image_size: 31}}", r"mkt\.student\.image_size: .*greater than or equal to 32, found 31"),
        ("mkt: {student: {sha256: abc}}", r"mkt\.student\.sha256"),
        ("mkt: {prompt: a photo}", r"mkt: prompt 'a photo' must hold \{\} exactly once"),
        ("mkt: {prompt: '{} and {}'}", r"mkt: prompt '\{\} and \{\}' must hold \{\} exactly once"),
        ("mkt: {supervision: seen}", r"mkt\.supervision: .*'ground_truth'.*found 'seen'"),
        ("mkt: {k: 0}", r"mkt\.k: .*greater than or equal to 1, found 0"),
        ("mkt: {local: 1.1}", r"mkt\.local: .*less than or equal to 1"),
        ("mkt: {norm: none}", r"mkt\.norm: .*'cosine' or 'label', found 'none'"),
        ("mkt: {loss: bce}", r"mkt\.loss: .*'log_sum_exp' or 'rank', found 'bce'"),
        ("mkt: {margin: -1.0}", r"mkt\.margin: .*greater than or equal to 0"),
        ("mkt: {unlock: 0}", r"mkt\.unlock: .*greater than or equal to 1, found 0"),
        ("mkt: {unlock: none}", r"mkt\.unlock: .*'all', found 'none'"),
        ("mkt: {layer_decay: 0.0}", r"mkt\.layer_decay: .*greater than 0"),
        ("mkt: {layer_decay: 1.5}", r"mkt\.layer_decay: .*less than or equal to 1"),
        ("mkt: {distil: {weight: -1.0}}", r"mkt\.distil\.weight: .*greater than or equal to 0"),
        ("mkt: {distil: {teacher: offline}}", r"mkt\.distil\.teacher: .*'online' or 'cached', found 'offline'"),
        ("mkt: {recipe: {head: 1}}", r"mkt\.recipe\.head: unknown key; known here: .*head_factor"),
        ("mkt: {tune: {seed: 1}}", r"mkt\.tune\.seed: unknown key; known here: epochs, batch_size, learning_rate"),
        ("mkt: {tune: {epochs: 0}}", r"mkt\.tune\.epochs: .*greater than or equal to 1, found 0"),
        ("mkt: {top_k: []}", r"mkt\.top_k: .*at least 1 item"),
        ("mkt: {top_k: [3, 0]}", r"mkt\.top_k\.1: .*greater than or equal to 1, found 0"),
        ("evaluate: {threshold: 2}", r"evaluate\.threshold"),
        ('dataset: {root: "a\\0b"}', r"dataset\.root: holds a zero byte"),
        ('ttd: {captions: {train: "a\\0b.csv"}}', r"ttd\.captions\.train: holds a zero byte"),
        ("evaluate: 3", r"evaluate"),
        ("- a list", r"top level"),
        ("a: [1", "is not valid YAML"),
        ("a: 2026-13-45", "is not valid YAML: .*month must be in 1..12"),
        ("a: &a [*a]", "a: unknown key"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a constructor"),
        ("clip: {}\nclip: {}", "key 'clip' stands twice"),
        ("[" * 5000, "is not valid YAML: nested too deeply"),
        ("a: 2001-99-99", "is not valid YAML: a value cannot be read: month must be in"),
    ],
)
def test_what_is_refused_is_named_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "student"),
    [
        ("{}", {"backbone": "clip", "weights": "none"}),
        ("{backbone: resnet18}", {"backbone": "resnet18", "weights": "none"}),
        ("{backbone: resnet18, weights: pretrained}", {"weights": "pretrained", "sha256": ""}),
        (f"{{backbone: resnet18, weights: a.pth, sha256: '{'0' * 64}'}}", {"weights": "a.pth", "sha256": "0" * 64}),
        ("{image_size: clip}", {"image_size": "clip"}),
    ],
)
def test_the_student_of_mkt_may_start_from(tmp_path: Path, text: str, student: dict[str, object]) -> None:
    found = load(tmp_path, f"mkt: {{student: {text}, unlock: all}}").mkt
    assert found.unlock == "all"
    assert found.student.model_dump(include=set(student)) == student


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"3 parameter\(s\) refused"):
        load(tmp_path, "a: 1\nevaluate: {top_k: 0, threshold: 7}")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"a: caf\xe9")])
def test_what_is_no_text_file_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=r"params\.yaml (cannot be read|is not valid YAML)"):
        params.load(tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_stand(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="top folder"):
        params.load(tmp_path / "params.yaml")


def test_the_file_of_the_project_states_the_defaults() -> None:
    assert params.load(Path(__file__).resolve().parents[1] / "params.yaml") == params.Params()


def test_aliases_keep_messages_short(tmp_path: Path) -> None:
    """Ten lists of ten of the one before: ten thousand million words, if anything wrote them out."""
    lines = ["a0: &a0 [w, w, w, w, w, w, w, w, w, w]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ParamsError) as caught:
        load(tmp_path, "\n".join([*lines, "evaluate: {top_k: *a9}"]))
    assert len(str(caught.value)) < 20_000


def test_merged_keys_do_not_grow_like_powers(tmp_path: Path) -> None:
    lines = ["a0: &a0 {k: 1, l: 2, m: 3}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    with pytest.raises(ParamsError, match="is not valid YAML: more than 1000 keys"):
        load(tmp_path, "\n".join(lines))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(ParamsError, match=r"params\.yaml cannot be read \(Is a directory\)"):
        params.load(tmp_path / "params.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"evaluate: \xff")
    with pytest.raises(ParamsError, match=r"is not valid YAML: .*codec can't decode byte 0xff"):
        params.load(tmp_path / "params.yaml")
