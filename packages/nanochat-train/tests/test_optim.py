"""MuonAdamW against torch's AdamW and a float64 transcription of Muon; schedules and recipe against worked values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nanochat_train import MuonAdamW, Rates, Recipe, param_groups, schedules
from nanochat_train.muon import POLAR_EXPRESS_COEFFICIENTS, orthogonalise


@pytest.mark.parametrize("given", [{}, {"betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}])
def test_adamw_groups_equal_torch(given):
    start = torch.randn(7, 5)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    our_optimizer = MuonAdamW([{"params": [ours], "kind": "adamw", "lr": 0.01, **given}])
    settings = {"betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0, **given}
    their_optimizer = torch.optim.AdamW([theirs], lr=0.01, **settings)
    for _ in range(20):
        ours.grad = theirs.grad = torch.randn(7, 5)
        our_optimizer.step()
        their_optimizer.step()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def plain_muon(weight, grad, buffer, second, *, lr, momentum, beta2, weight_decay):
    """One matrix in float64, formula by formula."""
    m, n = weight.shape
    buffer = momentum * buffer + (1 - momentum) * grad
    g = (1 - momentum) * grad + momentum * buffer
    frobenius = math.sqrt((g**2).sum())
    g = torch.stack([row / math.sqrt((row**2).sum()) * frobenius / math.sqrt(m) for row in g])
    x = g / (1.01 * math.sqrt((g**2).sum()) + 1e-6)
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS:
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    x = x * math.sqrt(min(m, n)) / math.sqrt((x**2).sum())
    mean = (x**2).mean(dim=1, keepdim=True) if m >= n else (x**2).mean(dim=0, keepdim=True)
    second = beta2 * second + (1 - beta2) * mean
    update = x / second.sqrt()
    update = update * math.sqrt((x**2).sum()) / math.sqrt((update**2).sum())
    lr = lr * math.sqrt(max(1, m / n))
    decay = torch.where(update * weight >= 0, weight_decay * weight, torch.zeros_like(weight))
    return weight - lr * update - lr * decay, buffer, second


@pytest.mark.parametrize("given", [{}, {"momentum": 0.9, "beta2": 0.8, "weight_decay": 0.3}])
@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (4, 16)])
def test_muon_groups_equal_the_plain_formulas(shape, given):
    m, n = shape
    generator = torch.Generator().manual_seed(m)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]
    optimizer = MuonAdamW([{"params": params, "kind": "muon", "lr": 0.02, **given}])
    settings = {"lr": 0.02, "momentum": 0.95, "beta2": 0.9, "weight_decay": 0.0, **given}
    plain = [
        (p.detach().double(), torch.zeros(shape).double(), torch.zeros((m, 1) if m >= n else (1, n)).double())
        for p in params
    ]
    for _ in range(4):
        for i, param in enumerate(params):
            param.grad = torch.randn(shape, generator=generator)
            plain[i] = plain_muon(plain[i][0], param.grad.double(), *plain[i][1:], **settings)
        optimizer.step()
        for param, (expected, _, _) in zip(params, plain, strict=True):
            torch.testing.assert_close(param.double(), expected, atol=2e-5, rtol=1e-4)


def test_five_steps_bring_singular_values_from_a_thousandth_to_one_near_one():
    left, right = (torch.linalg.qr(torch.randn(rows, 64, dtype=torch.float64))[0] for rows in (64, 128))
    matrix = left * (0.99 * torch.logspace(-3, 0, 64, dtype=torch.float64)) @ right.T
    worked = [
        (0.008075, 1.988775),
        (0.032645, 1.963804),
        (0.126947, 1.869116),
        (0.412288, 1.572637),
        (0.852669, 1.141007),
    ]
    for steps, ends in enumerate(worked, start=1):
        values = torch.linalg.svdvals(orthogonalise(matrix[None], steps)[0])
        assert (float(values.min()), float(values.max())) == pytest.approx(ends, rel=1e-5)


def test_matrices_without_gradient_rows_stay_finite():
    param = torch.nn.Parameter(torch.randn(4, 3))
    param.grad = torch.zeros(4, 3)
    MuonAdamW([{"params": [param], "kind": "muon", "lr": 0.1}]).step()
    assert torch.isfinite(param).all()


@pytest.mark.slow
def test_a_compiled_optimizer_makes_the_same_steps_and_compiles_once():
    def optimizer(*, compiled):
        generator = torch.Generator().manual_seed(0)
        shapes = [(64, 64), (64, 64), (32, 128), (128, 32), (4, 3), (100, 64)]
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        kinds = [{"params": params[:5], "kind": "muon", "lr": 0.1}, {"params": params[5:], "kind": "adamw", "lr": 0.1}]
        return params, MuonAdamW(kinds, compiled=compiled)

    def step(params, optimizer, i):
        generator = torch.Generator().manual_seed(i)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + i)
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = 0.9 + i / 100, 0.1 * i
        optimizer.step()

    ours, theirs = optimizer(compiled=True), optimizer(compiled=False)
    step(*ours, 0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for i in range(1, 4):
            step(*ours, i)
    for i in range(4):
        step(*theirs, i)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)


def test_matrices_of_one_shape_stay_views_of_one_tensor_whatever_replaces_them():
    params = [torch.nn.Parameter(torch.randn(4, 3)) for _ in range(3)]
    optimizer = MuonAdamW([{"params": params, "kind": "muon", "lr": 0.1}])
    for i in range(3):
        if i == 1:
            params[1].data = params[1].data.clone()  # as moving a module to another device does
        if i == 2:
            optimizer.load_full_state({key: 2 * tensor for key, tensor in optimizer.full_state().items()})
        before = [param.detach().clone() for param in params]
        momentum = optimizer.full_state()
        for param in params:
            param.grad = torch.randn(4, 3)
        optimizer.step()
        assert not any(torch.equal(param, old) for param, old in zip(params, before, strict=True))
        assert len({param.untyped_storage().data_ptr() for param in params}) == 1
        for index, param in enumerate(params):
            old = momentum.get(f"{index}.momentum_buffer", torch.zeros(4, 3))
            expected = 0.95 * old + 0.05 * param.grad
            torch.testing.assert_close(optimizer.full_state()[f"{index}.momentum_buffer"], expected)


def test_wrong_groups_are_refused():
    with pytest.raises(ValueError, match="kind='sgd'"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(2))], "kind": "sgd", "lr": 0.1}])
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(2))], "kind": "muon", "lr": 0.1}])
    with pytest.raises(ValueError, match="'bias'"):
        param_groups({"bias": []}, n_embd=8, rates=Rates(), lr_scale=1.0, weight_decay=0.0)


def test_group_rates_follow_the_width_and_the_batch():
    def parameter():
        return [torch.nn.Parameter(torch.zeros(2, 2))]

    roles = {
        role: parameter() for role in ("matrix", "embedding", "value_embedding", "unembedding", "x0_scalar", "smear")
    }
    groups = {g["role"]: g for g in param_groups(roles, n_embd=192, rates=Rates(), lr_scale=0.5, weight_decay=0.1)}
    assert groups["unembedding"]["lr"] == pytest.approx(0.008 * 0.5 * 2)
    assert groups["embedding"]["lr"] == pytest.approx(0.3)
    assert groups["value_embedding"]["lr"] == pytest.approx(0.15)
    assert groups["matrix"]["lr"] == pytest.approx(0.01)
    assert groups["smear"]["lr"] == 0.2


def test_schedules_at_worked_steps():
    assert schedules.lr_multiplier(0, 1000) == pytest.approx(1 / 40)
    assert (
        schedules.lr_multiplier(39, 1000)
        == schedules.lr_multiplier(40, 1000)
        == schedules.lr_multiplier(349, 1000)
        == 1.0
    )
    assert schedules.lr_multiplier(675, 1000) == pytest.approx(0.5 + 0.5 * 0.05)
    assert schedules.muon_momentum(0, 1000) == 0.85
    assert schedules.muon_momentum(200, 1000) == pytest.approx(0.91)  # the ramp wins over the warm-down
    assert schedules.muon_momentum(675, 1000) == pytest.approx(0.935)
    assert schedules.weight_decay_multiplier(0, 1000) == 1.0
    assert schedules.weight_decay_multiplier(250, 1000) == pytest.approx(0.5 + math.sqrt(0.125))
    assert schedules.weight_decay_multiplier(500, 1000) == pytest.approx(0.5)
    assert schedules.sft_lr_multiplier(0.25) == 1.0
    assert schedules.sft_lr_multiplier(0.75) == pytest.approx(0.5)
    assert schedules.sft_muon_momentum(150) == pytest.approx(0.90)
    fine_tuning = schedules.FineTuning(progress=lambda: 0.25, num_iterations=100, lr_scale=0.5)
    assert fine_tuning.rates(75) == schedules.StepRates(lr_multiplier=0.25, muon_momentum=0.85 + 0.1 * 75 / 300)
    rates = schedules.PolicyGradient(num_iterations=20, lr_scale=0.1).rates(5)
    assert rates == schedules.StepRates(lr_multiplier=pytest.approx(0.075), muon_momentum=0.95)


@given(step=st.integers(0, 5000), num_iterations=st.integers(1, 5000))
def test_multipliers_stay_between_zero_and_one(step, num_iterations):
    assert 0 < schedules.lr_multiplier(step, num_iterations) <= 1
    assert 0.85 <= schedules.muon_momentum(step, num_iterations) <= 0.97


@pytest.mark.parametrize(
    ("depth", "width", "heads", "params", "horizon", "batch", "iterations", "lr_scale", "decay"),
    [  # worked by hand: 12 C^2 a block, 12 a head in every other one, 32768 C of unembedding; ratio 12
        (12, 768, 6, 110_100_912, 1_321_210_944, 2**19, 2520, 1.0, 0.28),
        (20, 1280, 10, 435_160_240, 5_221_922_880, 2**20, 4980, 1.41421, 0.100188),
        (24, 1536, 12, 729_810_624, 8_757_727_488, 2**20, 8352, 1.41421, 0.059738),
        (26, 1664, 13, 918_423_532, 11_021_082_384, 2**20, 10510, 1.41421, 0.047470),
    ],
)
def test_recipe_at_worked_depths(depth, width, heads, params, horizon, batch, iterations, lr_scale, decay):
    recipe = Recipe.from_depth(depth)
    assert (recipe.n_embd, recipe.n_head, recipe.scaling_params) == (width, heads, params)
    assert (recipe.horizon_tokens, recipe.total_batch_size, recipe.num_iterations) == (horizon, batch, iterations)
    assert (recipe.lr_scale, recipe.weight_decay) == (pytest.approx(lr_scale, rel=1e-5), pytest.approx(decay, rel=1e-5))


def test_every_depth_makes_a_run_and_a_table_with_its_inputs():
    for depth in range(4, 33):
        recipe = Recipe.from_depth(depth)
        assert recipe.n_embd % 128 == 0
        assert depth * 64 <= recipe.n_embd < depth * 64 + 128
        assert recipe.total_batch_size.bit_count() == 1
        rows = {name: (value, origin) for name, value, origin in recipe.table()}
        assert rows["width"] == (str(recipe.n_embd), f"depth {depth} * 64, rounded up to 128s")
        assert f"1,321,210,944 / {recipe.horizon_tokens:,}" in rows["batch"][1]


def test_a_target_of_flops_sets_the_length():
    recipe = Recipe.from_depth(12, target_flops=1e18, flops_per_token=760_000_000)
    assert recipe.num_iterations == round(1e18 / (760e6 * 2**19))
