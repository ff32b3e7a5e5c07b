"""Chapter 07 against torch's own optimizers, over grids of settings and through real training; schedules as properties."""

from __future__ import annotations

import copy
import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinygpt.model import GPT, PRESETS
from tinygpt.optim import (SCHEDULES, AdamW, Muon, clip_grad_norm, cosine_schedule, linear_schedule, make_optimizer,
                           muon_update, newton_schulz, parameter_groups, wsd_schedule)

TINY = PRESETS["tiny"].replace(vocab_size=32, context_length=16, d_model=16, n_layers=2, n_heads=2)
SHAPES = [(3,), (4, 4), (8, 3), (3, 8), (1, 5), (5, 1), (2, 3, 4)]
MATRICES = [(4, 4), (24, 8), (8, 24), (1, 6), (6, 1), (8, 24), (4, 4), (33, 32)]

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def draw(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def walk(make, shapes, steps, lr=None, seed=0, sizes=(-3, 2)):
    "The weights after gradients whose sizes differ from tensor to tensor, with a rate that changes at every step."
    params = draw(shapes, seed)
    optimizer = make(params)
    highest = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed + 1)
    scales = torch.logspace(*sizes, len(shapes))
    for step in range(steps):
        for i, (p, scale) in enumerate(zip(params, scales)):
            p.grad = torch.randn(p.shape, generator=generator) * scale
            if (step + i) % 7 == 3:  # a tensor that took no part in this batch
                p.grad = None
        for group, top in zip(optimizer.param_groups, highest):
            group["lr"] = cosine_schedule(step, top, 0.0, steps // 10, steps)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in params])


def equal(a, b, tol=1e-6):
    torch.testing.assert_close(a, b, atol=tol, rtol=0)


# --- AdamW -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    dict(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1, eps=1e-8),
    dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-6),
    dict(lr=3e-2, betas=(0.8, 0.95), weight_decay=1.0, eps=1e-10),
    dict(lr=1e-2, betas=(0.0, 0.5), weight_decay=0.1, eps=1e-8),
])
def test_adamw_equals_torch_after_1000_steps(settings):
    ours = walk(lambda params: AdamW(params, **settings), SHAPES, 1000)
    equal(ours, walk(lambda params: torch.optim.AdamW(params, foreach=False, **settings), SHAPES, 1000))
    equal(ours, walk(lambda params: torch.optim.AdamW(params, fused=True, **settings), SHAPES, 1000), 3e-6)


