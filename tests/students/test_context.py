"""Prompts with a context of their own against open_clip's own, and against the table that MKT's released code tunes."""

import copy
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from clipdistill.clip import teacher
from clipdistill.errors import ParamsError, TeacherError
from clipdistill.students import context
from clipdistill.students.context import Prompts, encode, first_context, tokenise

quick = settings(deadline=None, max_examples=40)

TEMPLATE = "there is a {} in the scene"
NAMES = ["dog", "traffic light", "scene", "a", "T-shirt", "in the sky", "Queen's guard"]
TOKENIZER = SimpleTokenizer()
START, END = TOKENIZER.sot_token_id, TOKENIZER.eot_token_id


def made(name: str) -> Any:  # noqa: ANN401 - open_clip ships no types
    teacher.register_architectures()
    torch.manual_seed(0)
    return teacher.create(name).requires_grad_(False)


@pytest.fixture(scope="module")
def tiny() -> Any:  # noqa: ANN401
    return made("scenes-tiny")


@pytest.fixture
def trainable(tiny: Any) -> Iterator[Any]:  # noqa: ANN401
    """The tiny model, whose table may be trained meanwhile."""
    kept = tiny.token_embedding.weight.detach().clone()
    tiny.token_embedding.weight.requires_grad_(True)
    yield tiny
    tiny.token_embedding.weight.requires_grad_(False).copy_(kept)
    tiny.token_embedding.weight.grad = None


def prompts_of(model: Any, names: Sequence[str] = NAMES, template: str = TEMPLATE) -> Prompts:  # noqa: ANN401
    return tokenise(TOKENIZER, template, names, context.context_length(model))


def full(model: Any, names: Sequence[str] = NAMES, template: str = TEMPLATE) -> Tensor:  # noqa: ANN401
    """The whole prompts as open_clip reads them."""
    texts = [template.format(name) for name in names]
    return TOKENIZER(texts, context_length=context.context_length(model))


# tokenise

WORDS = st.sampled_from(["dog", "Traffic Light", "scene", "fire-hydrant", "Ünder", "50 km", "the", "o'clock", "a"])


@quick
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=5, unique_by=str.lower),
    st.sampled_from([TEMPLATE, "{}", "{} in a photo.", "A photo of a {}.", "the {}, seen"]),
)
def test_prompts_are_open_clip_s_with_the_label_apart_from_the_rest(names: list[str], template: str) -> None:
    prompts = tokenise(TOKENIZER, template, names, 77)
    texts = [template.format(name) for name in names]
    assert len(prompts) == len(names)
    assert torch.equal(prompts.tokens, TOKENIZER(texts, context_length=77)[:, : prompts.tokens.shape[1]])
    assert bool((prompts.tokens == END).any(dim=1).all())
    assert bool((prompts.tokens[:, -1] != 0).any())
    count = int(prompts.slot.max()) + 1
    shared = prompts.tokens[0][prompts.slot[0] >= 0]
    for tokens, slot, name in zip(prompts.tokens, prompts.slot, names, strict=True):
        assert slot[slot >= 0].tolist() == list(range(count))
        assert torch.equal(tokens[slot >= 0], shared)
        assert tokens[(slot < 0) & (tokens != 0)].tolist() == TOKENIZER.encode(name)


