"""Optimizers: against references and by hand."""

import builtins
import importlib.util
import sys

import pytest
import torch

from extensions_lib.errors import ConfigError
from extensions_lib.training.adafactor import Adafactor
from extensions_lib.training.lion import Lion
from extensions_lib.training.optimizer import OPTIMIZERS, learning_rate_of, make_optimizer, set_learning_rate

INCLUDED = ("adamw", "adafactor", "lion")


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 4), (5,), (3, 2, 3, 3), ())
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def run(optimizer, params, num_steps=5):
    for step in range(num_steps):
        give_gradients(params, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in params]


def groups(params, lr=1e-2):
    return [{"params": params, "lr": lr}]


def test_adamw_is_torch_adamw():
    ours, theirs = parameters(), parameters()
    settings = {"weight_decay": 0.1, "eps": 1e-6}
    result = run(make_optimizer("adamw", groups(ours), beta1=0.8, beta2=0.95, **settings), ours)
    reference = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.8, 0.95), foreach=False, **settings)
    for a, b in zip(result, run(reference, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_adamw_is_fused_where_torch_has_it(monkeypatch):
    def fused_cpu_exists():
        try:
            torch.optim.AdamW(parameters(), fused=True)
        except RuntimeError:
            return False
        return True

    assert bool(make_optimizer("adamw", groups(parameters())).defaults["fused"]) == fused_cpu_exists()
    plain = torch.optim.AdamW

    def without_fused(*args, **settings):
        if settings.get("fused"):
            plain(*args, **settings)
            raise RuntimeError("`fused=True` requires all the params to be ... of supported devices")
        return plain(*args, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", without_fused)
    group = make_optimizer("adamw", groups(parameters())).param_groups[0]
    assert not group["fused"] and group["foreach"] is False


def test_adafactor_is_that_of_transformers():
    from transformers.optimization import Adafactor as Reference

    ours, theirs = parameters(), parameters()
    result = run(make_optimizer("adafactor", groups(ours), weight_decay=0.1), ours)
    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    for a, b in zip(result, run(Reference(theirs, lr=1e-2, weight_decay=0.1, **fixed), theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_adafactor_first_step_by_hand():
    """At the first step the decay is 0, so a vector moves by the sign of its gradient, of root mean square 1."""
    vector = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    vector.grad = torch.tensor([0.5, -4.0])
    Adafactor([vector], lr=0.1).step()
    assert vector.tolist() == pytest.approx([0.9, 2.1])


def test_adafactor_shortens_large_updates():
    vector = torch.nn.Parameter(torch.zeros(2))
    vector.grad = torch.tensor([1.0, -1.0])
    Adafactor([vector], lr=0.1, clip_threshold=0.5).step()
    assert vector.tolist() == pytest.approx([-0.05, 0.05])


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
    matrix = torch.nn.Parameter(torch.ones(30, 20))
    optimizer = Adafactor([matrix])
    matrix.grad = torch.ones(30, 20)
    optimizer.step()
    shapes = sorted(tuple(value.shape) for value in optimizer.state[matrix].values() if torch.is_tensor(value))
    assert shapes == [(20,), (30,)]


def test_lion_by_hand():
    """lr 0.1, weight decay 0.5, betas 0.9 and 0.99.

    Step 1: momentum 0, direction sign(0.1 * 2) = 1; 1 * (1 - 0.05) - 0.1 = 0.85; momentum 0.01 * 2 = 0.02.
    Step 2: direction sign(0.9 * 0.02 - 0.1 * 0.1) = sign(0.008) = 1; 0.85 * 0.95 - 0.1 = 0.7075;
            momentum 0.99 * 0.02 - 0.01 * 0.1 = 0.0188.
    Step 3: direction sign(0.9 * 0.0188 - 0.1 * 0.16) = sign(0.00092) = 1; 0.7075 * 0.95 - 0.1 = 0.572125;
            momentum 0.99 * 0.0188 - 0.01 * 0.16 = 0.017012.
    Step 4: direction sign(0.9 * 0.017012 - 0.1 * 1) = -1; 0.572125 * 0.95 + 0.1 = 0.64351875.
    """
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Lion([parameter], lr=0.1, weight_decay=0.5)
    values = []
    for gradient in (2.0, -0.1, -0.16, -1.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        values.append(parameter.item())
    assert values == pytest.approx([0.85, 0.7075, 0.572125, 0.64351875])


def test_lion_does_not_move_what_has_no_gradient_sign():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    parameter.grad = torch.tensor([0.0, 3.0])
    Lion([parameter], lr=0.1).step()
    assert parameter.tolist() == pytest.approx([1.0, 0.9])


@pytest.mark.parametrize("name", INCLUDED)
def test_parameters_without_gradient_stay(name):
    params = parameters()
    before = params[1].detach().clone()
    give_gradients(params, 0)
    params[1].grad = None
    optimizer = make_optimizer(name, groups(params), weight_decay=0.5)
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state


@pytest.mark.parametrize("name", INCLUDED)
def test_every_optimizer_lowers_a_simple_loss(name):
    parameter = torch.nn.Parameter(torch.tensor([[3.0, -2.0], [1.0, 4.0]]))
    optimizer = make_optimizer(name, groups([parameter], lr=0.05), weight_decay=0.0)
    for step in range(400):
        set_learning_rate(optimizer, 1 - step / 400)
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
    assert (parameter.abs() < 0.1).all()


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_the_closure_is_called_with_gradients_enabled(name):
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer(name, groups([parameter], lr=0.1), weight_decay=0.0)

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert parameter.item() == pytest.approx(1.9)


def test_groups_have_their_own_rate_and_weight_decay():
    first, second = parameters()[:1], parameters()[1:2]
    optimizer = make_optimizer(
        "adamw",
        [{"params": iter(first), "lr": 1e-3}, {"params": second, "lr": 1e-4, "weight_decay": 0.0}],
        weight_decay=0.3,
    )
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["params"] == first


def test_the_learning_rate_is_a_multiple_of_the_base_rate_of_each_group():
    first, second = parameters()[:1], parameters()[1:2]
    optimizer = make_optimizer("lion", [{"params": first, "lr": 1e-3}, {"params": second, "lr": 1e-4}])
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-4, 2.5e-5]
    assert learning_rate_of(optimizer) == 2.5e-4
    optimizer.param_groups[0]["d"] = 0.5
    assert learning_rate_of(optimizer) == 1.25e-4


def test_defaults_of_the_second_beta():
    assert make_optimizer("adamw", groups(parameters())).defaults["betas"] == (0.9, 0.999)
    assert make_optimizer("lion", groups(parameters())).defaults["betas"] == (0.9, 0.99)
    assert make_optimizer("lion", groups(parameters()), beta2=0.999).defaults["betas"] == (0.9, 0.999)


def test_the_given_groups_are_not_changed():
    given = groups(parameters())
    make_optimizer("adamw", given)
    assert set(given[0]) == {"params", "lr"}


def test_an_unknown_optimizer_is_refused_with_the_choices():
    with pytest.raises(
        ConfigError, match="unknown optimizer 'adam', expected one of adamw, adamw8bit, prodigy"
    ) as raised:
        make_optimizer("adam", groups(parameters()))
    assert raised.value.problems[0].path == "optimizer.optimizer"


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
@pytest.mark.parametrize("failure", [ImportError("No module"), RuntimeError("CUDA setup failed"), OSError("no .so")])
def test_a_missing_package_is_named(name, package, failure, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    real_import = importlib.import_module

    def failing_import(wanted):
        if wanted == package:
            raise failure
        return real_import(wanted)

    monkeypatch.setattr(importlib, "import_module", failing_import)
    with pytest.raises(ConfigError) as raised:
        make_optimizer(name, groups(parameters()))
    assert f"{name} needs the package {package}, which cannot be loaded ({failure})" in raised.value.message
    assert f"python -m pip install {package}" in raised.value.hint
    assert "adamw, adafactor or lion" in raised.value.hint


def test_prodigy_needs_one_rate():
    first, second = parameters()[:1], parameters()[1:2]
    with pytest.raises(ConfigError, match=r"prodigy needs one learning rate for all parts, got 0.0001, 1") as raised:
        make_optimizer("prodigy", [{"params": first, "lr": 1.0}, {"params": second, "lr": 1e-4}])
    assert "Use the same rate, normally 1, everywhere." in raised.value.hint


@pytest.mark.skipif(not importlib.util.find_spec("prodigyopt"), reason="prodigyopt is optional")
def test_prodigy_finds_its_rate_in_silence(monkeypatch):
    monkeypatch.setattr(builtins, "print", lambda *args: pytest.fail(f"printed {args}"))
    parameter = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = make_optimizer("prodigy", groups([parameter], lr=1.0), weight_decay=0.01)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    before = learning_rate_of(optimizer)
    for _ in range(150):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
    assert (parameter.abs() < 1.0).all()
    assert learning_rate_of(optimizer) > 100 * before


def test_the_list_of_names_is_that_of_the_settings():
    from extensions_lib.config.optimizer import OPTIMIZERS as SETTING_CHOICES

    assert tuple(SETTING_CHOICES) == OPTIMIZERS
