"""What a run costs is counted from its profile, and the counts follow from the networks."""

from __future__ import annotations

import estimate as module
import pytest
import torch
from counting import RESERVE, Training, _kept_values, count_forward, count_training
from estimate import estimate, main, report
from torch import nn

from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.base import freeze
from affinity_lib.cam import CAMNet, classification_loss
from affinity_lib.data.files import save_json
from affinity_lib.errors import InputError
from affinity_lib.running.plan import Plan, make_plan

ONE = {
    "crf_seconds": 1.0,
    "walk_seconds": 0.1,
    "map_bytes": 100.0,
    "soft_bytes": 1000.0,
    "png_bytes": 10.0,
}

PROFILES = ("voc12", "voc12-vgg16", "voc12-released")
TRAIN, VAL = 10_582, 1_449


@pytest.fixture(scope="module")
def tiny() -> Plan:
    """The recipe with the small backbone, so that it is counted in no time."""
    changes = {"backbone": "small", "weights": "", "frozen_stages": -1}
    return make_plan("voc12").with_settings(changes)


def costs_of(plan: Plan) -> dict[str, module.Cost]:
    return {cost.stage[:2]: cost for cost in estimate(plan, ONE)}


def conv(*, learned: bool = True) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False, device="meta"),
        nn.ReLU(),
        nn.Conv2d(4, 5, 1, bias=False, device="meta"),
    )
    net[0].requires_grad_(learned)
    return net


def test_operations_are_those_of_the_formula_and_grow_with_the_area():
    assert count_forward(conv(), 5, 7) == 2 * 35 * (3 * 9 * 4 + 4 * 5)
    assert count_forward(conv(), 10, 14) == 4 * count_forward(conv(), 5, 7)


def test_learning_costs_two_more_passes_less_what_nobody_needs():
    forward, first, last = 2 * 100 * (108 + 20), 2 * 100 * 108, 2 * 100 * 20
    total = count_training(conv(), torch.sum, crop=10).flops
    assert total == forward + first + 2 * last  # nobody needs the gradient of the image
    frozen = count_training(conv(learned=False), torch.sum, crop=10)
    assert frozen.flops == forward + last
    assert (frozen.weights, frozen.learned) == (128, 20)


def test_kept_values_are_the_ones_that_backward_needs():
    image, middle = 2 * 3 * 100, 2 * 4 * 100  # bytes in half precision
    assert count_training(conv(), torch.sum, crop=10).kept == image + middle
    assert count_training(conv(learned=False), torch.sum, crop=10).kept == middle


def test_kept_values_are_those_of_a_real_step_in_mixed_precision():
    def build() -> tuple[nn.Module, torch.Tensor]:
        net = CAMNet(freeze(build_backbone("small"), 1), num_classes=20, width=64)
        return net, torch.zeros(1, 20)

    with torch.device("meta"):
        net, tags = build()
        counted = count_training(net, lambda logits: classification_loss(logits, tags), crop=128)
    net, tags = build()
    with _kept_values(net) as kept, torch.autocast("cpu", torch.bfloat16):
        classification_loss(net(torch.rand(1, 3, 128, 128)).float(), tags)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    copies = 2 * sum(p.numel() for p in net.parameters() if p.ndim > 1 and p.requires_grad)
    assert counted.kept == pytest.approx(real - copies, rel=0.05)


def test_memory_grows_with_the_batch_alone_and_halves_what_is_kept():
    count = Training(flops=0, kept=1000, weights=10, learned=5)
    one, two = (count.memory(batch, adam=True, mixed_precision=True) for batch in (1, 2))
    assert two - one == 1000
    assert one == RESERVE + 40 + 60 + 20 + 1000
    full = [count.memory(batch, adam=False, mixed_precision=False) for batch in (1, 2)]
    assert full[1] - full[0] == 2000
    assert full[0] == RESERVE + 40 + 40 + 2000


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_fit_a_gpu_of_12_gib(profile: str):
    costs = estimate(make_plan(profile), ONE)
    assert 0 < max(cost.memory for cost in costs) < 11 * 2**30


def test_epochs_scales_and_the_bound_multiply_what_they_should(tiny: Plan):
    base = costs_of(tiny)
    longer = costs_of(tiny.with_settings({"cam_epochs": 30, "affinity_epochs": 16}))
    assert longer["03"].flops == 2 * base["03"].flops
    assert base["01"].flops < longer["01"].flops < 2 * base["01"].flops
    alone = costs_of(tiny.with_settings({"supervised": False}))
    assert base["06"].flops == 2 * alone["06"].flops
    assert base["06"].disk == 2 * alone["06"].disk
    never, once, mirrored = (
        costs_of(tiny.with_settings({"cam_scales": scales, "cam_flip": flip}))["01"].flops
        for scales, flip in (([], False), ([1.0], False), ([1.0], True))
    )
    assert mirrored - never == pytest.approx(2 * (once - never))


