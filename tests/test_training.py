"""The training loop: seeded, resumable, with the paper's schedules."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import CLASSES, Mean, draw_scenes, loss, same_state, state_of
from torch import nn
from torch.utils.data import Dataset

from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet, classification_loss
from affinity_lib.errors import InputError
from affinity_lib.training import loop
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.loop import Recipe, epoch_order, fit
from affinity_lib.training.state import build_optimizer

RECIPE = Recipe(epochs=4, batch_size=3, lr=0.05)


class Noisy(Dataset):
    """Ten random inputs that are different each time, as augmented images are."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, k: int):
        return torch.randn(3, 4, 4), torch.tensor(k % 2)


class Still(Dataset):
    """Inputs that stay the same."""

    def __init__(self, count: int):
        self.inputs = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, k: int):
        return self.inputs[k], torch.tensor(k % 2)


class Net(nn.Module):
    """A network with everything that has a state: batch norm, dropout, a backbone and a head."""

    def __init__(self, norm: bool = True, classes: int = 2):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.drop = nn.Dropout(0.3 if norm else 0)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.backbone(x)).flatten(1)))


def trained(path, recipe: Recipe, samples: Dataset | None = None, net: nn.Module | None = None):
    net = net or Net()
    return net, fit(net, samples or Noisy(), loss, recipe, path / "checkpoint.pt")


def stopping_at(call: int):
    """The loss, until somebody presses Ctrl+C in that call."""
    calls = 0

    def stopped(model, batch):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return loss(model, batch)

    return stopped


@pytest.mark.parametrize(("optimizer", "decay"), [("adam", 0), ("sgd", 0), ("adam", 0.7)])
@pytest.mark.parametrize("call", [1, 5, 11])
def test_a_stopped_training_that_goes_on_ends_with_the_same_bits(tmp_path, optimizer, decay, call):
    recipe = replace(RECIPE, optimizer=optimizer, ema_decay=decay, accumulate=2)
    undisturbed, history = trained(tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), Noisy(), stopping_at(call), recipe, tmp_path / "checkpoint.pt")
    torch.manual_seed(999)
    continued, again = trained(tmp_path, recipe)
    assert again == history
    assert len(history) == recipe.epochs
    assert same_state(state_of(undisturbed), state_of(continued))


@pytest.mark.parametrize("call", [3, 5, 9], ids=["first epoch", "half a step", "third epoch"])
def test_a_network_that_was_stopped_in_this_process_goes_on_from_its_last_epoch(tmp_path, call):
    recipe, net, calls = replace(RECIPE, accumulate=2), Net(), []

    def stops(model, batch):
        value = loss(model, batch)
        calls.append(value)
        if len(calls) == call:  # as an interrupt between a gradient and its step
            value.backward()
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        fit(net, Noisy(), stops, recipe, tmp_path / "a" / "checkpoint.pt")
    fit(net, Noisy(), loss, recipe, tmp_path / "a" / "checkpoint.pt")
    whole, _ = trained(tmp_path / "b", recipe)
    assert same_state(state_of(net), state_of(whole))


def test_a_training_that_is_made_anew_begins_with_the_networks_first_weights(tmp_path):
    def of(net, *names):
        for name in names:
            fit(net, Still(6), loss, RECIPE, tmp_path / name / "checkpoint.pt")
        return net

    net = of(Net(), "one", "two")  # two rounds, the second from what the first has learned
    for name in ("one", "two"):
        (tmp_path / name / "checkpoint.pt").unlink()
    again = of(Net(), "one", "two")
    assert same_state(state_of(net), state_of(again))
    for name in ("one", "two"):
        (tmp_path / name / "checkpoint.pt").unlink()
    assert same_state(state_of(of(net, "one", "two")), state_of(again))


def test_a_training_that_is_made_anew_begins_with_weights_that_were_loaded_meanwhile(tmp_path):
    path, other = tmp_path / "checkpoint.pt", Net(norm=True)
    with torch.no_grad():
        other.head.weight.mul_(-1)
    net = Net()
    fit(net, Still(6), loss, RECIPE, path)
    path.unlink()
    net.load_state_dict(other.state_dict())
    fit(net, Still(6), loss, RECIPE, path)
    fit(other, Still(6), loss, RECIPE, tmp_path / "other.pt")
    assert same_state(state_of(net), state_of(other))


def test_only_what_was_lost_is_done_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), Noisy(), stopping_at(11), RECIPE, tmp_path / "checkpoint.pt")
    calls = []
    fit(Net(), Noisy(), lambda *a: calls.append(1) or loss(*a), RECIPE, tmp_path / "checkpoint.pt")
    assert len(calls) == 2 * 4  # two of four epochs of four batches were finished