def train(model, optimizers, steps, first=0, max_norm=1.0):
    for step in range(first, steps):
        ids = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        clip_grad_norm(model.parameters(), max_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * linear_schedule(step, 1.0, 0.0, 20, 1000)
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_adamw_equals_torch_through_1000_steps_of_a_model():
    "With feedback a rounding would grow: equal here means equal in every bit on the way."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ends = []
    for make in (AdamW, lambda *args, **settings: torch.optim.AdamW(*args, foreach=False, **settings)):
        torch.manual_seed(0)
        model = GPT(TINY.replace(n_layers=1))
        ends.append(train(model, [make(parameter_groups(model, 0.1), lr=3e-3, betas=(0.9, 0.99))], 1000))
    torch.set_num_threads(threads)
    equal(*ends)


def test_adamw_and_torch_continue_each_other():
    def half_and_half(first, second):
        [p] = draw([(5, 4)])
        optimizer = first([p], lr=1e-2)
        for step in range(100):
            if step == 50:
                state = optimizer.state_dict()
                optimizer = second([p], lr=1e-2)
                optimizer.load_state_dict(state)
            p.grad = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return p.detach()

    want = half_and_half(AdamW, AdamW)
    equal(half_and_half(torch.optim.AdamW, AdamW), want)
    equal(half_and_half(AdamW, torch.optim.AdamW), want)


@pytest.mark.parametrize("bad", [dict(lr=-1), dict(lr=math.nan), dict(eps=-1e-8), dict(weight_decay=-0.1),
                                 dict(betas=(1.0, 0.9)), dict(betas=(0.9, -0.1))])
def test_adamw_refuses(bad):
    with pytest.raises(ValueError, match="^AdamW: "):
        AdamW(draw([(3,)]), **bad)


@pytest.mark.parametrize(("lr", "said"), [(-1, "lr=-1 is negative"), (math.nan, "lr=nan is no number")])
def test_adamw_says_what_is_wrong(lr, said):
    with pytest.raises(ValueError, match=said):
        AdamW(draw([(3,)]), lr=lr)


def test_closures_are_called_with_gradients_on():
    for optimizer_class in (AdamW, Muon):
        [p] = draw([(3, 3)])
        optimizer = optimizer_class([p], lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        before = p.detach().square().sum()
        assert optimizer.step(closure) == before > p.square().sum()


# --- Muon ------------------------------------------------------------------------------------------------------


@needs_muon
@pytest.mark.parametrize("rule", ["original", "match_rms_adamw", None])
@pytest.mark.parametrize("settings", [
    dict(),
    dict(nesterov=False),
    dict(momentum=0.0),
    dict(weight_decay=0.0, ns_steps=3),
    dict(ns_coefficients=(1.875, -1.25, 0.375), ns_steps=12, momentum=0.5),  # the one that ends at 1
])
def test_muon_equals_torch(rule, settings):
    settings = dict(lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn=rule) | settings
    ours = walk(lambda params: Muon(params, **settings), MATRICES, 100)
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):  # their code, in float32
        equal(ours, walk(lambda params: torch.optim.Muon(params, **settings), MATRICES, 100))
    ours = walk(lambda params: Muon(params, dtype=torch.bfloat16, **settings), MATRICES, 100)
    equal(ours, walk(lambda params: torch.optim.Muon(params, **settings), MATRICES, 100), 2e-3)


@needs_muon
@pytest.mark.parametrize("first, second", [(torch.optim.Muon if hasattr(torch.optim, "Muon") else Muon, Muon),
                                           (Muon, torch.optim.Muon if hasattr(torch.optim, "Muon") else Muon)])
def test_muon_and_torch_continue_each_other(first, second):
    [p] = draw([(6, 4)])
    optimizer = first([p], lr=0.02)
    p.grad = torch.randn(6, 4)
    optimizer.step()
    state = optimizer.state_dict()
    other = second([p], lr=0.5)
    other.load_state_dict(state)
    equal(other.state[p]["momentum_buffer"], optimizer.state[p]["momentum_buffer"], 0)
    assert other.param_groups[0]["lr"] == 0.02
    other.step()


def test_muon_stacks_what_is_alike_and_bounds_the_memory():
    seen = []

    def spy(params, updates, settings):
        seen.append((tuple(params[0].shape), len(params)))
        muon_update(params, updates, settings)

    params = draw([(4, 4), (8, 4), (4, 4), (4, 8), (8, 4), (4, 4)]) + [nn.Parameter(torch.zeros(3000, 3000)) for _ in "ab"]
    for p in params:
        p.grad = torch.ones_like(p)
    params[5].grad = None
    with mock.patch("tinygpt.optim.muon_update", spy):
        Muon(params, ns_steps=0).step()
    assert seen == [((4, 4), 2), ((8, 4), 2), ((4, 8), 1), ((3000, 3000), 1), ((3000, 3000), 1)]


def test_muon_alone_or_stacked_is_the_same():
    together = walk(lambda params: Muon(params), [(6, 4)] * 5, 30)
    groups = walk(lambda params: Muon([{"params": [p]} for p in params]), [(6, 4)] * 5, 30)
    equal(together, groups)


def test_muon_refuses():
    good, gains = draw([(3, 3), (3,)])
    optimizer = Muon([good])
    with pytest.raises(ValueError, match=r"^Muon: a parameter of shape \(3,\) is no matrix; give it to AdamW"):
        optimizer.add_param_group({"params": [gains]})
    assert len(optimizer.param_groups) == 1  # as it was
    for bad in (dict(params=[gains]), dict(params=draw([(2, 3, 4)])), dict(lr=-1), dict(momentum=1.0),
                dict(weight_decay=math.nan), dict(ns_steps=-1), dict(adjust_lr_fn="adamw")):
        with pytest.raises(ValueError, match="^Muon: "):
            Muon(**(dict(params=[good]) | bad))


def test_muon_takes_half_precision_and_zero_gradients():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        p = nn.Parameter(torch.ones(4, 6, dtype=dtype))
        p.grad = torch.zeros_like(p)
        Muon([p], weight_decay=0.0).step()
        assert p.dtype == dtype and (p == 1).all()
        p.grad = torch.randn(6, 4).to(dtype).T  # not contiguous
        Muon([p], weight_decay=0.0).step()
        assert p.isfinite().all() and not (p == 1).all()


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-4, 1e4), st.integers(0, 10**6))
def test_newton_schulz_keeps_directions_and_lifts_strengths(rows, columns, size, seed):
    g = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    U, strengths, Vt = torch.linalg.svd(g, full_matrices=False)
    want = strengths / g.norm()
    for _ in range(5):
        want = 3.4445 * want - 4.7750 * want**3 + 2.0315 * want**5
    torch.testing.assert_close(newton_schulz(g), U @ want.diag() @ Vt, atol=1e-8, rtol=0)
    assert want[0] < 1.25 and (want[strengths / g.norm() > 0.01] > 0.65).all()
    turn = torch.linalg.qr(torch.randn(rows, rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    torch.testing.assert_close(newton_schulz(turn @ g), turn @ newton_schulz(g), atol=1e-8, rtol=0)


# --- which optimizer gets what ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [dict(), dict(tie_embeddings=False), dict(position="learned", norm="layernorm", bias=True,
                                                                             mlp="gelu"), dict(norm="none"), dict(qk_norm=True)])