def test_what_is_measured_on_one_image_counts_for_all(tiny: Plan):
    costs = costs_of(tiny)
    assert costs["02"].seconds == costs["05"].seconds == 2 * TRAIN
    assert costs["04"].seconds == pytest.approx(0.1 * TRAIN)
    assert costs["02"].disk == 10 * TRAIN
    assert costs["04"].disk == 3 * 100 * TRAIN


def test_the_released_labels_keep_the_scores_of_both_dcrfs(tiny: Plan):
    released = costs_of(tiny.with_settings({"preset": "released"}))
    assert released["02"].disk == (10 + 1000) * TRAIN


def test_the_table_adds_up_and_hours_follow_the_speed(tiny: Plan):
    costs = estimate(tiny, ONE)
    slow, fast = (report("tiny", costs, tflops).splitlines() for tflops in (0.01, 0.02))
    assert [row.count("|") for row in slow[: len(costs) + 3]] == [7] * (len(costs) + 3)
    cells = [[row.split("|")[3] for row in rows[2 : len(costs) + 3]] for rows in (slow, fast)]
    numbers = [[float(cell) for cell in column] for column in cells]
    assert numbers[0][-1] == pytest.approx(sum(numbers[0][:-1]), abs=0.5)
    assert numbers[0][-1] == pytest.approx(2 * numbers[1][-1], abs=0.2)


def step_of(plan: Plan, network: str) -> dict:
    """A training step of a plan as ``make gpu`` leaves it."""
    p = plan.values
    step = {"gpu": "A100", "network": network, "backbone": p["backbone"]}
    step |= {"crop": p[f"{network}_crop"], "batch": p[f"{network}_batch"]}
    step |= {"mixed_precision": p["mixed_precision"], "images_per_second": 7.0}
    return step | {"tflops": 40.0, "memory": 2.0**33}


def test_a_step_that_was_measured_counts_for_its_own_stages_alone(tiny: Plan):
    base, step = costs_of(tiny), step_of(tiny, "affinity")
    costs = {cost.stage[:2]: cost for cost in estimate(tiny, ONE, [step])}
    assert (costs["03"].memory, costs["03"].tflops, costs["04"].tflops) == (2**33, 40, 40)
    assert costs["01"] == base["01"] and costs["03"].flops == base["03"].flops
    for other in ({"batch": 99}, {"backbone": "vgg16"}, {"mixed_precision": False}):
        assert estimate(tiny, ONE, [step | other]) == list(base.values())


def test_the_table_says_whether_the_speed_was_measured_or_assumed(tiny: Plan):
    steps = [step_of(tiny, network) for network in ("cam", "affinity", "segmentation")]
    none, some, every = (
        " ".join(report("tiny", estimate(tiny, ONE, part), 10, "A100").split())
        for part in ([], steps[:1], steps)
    )
    assert "at 10 TFLOP/s, which is assumed" in none and "A100" not in none
    assert "measured by `make gpu`. Of 03_affinitynet, 04_random_walk, 06_seg" in some
    assert "steps on A100, measured by `make gpu`." in every and "assumed" not in every
    steps = [step | {"tflops": 0.04} for step in steps]
    slow, fast = (report("", estimate(tiny, ONE, part), 0.01).split("\n") for part in ([], steps))
    hours = [float(lines[9].split("|")[3]) for lines in (slow, fast)]
    assert hours[0] == pytest.approx(4 * hours[1], rel=0.05)


def test_what_make_gpu_has_left_is_taken_and_nothing_where_it_did_not_run(tmp_path, capsys):
    assert module.measured_steps(tmp_path / "gpu.json") == []
    save_json(tmp_path / "gpu.json", {"training": [{"tflops": 40.0}]})
    assert module.measured_steps(tmp_path / "gpu.json") == [{"tflops": 40.0}]


def test_one_image_is_really_measured():
    measured = module.measure()
    assert measured.keys() == ONE.keys()
    assert all(value > 0 for value in measured.values())
    assert measured["map_bytes"] >= 2 * 47 * 63


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no profile 'nowhere'"),
        (["voc12", "--tflops", "0"], "--tflops must be > 0, got 0"),
    ],
)
def test_bad_input_is_told_in_one_sentence(capsys, words, message):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_stored_features_are_not_estimated(tiny: Plan):
    with pytest.raises(InputError, match="the estimate is for cam_finetune all, got head"):
        estimate(tiny.with_settings({"cam_finetune": "head"}), ONE)