def test_a_network_ends_with_the_moving_average_of_its_weights(tmp_path):
    recipe, seen = replace(RECIPE, ema_decay=0.8), []

    def watched(model, batch):
        seen.append([p.detach().clone() for p in model.parameters()])
        return loss(model, batch)

    net = Net()
    fit(net, Noisy(), watched, recipe, tmp_path / "averaged" / "checkpoint.pt")
    last, _ = trained(tmp_path, RECIPE)
    after = [*seen[1:], [p.detach() for p in last.parameters()]]
    expected = after[0]
    for weights in after[1:]:
        pairs = zip(expected, weights, strict=True)
        expected = [0.8 * old + 0.2 * new for old, new in pairs]
    for found, average in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), average)
    assert not same_state(state_of(net), state_of(last))


def test_a_finished_training_is_not_repeated(tmp_path):
    net, history = trained(tmp_path, RECIPE)
    again, same = trained(tmp_path, RECIPE, net=Net())
    assert same == history
    assert same_state(state_of(net), state_of(again))
    assert not again.training


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.01},
        {"epochs": 5},
        {"seed": 1},
        {"optimizer": "sgd"},
        {"ema_decay": 0.9},
        {"batch_size": 2},
    ],
)
def test_a_changed_recipe_starts_over(tmp_path, change):
    trained(tmp_path, RECIPE)
    recipe = replace(RECIPE, **change)
    after_another, _ = trained(tmp_path, recipe)
    fresh, _ = trained(tmp_path / "fresh", recipe)
    assert same_state(state_of(after_another), state_of(fresh))


@pytest.mark.parametrize("kind", ["classes", "norm", "frozen"])
def test_a_changed_network_starts_over(tmp_path, kind):
    def changed():
        net = Net(norm=kind != "norm", classes=3 if kind == "classes" else 2)
        net.backbone.requires_grad_(kind != "frozen")
        return net

    trained(tmp_path, RECIPE)
    after_another, _ = trained(tmp_path, RECIPE, net=changed())
    fresh, _ = trained(tmp_path / "fresh", RECIPE, net=changed())
    assert same_state(state_of(after_another), state_of(fresh))


def test_the_number_of_workers_changes_neither_the_items_nor_the_weights(tmp_path):
    recipe = replace(RECIPE, epochs=2)
    alone, history = trained(tmp_path / "alone", recipe)
    helped, same = trained(tmp_path / "helped", replace(recipe, workers=2))
    assert same == history
    assert same_state(state_of(alone), state_of(helped))


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_batches_for_a_gpu_lie_in_pinned_memory(monkeypatch, device):
    asked = []
    monkeypatch.setattr(loop, "DataLoader", lambda *args, **how: asked.append(how) or [None])
    assert list(loop._load(Noisy(), RECIPE, range(1), torch.device(device))) == [None]
    assert asked[0]["pin_memory"] == (device != "cpu")


def test_a_gpu_has_its_images_loaded_by_processes_and_a_cpu_loads_them_itself(monkeypatch):
    monkeypatch.setattr(loop, "available_cores", lambda: 3)
    assert loop.loading_workers(torch.device("cuda", 1)) == 3
    monkeypatch.setattr(loop, "available_cores", lambda: 64)
    assert loop.loading_workers(torch.device("cuda")) == loop.MOST_WORKERS
    assert loop.loading_workers(torch.device("cuda"), nproc=16) == 4
    assert loop.loading_workers(torch.device("cpu")) == 0


def test_where_processes_are_spawned_no_others_load_the_images(tmp_path, monkeypatch):
    asked = []
    real = loop.DataLoader
    monkeypatch.setattr(
        loop, "DataLoader", lambda *a, **how: asked.append(how["num_workers"]) or real(*a, **how)
    )
    monkeypatch.setattr(loop, "START_METHOD", "spawn")
    trained(tmp_path, replace(RECIPE, workers=2))
    assert set(asked) == {0}


def test_workers_stay_for_the_whole_training(tmp_path):
    class Process(Noisy):
        def __getitem__(self, k):
            return torch.full((3, 4, 4), os.getpid(), dtype=torch.double), torch.tensor(k % 2)

    seen = set()

    def watched(model, batch):
        seen.update(batch[0].flatten().int().tolist())
        return loss(model, (batch[0].float() / 1e6, batch[1]))

    fit(Net(), Process(), watched, replace(RECIPE, workers=2), tmp_path / "checkpoint.pt")
    assert len(seen) == 2 and os.getpid() not in seen


def test_more_workers_go_on_where_fewer_stopped(tmp_path):
    trained(tmp_path, RECIPE)
    calls = []
    recipe = replace(RECIPE, workers=1)
    fit(Net(), Noisy(), lambda *a: calls.append(1), recipe, tmp_path / "checkpoint.pt")
    assert calls == []