def test_tokens_and_slots_by_hand() -> None:
    prompts = tokenise(TOKENIZER, "a {} here", ["dog", "hot dog"], 16)
    a, here, hot, dog = (TOKENIZER.encode(word)[0] for word in ("a", "here", "hot", "dog"))
    assert prompts.tokens.tolist() == [[START, a, dog, here, END, 0], [START, a, hot, dog, here, END]]
    assert prompts.slot.tolist() == [[0, 1, -1, 2, 3, -1], [0, 1, -1, -1, 2, 3]]
    assert prompts.tokens.dtype == prompts.slot.dtype == torch.int64
    assert prompts.to(torch.device("cpu")).tokens.tolist() == prompts.tokens.tolist()


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(TeacherError, match="CLIP's own tokenizer alone"):
        tokenise(open_clip.tokenize, TEMPLATE, ["dog"], 77)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", ""], "label '' has nothing that the text encoder can read"),
        (["dog", " \t"], r"label ' \\t' has nothing"),
        (
            ["dog", "one two three four"],
            r"label 'one two three four' does not fit: .* has 12 tokens, .* reads 11; shorten",
        ),
        (["Dog", "cat", "dog "], "the labels 'Dog' and 'dog ' are the same to the text encoder"),
    ],
)
def test_labels_that_make_no_prompt_are_named(names: list[str], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        tokenise(TOKENIZER, TEMPLATE, names, 11)


def test_the_longest_prompt_that_fits_is_taken(tiny: Any) -> None:  # noqa: ANN401
    # Eight tokens of context, and eight for the label.
    longest = "one two three four five six seven eight"
    prompts = prompts_of(tiny, [longest])
    assert prompts.tokens.shape == (1, 16)
    torch.testing.assert_close(
        encode(tiny, prompts, first_context(tiny, TOKENIZER, TEMPLATE)), encoded(tiny, [longest])
    )
    with pytest.raises(ParamsError, match="has 17 tokens, and the text encoder reads 16"):
        prompts_of(tiny, [f"{longest} nine"])


# encode


def encoded(model: Any, names: Sequence[str] = NAMES, template: str = TEMPLATE) -> Tensor:  # noqa: ANN401
    """The embeddings that the model itself gives."""
    with torch.no_grad():
        return model.encode_text(full(model, names, template))


@pytest.mark.parametrize("name", ["scenes-tiny", "ViT-B-32", "EVA02-B-16"])
@torch.no_grad()
def test_the_first_context_gives_the_model_s_own_embeddings(name: str) -> None:
    model = made(name)
    start = first_context(model, TOKENIZER, TEMPLATE)
    assert start.shape == (8, model.encode_text(full(model, ["dog"])).shape[1])
    found = encode(model, prompts_of(model), start)
    expected = encoded(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("template", ["{}", "{} in a photo.", "a photo of a {}."])
@torch.no_grad()
def test_a_label_may_stand_anywhere(tiny: Any, template: str) -> None:  # noqa: ANN401
    start = first_context(tiny, TOKENIZER, template)
    assert len(start) == 2 + len(TOKENIZER.encode(template.replace("{}", " ")))
    found = encode(tiny, prompts_of(tiny, template=template), start)
    torch.testing.assert_close(found, encoded(tiny, template=template), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prompts_may_end_where_the_longest_does(tiny: Any) -> None:  # noqa: ANN401
    cut = prompts_of(tiny)
    rest = context.context_length(tiny) - cut.tokens.shape[1]
    assert rest > 0
    filled = [
        torch.nn.functional.pad(part, (0, rest), value=value) for part, value in ((cut.tokens, 0), (cut.slot, -1))
    ]
    start = torch.randn(8, 64)
    torch.testing.assert_close(encode(tiny, cut, start), encode(tiny, Prompts(*filled), start), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_label_is_embedded_whatever_others_are_in_the_list(tiny: Any) -> None:  # noqa: ANN401
    start = torch.randn(8, 64)
    together = encode(tiny, prompts_of(tiny), start)
    for row, name in enumerate(NAMES):
        alone = encode(tiny, prompts_of(tiny, [name]), start)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


def value_and_gradient(model: Any, prompts: Prompts, start: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    leaf = start.clone().requires_grad_()
    text = encode(model, prompts, leaf)
    weight = torch.linspace(-1, 1, text.numel()).reshape(text.shape)
    (gradient,) = torch.autograd.grad((weight * text).sum(), leaf)
    return text.detach(), gradient


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_have_the_value_and_the_gradient_of_the_whole(
    tiny: Any,  # noqa: ANN401
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In float64: some entries of the gradient are differences of numbers a thousand times as large.
    prompts, start = prompts_of(tiny), first_context(tiny, TOKENIZER, TEMPLATE).double()
    model = copy.deepcopy(tiny).double()
    whole = value_and_gradient(model, prompts, start)
    calls: list[int] = []
    own = context._encode
    monkeypatch.setattr(context, "_CHUNK", chunk)
    monkeypatch.setattr(context, "_encode", lambda *given: calls.append(len(given[1])) or own(*given))
    found = value_and_gradient(model, prompts, start)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
    # Each chunk once there and once on the way back.
    assert max(calls) == chunk
    assert sum(calls) == 2 * len(NAMES)
    calls.clear()
    with torch.no_grad():
        torch.testing.assert_close(encode(model, prompts, start), whole[0], rtol=1e-4, atol=1e-6)
    assert sum(calls) == len(NAMES)


def test_the_gradient_reaches_the_context_alone(tiny: Any) -> None:  # noqa: ANN401
    start = first_context(tiny, TOKENIZER, TEMPLATE).requires_grad_()
    assert start.numel() == 8 * 64
    encode(tiny, prompts_of(tiny), start).square().sum().backward()
    assert start.grad is not None
    assert bool((start.grad.abs().sum(dim=1) > 0).all())
    assert all(parameter.grad is None for parameter in tiny.parameters())


@torch.no_grad()
def test_a_first_context_is_a_copy_of_the_template_s_words(tiny: Any) -> None:  # noqa: ANN401
    start = first_context(tiny, TOKENIZER, TEMPLATE)
    words = [START, *TOKENIZER.encode("there is a in the scene"), END]
    table = tiny.token_embedding.weight
    assert torch.equal(start, table[words])
    start += 1
    assert not torch.equal(start, table[words])


# Beside the released way: the whole table learns, rows of labels held fast


def read(model: Any, prompts: Prompts, start: Tensor) -> Tensor:  # noqa: ANN401
    """What the text transformer reads of prompts, without the places: [L, T, E]."""
    kept: list[Tensor] = []
    hook = model.transformer.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        encode(model, prompts, start)
    hook.remove()
    return kept[0] - model.positional_embedding[: kept[0].shape[1]]


def test_label_words_that_stand_in_the_template_keep_their_own_embedding(tiny: Any) -> None:  # noqa: ANN401
    names = ["scene", "a scene in the dog"]
    prompts = prompts_of(tiny, names)
    values = read(tiny, prompts, torch.full((8, 64), 7.0))
    table = tiny.token_embedding.weight
    for row, name in enumerate(names):
        words = TOKENIZER.encode(name)
        torch.testing.assert_close(values[row, 4 : 4 + len(words)], table[words])
        assert bool((values[row][prompts.slot[row] >= 0] - 7).abs().max() < 1e-5)


def released_text(model: Any, prompts: Prompts) -> Tensor:  # noqa: ANN401
    """The released forward pass: words from the table, where no gradient reaches those of a label."""
    slot = torch.nn.functional.pad(prompts.slot, (0, context.context_length(model) - prompts.slot.shape[1]), value=-1)
    tokens = torch.nn.functional.pad(prompts.tokens, (0, slot.shape[1] - prompts.tokens.shape[1]))
    fast = (slot < 0) & (tokens != 0)
    hook = model.token_embedding.register_forward_hook(
        lambda _module, _inputs, words: torch.where(fast[:, :, None], words.detach(), words)
    )
    text: Tensor = model.encode_text(tokens)
    hook.remove()
    return text


def test_the_context_has_the_released_gradient_of_the_template_s_rows(trainable: Any) -> None:  # noqa: ANN401
    prompts = prompts_of(trainable)
    start = first_context(trainable, TOKENIZER, TEMPLATE)
    text, expected = value_and_gradient(trainable, prompts, start)
    released = released_text(trainable, prompts)
    torch.testing.assert_close(released.detach(), text, rtol=1e-4, atol=1e-5)
    weight = torch.linspace(-1, 1, released.numel()).reshape(released.shape)
    (gradient,) = torch.autograd.grad((weight * released).sum(), trainable.token_embedding.weight)
    words = prompts.tokens[0][prompts.slot[0] >= 0]
    torch.testing.assert_close(gradient[words], expected, rtol=1e-3, atol=1e-4)
    others = torch.ones(len(gradient), dtype=torch.bool)
    others[words] = False
    assert gradient[others].abs().max() == 0


def test_a_released_step_moves_rows_of_labels_and_ours_no_row(trainable: Any) -> None:  # noqa: ANN401
    prompts = prompts_of(trainable, ["scene", "dog"])
    table = trainable.token_embedding.weight
    scene, dog = (TOKENIZER.encode(name)[0] for name in ("scene", "dog"))
    before = table.detach().clone()

    start = torch.nn.Parameter(first_context(trainable, TOKENIZER, TEMPLATE))
    ours = torch.optim.AdamW([start], lr=1e-3, weight_decay=0.0)
    encode(trainable, prompts, start).square().sum().backward()
    ours.step()
    assert not torch.equal(start.detach(), first_context(trainable, TOKENIZER, TEMPLATE))
    assert torch.equal(table, before)

    table.grad = None
    theirs = torch.optim.AdamW([table], lr=1e-3, weight_decay=0.05)
    released_text(trainable, prompts).square().sum().backward()
    theirs.step()
    # A word that no template has shrinks by the weight decay; one that stands in it learns, as a label too.
    torch.testing.assert_close(table[dog], before[dog] * (1 - 1e-3 * 0.05))
    assert not torch.equal(table[dog], before[dog])
    assert (table[scene] - before[scene]).abs().max() > 5e-4


# Text encoders of another make

PARTS = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")


def built(**changes: object) -> SimpleNamespace:
    """The parts that are looked for in a text encoder."""
    return SimpleNamespace(**(dict.fromkeys(PARTS) | {"positional_embedding": torch.zeros(16, 4)} | changes))


def test_parts_are_found_in_the_model_or_in_its_text_tower() -> None:
    assert context.context_length(built(text_pool_type="argmax")) == 16
    assert context.context_length(SimpleNamespace(text=built(pool_type="eos"))) == 16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (built(text_pool_type="last"), "pools by 'last'; only an end mark"),
        (built(), "not built as CLIP's is"),
        (built(pool_type="argmax", cls_emb=torch.zeros(4)), "not built as CLIP's is"),
        (SimpleNamespace(text_pool_type="argmax", positional_embedding=torch.zeros(16, 4)), "not built as CLIP's is"),
    ],
)
def test_text_encoders_of_another_make_are_refused(model: SimpleNamespace, message: str) -> None:
    for whole in (model, SimpleNamespace(text=model)):
        with pytest.raises(TeacherError, match=message):
            context.context_length(whole)


def test_the_gradient_has_the_same_bytes_each_time_on_several_threads(tiny: Any) -> None:  # noqa: ANN401
    """PyTorch sums the gradient of an index by threads in whatever order they come: sixty runs had sixty values."""
    tokenizer = open_clip.get_tokenizer("scenes-tiny")
    template, things = "a photo of a {}.", ["fish", "car", "tree", "cup", "key", "boat", "house", "clock"]
    names = [
        f"{colour} {thing}"
        for colour in ["red", "blue", "green", "pink", "brown", "black", "white", "gold", "grey", "teal", "small"]
        for thing in things
    ]
    # So many that PyTorch shares them between threads.
    assert len(names) == 88
    prompts, first = tokenise(tokenizer, template, names, 16), first_context(tiny, tokenizer, template)
    threads, found = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        for _ in range(20):
            words = first.clone().requires_grad_(True)
            embedding = encode(tiny, prompts, words)
            (embedding * embedding.detach().sin()).sum().backward()
            found.add(words.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
