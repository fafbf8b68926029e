import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipdistill.params import RecipeParams, StudentParams
from clipdistill.students import classifier
from clipdistill.training import optimise


@pytest.fixture(scope="module")
def student() -> classifier.Student:
    return classifier.build(StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5"), 3, seed=0)


def test_biases_and_norms_do_not_decay_and_the_head_has_its_rate(student: classifier.Student) -> None:
    recipe = RecipeParams(weight_decay=0.1, learning_rate=1e-3, head_factor=10.0)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    seen = []
    for group in optimise.parameter_groups(student, recipe):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), name
            assert group["peak"] == pytest.approx(1e-2 if name.startswith("head.") else 1e-3), name
    assert sorted(seen) == sorted(names.values())


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_update_rules(student: classifier.Student, name: str, kind: type[torch.optim.Optimizer]) -> None:
    assert type(optimise.optimiser(student, RecipeParams(optimiser=name))) is kind


@given(st.sampled_from(["constant", "cosine", "one_cycle"]), st.integers(1, 500))
def test_rates_are_shares_of_the_peak(schedule: optimise.Schedule, steps: int) -> None:
    shares = [optimise.rate_factor(schedule, step, steps) for step in range(steps)]
    assert all(0 <= share <= 1 for share in shares)
    if schedule == "cosine":
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == 1


@pytest.mark.parametrize("steps", [10, 63, 756])
def test_one_cycle_is_that_of_torch(steps: int) -> None:
    rule = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        rule, max_lr=1.0, total_steps=steps, pct_start=0.3, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    for step in range(steps):
        assert optimise.rate_factor("one_cycle", step, steps) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        rule.step()
        if step < steps - 1:
            reference.step()


def test_set_rate_scales_every_group(student: classifier.Student) -> None:
    rule = optimise.optimiser(student, RecipeParams(learning_rate=1e-2, head_factor=2.0))
    assert optimise.set_rate(rule, 0.5) == pytest.approx(5e-3)
    assert {group["lr"] for group in rule.param_groups} == {5e-3, 1e-2}