def test_augmentation_differs_from_epoch_to_epoch_and_from_image_to_image(tmp_path):
    seen = []

    def recording(model, batch):
        seen.extend(tuple(x.flatten().tolist()) for x in batch[0])
        return loss(model, batch)

    fit(Net(), Noisy(), recording, RECIPE, tmp_path / "checkpoint.pt")
    assert len(set(seen)) == len(seen) == 4 * 10


@pytest.mark.parametrize(("count", "epochs"), [(8, 1), (8, 3), (10, 2)])
def test_two_half_batches_make_the_step_of_a_whole_one(tmp_path, count, epochs):
    recipe = Recipe(epochs, 4, 0.1, "sgd", lr_factors=(1, 2, 10, 20), weight_decay=0.01)
    halves = replace(recipe, batch_size=2, accumulate=2)
    whole, history = trained(tmp_path / "a", recipe, Still(count), Net(norm=False))
    half, again = trained(tmp_path / "b", halves, Still(count), Net(norm=False))
    for one, two in zip(whole.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    if count == 8:
        assert history == pytest.approx(again, rel=1e-5, abs=1e-7)  # float32, another order


def test_the_learning_rate_falls_to_zero_by_the_power(tmp_path):
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

    net = Slope()
    recipe = Recipe(epochs=3, batch_size=4, lr=0.1, optimizer="sgd", momentum=0, power=0.9)
    fit(net, Noisy(), lambda model, batch: model.weight, recipe, tmp_path / "checkpoint.pt")
    expected = -0.1 * sum((1 - step / 9) ** 0.9 for step in range(9))
    assert net.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_four_groups_have_their_own_learning_rates():
    net = Net(norm=False)
    recipe = Recipe(1, 1, 0.1, lr_factors=(1, 2, 10, 20))
    groups = build_optimizer(net, recipe).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in net.named_parameters()}
    assert named == pytest.approx(
        {"backbone.weight": 0.1, "backbone.bias": 0.2, "head.weight": 1, "head.bias": 2}
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_decay_and_biases_do_not(optimizer):
    net = Net(norm=False)
    groups = build_optimizer(net, replace(RECIPE, optimizer=optimizer, weight_decay=0.5))
    decays = {
        id(p): group["weight_decay"] for group in groups.param_groups for p in group["params"]
    }
    named = {name: decays[id(p)] for name, p in net.named_parameters()}
    assert named == {name: 0.0 if name.endswith("bias") else 0.5 for name in named}


def test_frozen_parameters_are_left_out_of_the_optimizer():
    net = Net()
    net.backbone.requires_grad_(False)
    groups = build_optimizer(net, RECIPE).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for name, p in net.named_parameters() if "backbone" not in name}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_with_finetune_head_no_bit_of_the_backbone_moves(tmp_path, optimizer):
    data = draw_scenes(tmp_path / "data", 6, size=32)
    net = CAMNet(build_backbone("small"), len(CLASSES), width=8)
    inputs = Inputs(data, net.backbone, "head", folder=tmp_path / "levels")
    before, head = state_of(net.backbone), state_of(net.neck)
    samples = inputs.samples(data.ids("train"), crop=32, tags=True)
    recipe = Recipe(2, 3, 0.1, optimizer, weight_decay=0.1)
    fit(net, samples, _cam_loss, recipe, tmp_path / "checkpoint.pt")
    assert same_state(before, state_of(net.backbone))
    assert not same_state(head, state_of(net.neck))


@pytest.mark.parametrize("nproc", [1, 2])
def test_features_are_computed_when_the_network_is_on_its_device(tmp_path, nproc):
    net, where = Net(), []

    class Stored(Noisy):
        def prepare(self):
            where.append(net.head.weight.device.type)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net, Stored(), loss, RECIPE, tmp_path / "checkpoint.pt", "meta", nproc=nproc)
    assert where == ["meta"]


def test_features_are_stored_before_they_are_trained_on(tmp_path, monkeypatch):
    data = draw_scenes(tmp_path / "data", 4, size=32)
    net = CAMNet(Mean(), len(CLASSES), width=8)
    inputs, stored = Inputs(data, net.backbone, "head", folder=tmp_path / "levels"), []
    monkeypatch.setattr(
        inputs, "store", lambda ids: stored.append(ids) or Inputs.store(inputs, ids)
    )
    samples = inputs.samples(data.ids("train"), crop=32, tags=True)
    assert stored == []
    fit(net, samples, _cam_loss, Recipe(1, 2, 0.1), tmp_path / "checkpoint.pt")
    assert stored[0] == data.ids("train")  # all of them at once