def test_muon_takes_the_matrices_of_the_blocks_and_no_others(changes):
    model = GPT(TINY.replace(**changes))
    muon, rest = make_optimizer(model, "muon", lr=1e-3, weight_decay=0.3, muon_lr=0.05)
    names = {p: name for name, p in model.named_parameters()}
    taken = [names[p] for group in muon.param_groups for p in group["params"]]
    left = [names[p] for group in rest.param_groups for p in group["params"]]
    assert sorted(taken + left) == sorted(names.values())  # each once
    assert set(taken) == {name for p, name in names.items() if name.startswith("blocks.") and p.ndim == 2}
    assert muon.param_groups[0]["weight_decay"] == 0.3 and muon.param_groups[0]["initial_lr"] == 0.05
    decays = {names[p]: group["weight_decay"] for group in rest.param_groups for p in group["params"]}
    assert all(decay == (0.3 if "embed" in name or name == "head.weight" else 0.0) for name, decay in decays.items())
    assert isinstance(rest, torch.optim.AdamW) and rest.defaults["fused"]


def test_frozen_weights_are_left_out():
    model = GPT(TINY)
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    for name in ("adamw", "muon"):
        given_ = {p for o in make_optimizer(model, name) for group in o.param_groups for p in group["params"]}
        assert given_ == {p for p in model.parameters() if p.requires_grad}


def test_make_optimizer_refuses():
    with pytest.raises(ValueError, match="name='sgd' is unknown; choose adamw or muon"):
        make_optimizer(GPT(TINY), "sgd")
    with pytest.raises(ValueError, match="name=muon needs matrices in model.blocks; use adamw"):
        make_optimizer(nn.Linear(3, 4), "muon")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_goes_on_from_named_tensors(name):
    "All that an optimizer remembers are tensors, one by one under a parameter; with them the bits come back."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT(TINY)
    optimizers = make_optimizer(model, name)
    train(model, optimizers, 20)
    saved = {f"{path}/{key}": value.clone() for path, p in model.named_parameters() for o in optimizers
             for key, value in o.state.get(p, {}).items()}
    assert all(isinstance(value, torch.Tensor) for value in saved.values())
    twin = copy.deepcopy(model)
    want = train(model, optimizers, 40, first=20)
    again = make_optimizer(twin, name)
    owner = {p: o for o in again for group in o.param_groups for p in group["params"]}
    params = dict(twin.named_parameters())
    for label, value in saved.items():
        path, key = label.split("/")
        owner[params[path]].state[params[path]][key] = value
    got = train(twin, again, 40, first=20)
    torch.set_num_threads(threads)
    assert torch.equal(got, want)


# --- schedules and clipping ------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_every_schedule_rises_and_falls_once_between_its_rates(name, total, warm, low):
    warmup, schedule = int(warm * total), SCHEDULES[name]
    rates = [schedule(step, 1.0, low, warmup, total) for step in range(total + 3)]
    assert rates[total:] == [low] * 3
    assert all(a < b for a, b in zip(rates[:warmup], rates[1:warmup])) and min(rates[:warmup], default=1) > 0
    if warmup < total:
        assert rates[warmup] == 1.0 == max(rates)
        assert all(a >= b - 1e-12 for a, b in zip(rates[warmup:], rates[warmup + 1:]))
        assert min(rates[warmup:]) >= low - 1e-12


def test_known_rates():
    assert cosine_schedule(55, 2.0, 0.0, 10, 100) == pytest.approx(1.0)
    assert linear_schedule(55, 2.0, 0.0, 10, 100) == pytest.approx(1.0)
    assert linear_schedule(91, 2.0, 0.0, 10, 100) == pytest.approx(0.2)
    assert [wsd_schedule(step, 2.0, 0.0, 10, 100) for step in (10, 50, 80)] == [2.0, 2.0, 2.0]
    assert wsd_schedule(90, 2.0, 0.0, 10, 100) == pytest.approx(1.0)
    assert wsd_schedule(95, 2.0, 1.0, 10, 100, decay_frac=0.1) == pytest.approx(1.5)
    assert wsd_schedule(99, 2.0, 0.0, 10, 100, decay_frac=0.0) == 2.0
    for step in range(80):  # a longer plan changes nothing until the shorter one falls
        assert wsd_schedule(step, 1.0, 0.0, 10, 100) == wsd_schedule(step, 1.0, 0.0, 10, 500)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_refuse(name):
    for warmup, total in ((-1, 10), (11, 10)):
        with pytest.raises(ValueError, match=f"^{name}_schedule: warmup_steps={warmup} must lie between 0 and"):
            SCHEDULES[name](0, 1.0, 0.0, warmup, total)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="decay_frac"):
            wsd_schedule(0, 1.0, 0.0, 1, 10, decay_frac=share)


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6, math.inf])
def test_clipping_equals_torch(max_norm):
    ours, theirs = draw(SHAPES), draw(SHAPES)
    for a, b in zip(ours[1:], theirs[1:]):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    equal(clip_grad_norm(ours, max_norm), nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(ours[1:], theirs[1:]):
        equal(a.grad, b.grad)
    assert clip_grad_norm(draw([(3,)]), 1.0) == 0  # nothing to clip
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="^clip_grad_norm: max_norm="):
            clip_grad_norm(ours, bad)