def test_images_are_augmented_alike_with_and_without_workers(tmp_path):
    data = draw_scenes(tmp_path / "data", 4, size=32)
    nets = []
    for workers in (0, 2):
        torch.manual_seed(0)
        net = CAMNet(Mean(), len(CLASSES), head="linear")
        samples = Inputs(data, net.backbone).samples(data.ids("train"), 24, tags=True)
        recipe = Recipe(1, 2, 0.1, workers=workers)
        fit(net, samples, _cam_loss, recipe, tmp_path / f"{workers}.pt")
        nets.append(state_of(net))
    assert same_state(*nets)


@given(
    length=st.integers(1, 50),
    seed=st.integers(0, 1000),
    epochs=st.sets(st.integers(0, 99), max_size=5),
)
def test_an_epoch_visits_each_image_once_in_an_order_of_its_own(length, seed, epochs):
    orders = [epoch_order(length, seed, epoch) for epoch in epochs]
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert orders == [epoch_order(length, seed, epoch) for epoch in epochs]
    if length > 20:
        assert len(set(map(tuple, orders))) == len(orders)


def test_the_loss_falls_and_lines_are_printed_as_often_as_asked(tmp_path, capsys):
    net = Net(norm=False)
    recipe = Recipe(epochs=7, batch_size=5, lr=0.02)
    history = fit(net, Still(10), loss, recipe, tmp_path / "checkpoint.pt", report_every=3)
    assert history[-1] < history[0]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"epoch   {k} of 7" for k in (3, 6, 7)]
    assert lines[-1].endswith(f"loss {history[-1]:.3f}")


@pytest.mark.parametrize("able", [False, True])
def test_mixed_precision_keeps_weights_in_float32_and_losses_near(tmp_path, monkeypatch, able):
    monkeypatch.setattr("affinity_lib.training.precision.has_bfloat16", lambda device: able)
    _, exact = trained(tmp_path / "exact", RECIPE)
    net, history = trained(tmp_path / "mixed", replace(RECIPE, mixed_precision=True))
    assert (history != exact) == able
    np.testing.assert_allclose(history[0], exact[0], atol=0.05)
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_losses_on_a_cpu_are_taken_of_what_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr("affinity_lib.training.precision.has_bfloat16", lambda device: True)
    data, kinds = draw_scenes(tmp_path / "data", 2, size=32), []
    net = CAMNet(build_backbone("small"), len(CLASSES), width=8)
    samples = Inputs(data, net.backbone).samples(data.ids("train"), crop=32, tags=True)

    def watched(model, batch):
        kinds.append(model(batch[0]).dtype)
        kinds.append(forward(model, batch[0]).dtype)
        return _cam_loss(model, batch)

    fit(net, samples, watched, Recipe(1, 2, 0.1, mixed_precision=True), tmp_path / "checkpoint.pt")
    assert kinds == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_and_the_last_good_epoch_stays(tmp_path, value):
    calls = []

    def exploding(model, batch):
        calls.append(1)
        return loss(model, batch) * (value if len(calls) == 6 else 1)

    with pytest.raises(InputError, match=rf"the loss is {value} in epoch 2: lower lr \(0.05\)"):
        fit(Net(), Noisy(), exploding, RECIPE, tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(kept["history"]) == 1
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_an_empty_list_of_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="no image to train on"):
        fit(Net(), Still(0), loss, RECIPE, tmp_path / "checkpoint.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04cut"])
def test_a_checkpoint_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.pt is not a checkpoint .*: remove it") as e:
        trained(tmp_path, RECIPE)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"accumulate": 0}, "accumulate must be >= 1, got 0"),
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"lr": float("nan")}, "lr must be > 0, got nan"),
        ({"optimizer": "lion"}, "optimizer must be adam or sgd, got 'lion'"),
        ({"lr_factors": (1, 10)}, "lr_factors must be four: .*, got"),
        ({"ema_decay": 1.0}, "ema_decay must be >= 0 and < 1, got 1"),
        ({"ema_decay": -0.1}, "ema_decay must be >= 0 and < 1, got -0.1"),
        ({"workers": -1}, "workers must be >= 0, got -1"),
        ({"lr_factors": (1, 1, -1, 1)}, "lr_factors must be >= 0, got"),
        ({"warmup": -1}, "warmup must be >= 0 and < 1, got -1"),
        ({"weight_decay": -3}, "weight_decay must be >= 0, got -3"),
        ({"momentum": -0.1}, "momentum must be >= 0, got -0.1"),
        ({"seed": 2**31}, "seed must be >= 0 and < 10.9, got 2147483648"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        replace(RECIPE, **change)


def _cam_loss(model, batch):
    seen, tags = batch
    return classification_loss(forward(model, seen), tags)
