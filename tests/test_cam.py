"""Class activation maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenes import CLASSES, Mean, stopped_at_the_third, write_data

from affinity_lib import cam
from affinity_lib.affinity import affinities, half_plane_offsets, pair_labels
from affinity_lib.backbones import build_backbone
from affinity_lib.cam import (
    CAMNet,
    background,
    classification_loss,
    multi_scale_activation,
    normalize,
    on_grid,
    resize,
    to_labels,
    with_background,
)
from affinity_lib.data.files import load_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.random_walk import random_walk
from affinity_lib.stages import cams as stage
from affinity_lib.stages.cams import infer_cams
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.precision import has_bfloat16

EVIDENCE = arrays(np.float32, (4, 3, 5), elements=st.floats(-50, 50, width=32))
CAMS = arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32))
EXPONENT = st.floats(1, 64)


@pytest.fixture
def net() -> CAMNet:
    torch.manual_seed(0)
    return CAMNet(build_backbone("small"), num_classes=3, width=16).eval()


@pytest.mark.parametrize("head", ["conv", "linear"])
def test_the_logits_are_the_means_of_the_activation_maps(head):
    net = CAMNet(build_backbone("small"), num_classes=3, head=head, width=16).eval()
    images = torch.randn(2, 3, 40, 56)
    levels = net.backbone.levels(images)
    torch.testing.assert_close(net.activation(levels).mean(dim=(2, 3)), net(images))
    torch.testing.assert_close(net.from_levels(levels), net(images))


def test_the_head_has_the_papers_convolution_of_512_channels():
    with torch.device("meta"):
        net = CAMNet(build_backbone("resnet38"), num_classes=20)
    assert net.neck[0].weight.shape == (512, 4096, 3, 3)
    assert net.classifier.weight.shape == (20, 512)


def test_the_root_of_the_evidence_squared_is_its_positive_part():
    net = CAMNet(build_backbone("small"), num_classes=3, width=16, sqrt=True).eval()
    levels = net.backbone.levels(torch.randn(1, 3, 40, 56))
    torch.testing.assert_close(net.evidence(levels) ** 2, net.activation(levels).relu())


@given(evidence=EVIDENCE, eps=st.floats(1e-5, 1))
def test_with_eps_no_cam_reaches_its_maximum_and_all_keep_their_shape(evidence, eps):
    evidence = torch.from_numpy(evidence)
    cams, pulled = (normalize(evidence, [1, 3], e) for e in (0, eps))
    top = evidence[[0, 2]].relu().amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(pulled * (top + eps), cams * top, atol=1e-4, rtol=1e-4)
    assert (pulled < 1).all()


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (5, 40), (1, 1)])
def test_pooled_maps_are_the_means_of_cells_of_an_image_padded_with_zeros(size):
    cams = torch.rand(2, *size)
    height, width = (-(-side // 8) * 8 for side in size)
    padded = np.zeros((3, height, width))
    padded[:, : size[0], : size[1]] = with_background(cams, 16)
    expected = padded.reshape(3, height // 8, 8, width // 8, 8).mean(axis=(2, 4))
    pooled = on_grid(cams, 16, size, 8, pooling=True)
    torch.testing.assert_close(pooled, torch.from_numpy(expected).float())


@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_without_pooling_the_maps_are_interpolated_on_the_same_grid(size):
    cams = torch.rand(2, 5, 7)
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    torch.testing.assert_close(on_grid(cams, 16, size, 8), resize(with_background(cams, 16), grid))


def test_permuted_classes_permute_the_activation_maps_and_the_logits(net):
    images, order = torch.randn(1, 3, 32, 32), [2, 0, 1]
    maps, logits = net.activation(net.backbone.levels(images)), net(images)
    with torch.no_grad():
        net.classifier.weight.copy_(net.classifier.weight[order].clone())
    torch.testing.assert_close(net.activation(net.backbone.levels(images)), maps[:, order])
    torch.testing.assert_close(net(images), logits[:, order])


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
@pytest.mark.parametrize("size", [(40, 48), (37, 51)])
def test_with_flip_the_mirror_image_has_the_mirrored_maps(net, scales, size):
    images = torch.randn(2, 3, *size)
    maps = multi_scale_activation(net, images, scales, flip=True)
    mirrored = multi_scale_activation(net, images.flip(-1), scales, flip=True)
    assert maps.max() > 0
    torch.testing.assert_close(mirrored, maps.flip(-1), atol=1e-5, rtol=1e-4)


def test_scales_add_up_on_the_grid_of_scale_one(net):
    image = torch.randn(1, 3, 37, 51)
    apart = [multi_scale_activation(net, image, [s], flip=False) for s in (0.5, 1, 2)]
    together = multi_scale_activation(net, image, (0.5, 1, 2), flip=False)
    assert together.shape == (1, 3, 5, 7)
    torch.testing.assert_close(together, sum(apart))


def test_each_view_has_the_images_sides_times_its_scale(net, monkeypatch):
    seen, levels = [], net.backbone.levels

    def noted(views):
        seen.append((len(views), *views.shape[-2:]))
        return levels(views)

    monkeypatch.setattr(net.backbone, "levels", noted)
    multi_scale_activation(net, torch.randn(1, 3, 40, 56), (0.5, 1.0, 1.6), flip=True)
    assert seen == [(2, 20, 28), (2, 40, 56), (2, 64, 90)]


def test_one_scale_without_flip_is_the_positive_class_evidence(net):
    image = torch.randn(1, 3, 40, 48)
    evidence = net.activation(net.backbone.levels(image)).relu()
    torch.testing.assert_close(multi_scale_activation(net, image, flip=False), evidence)


def test_images_of_a_batch_do_not_see_each_other(net):
    images = torch.randn(3, 3, 32, 40)
    apart = [multi_scale_activation(net, image[None], (0.5, 1)) for image in images]
    torch.testing.assert_close(multi_scale_activation(net, images, (0.5, 1)), torch.cat(apart))


@given(evidence=EVIDENCE, tags=st.sets(st.integers(1, 4), min_size=1))
def test_cams_lie_between_0_and_1_and_reach_1_where_there_is_evidence(evidence, tags):
    evidence, tags = torch.from_numpy(evidence), sorted(tags)
    cams = normalize(evidence, tags)
    assert cams.shape == (len(tags), 3, 5)
    assert 0 <= cams.min() <= cams.max() <= 1
    for tag, one in zip(tags, cams, strict=True):
        if evidence[tag - 1].max() > 1e-5:
            assert one.max() == 1
            assert one.argmax() == evidence[tag - 1].argmax()
        assert not one[evidence[tag - 1] <= 0].any()


@given(evidence=EVIDENCE, factor=st.floats(0.5, 100))
def test_cams_do_not_depend_on_the_scale_of_the_evidence(evidence, factor):
    evidence = torch.from_numpy(evidence).round()
    torch.testing.assert_close(normalize(evidence * factor, [1, 3]), normalize(evidence, [1, 3]))


@given(cams=CAMS, alphas=st.tuples(EXPONENT, EXPONENT))
def test_the_background_falls_with_alpha_and_stays_between_0_and_1(cams, alphas):
    small, large = (background(torch.from_numpy(cams), alpha) for alpha in sorted(alphas))
    assert (large <= small).all()
    assert large.min() >= 0 and small.max() <= 1


@given(cams=CAMS)
def test_alpha_1_is_what_the_strongest_class_leaves(cams):
    expected = 1 - torch.from_numpy(cams).amax(0)
    torch.testing.assert_close(background(torch.from_numpy(cams), 1), expected)


@pytest.mark.parametrize("alpha", [1, 16, 64])
def test_certain_pixels_are_certain_at_every_alpha(alpha):
    cams = torch.tensor([[[1.0, 0.0]], [[0.3, 0.0]]])
    assert background(cams, alpha).tolist() == [[0, 1]]


@given(cams=CAMS, alpha=EXPONENT, tags=st.permutations([1, 2, 7, 254]))
def test_labels_are_tags_or_background_and_follow_a_permutation_of_the_classes(cams, alpha, tags):
    scores = with_background(torch.from_numpy(cams), alpha)
    labels = to_labels(scores, tags[:2])
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, *tags[:2]}
    renamed = to_labels(scores, tags[2:])
    for old, new in zip([0, *tags[:2]], [0, *tags[2:]], strict=True):
        assert torch.equal(labels == old, renamed == new)


def test_resizing_keeps_constants_and_gives_the_size_asked_for():
    resized = resize(torch.full((2, 3, 4), 0.25), (7, 5))
    assert resized.shape == (2, 7, 5)
    torch.testing.assert_close(resized, torch.full((2, 7, 5), 0.25))


def test_right_tags_cost_less_than_wrong_ones():
    logits, tags = torch.tensor([[4.0, -4.0, -4.0]]), torch.tensor([[1.0, 0, 0]])
    assert classification_loss(logits, tags) < 0.1 < classification_loss(logits, 1 - tags)


def test_every_image_gets_the_cams_of_its_tags(net, data, tmp_path):
    inputs = Inputs(data, net.backbone)
    ids = data.ids("train")
    infer_cams(net, inputs, ids, tmp_path, scales=(0.5, 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{i}.npz" for i in ids)
    for image_id in ids:
        tags, cams = load_scores(tmp_path / f"{image_id}.npz")
        assert tuple(tags) == data.tags(image_id)
        assert cams.shape == (len(tags), 5, 5)
        assert cams.min() >= 0 and cams.max() <= 1


@pytest.mark.parametrize("pixels", [1, 3 * 40 * 40, 2**20])
def test_cams_do_not_depend_on_the_images_beside_them(net, tmp_path, monkeypatch, pixels):
    random = np.random.default_rng(0)
    sizes = {"a": (40, 40), "b": (37, 51), "c": (40, 40), "d": (37, 51), "e": (40, 40)}
    images = {name: random.integers(0, 256, (*s, 3), np.uint8) for name, s in sizes.items()}
    data = write_data(tmp_path / "data", images, dict.fromkeys(images, ("ball", "cross")))
    inputs = Inputs(data, net.backbone)
    monkeypatch.setattr(cam, "_PIXELS", pixels)
    monkeypatch.setattr(
        stage, "save_scores", lambda path, tags, cams: found.update({path.stem: cams})
    )
    found: dict[str, torch.Tensor] = {}
    infer_cams(net, inputs, list(images), tmp_path, scales=(0.5, 1, 1.5))
    for name in images:
        alone = multi_scale_activation(net, inputs.image(name)[None], (0.5, 1, 1.5))[0]
        torch.testing.assert_close(found[name], normalize(alone, [1, 3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("able", [False, True])
def test_cams_in_mixed_precision_are_nearly_those_in_float32(
    net, data, tmp_path, monkeypatch, able
):
    if able and not has_bfloat16("cpu"):
        pytest.skip("this CPU does not compute in bfloat16")
    monkeypatch.setattr("affinity_lib.training.inference.has_bfloat16", lambda device: able)
    inputs, ids = Inputs(data, net.backbone), data.ids("train")
    for folder, mixed in (("exact", False), ("mixed", True)):
        infer_cams(net, inputs, ids, tmp_path / folder, (0.5, 1), mixed_precision=mixed)
    for image_id in ids:
        tags, exact = load_scores(tmp_path / "exact" / f"{image_id}.npz")
        found_tags, found = load_scores(tmp_path / "mixed" / f"{image_id}.npz")
        assert list(tags) == list(found_tags)
        difference = np.abs(found.astype(np.float32) - exact)
        assert difference.mean() < 0.02
        assert (difference.max() > 0) == able


def test_what_is_there_is_not_made_again(net, data, tmp_path):
    inputs, (first, second, *_) = Inputs(data, net.backbone), data.ids("train")
    infer_cams(net, inputs, [first], tmp_path)
    (tmp_path / f"{first}.npz").write_bytes(b"kept")
    infer_cams(net, inputs, [first, second], tmp_path)
    assert (tmp_path / f"{first}.npz").read_bytes() == b"kept"
    assert (tmp_path / f"{second}.npz").exists()


def test_stored_features_give_the_cams_that_the_image_gives(net, data, tmp_path):
    image_id = data.ids("train")[0]
    for kind in ("all", "head"):
        inputs = Inputs(data, net.backbone, kind, folder=tmp_path / "levels")
        infer_cams(net, inputs, [image_id], tmp_path / kind, flip=False)
    one, two = (load_scores(tmp_path / k / f"{image_id}.npz")[1] for k in ("all", "head"))
    np.testing.assert_allclose(one, two, atol=5e-3)  # stored in half precision


def test_an_empty_list_of_images_makes_nothing(net, data, tmp_path):
    infer_cams(net, Inputs(data, net.backbone), [], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (17, 4)])
def test_an_image_smaller_than_the_neighbourhood_goes_all_the_way(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = write_data(tmp_path / "data", {"a": pixels}, {"a": ("ball", "box")})
    net = CAMNet(Mean(), num_classes=3, width=4).eval()
    infer_cams(net, Inputs(data, net.backbone), ["a"], tmp_path, scales=(0.5, 1))
    tags, cams = load_scores(tmp_path / "a.npz")
    offsets = half_plane_offsets(5)
    maps = with_background(torch.from_numpy(cams), 16)
    W = affinities(torch.rand(1, 6, *maps.shape[1:]), offsets)
    labels = to_labels(resize(random_walk(maps, W[0], offsets), size), tags)
    assert labels.shape == size
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    assert not pair_labels(labels[:1, :1][None], offsets).negative.any()


@pytest.mark.parametrize("alpha", [0.99, 0, -3, float("nan")])
def test_alpha_below_1_is_refused(alpha):
    with pytest.raises(InputError, match=rf"alpha must be >= 1 \(Eq. 2\), got {alpha:g}"):
        background(torch.zeros(1, 2, 2), alpha)


def test_images_without_a_tag_get_no_cam(net, tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    write_data(tmp_path / "data", {"a": pixels, "b": pixels}, {"a": ("ball",), "b": ("box",)})
    data = VOCData(tmp_path / "data", classes=["box"])
    infer_cams(net, Inputs(data, net.backbone), ["a", "b"], tmp_path / "cams")
    assert [path.name for path in (tmp_path / "cams").iterdir()] == ["b.npz"]


def test_no_tag_no_cam():
    with pytest.raises(InputError, match="without a tag has no CAM"):
        normalize(torch.zeros(2, 3, 3), [])
    with pytest.raises(InputError, match="at least one tag"):
        background(torch.zeros(0, 3, 3), 16)


@pytest.mark.parametrize("tags", [[0], [1, 4], [-1]])
def test_a_tag_that_the_network_does_not_know_is_refused(tags):
    with pytest.raises(InputError, match=r"tags must be 1\.\.3, .* trained on these classes"):
        normalize(torch.zeros(3, 2, 2), tags)


def test_an_unknown_head_is_refused():
    with pytest.raises(InputError, match="cam_head must be conv or linear, got 'fc'"):
        CAMNet(Mean(), len(CLASSES), head="fc")


def test_a_stopped_inference_leaves_whole_files_alone(net, data, tmp_path: Path, monkeypatch):
    inputs, ids = Inputs(data, net.backbone), data.ids("train")
    seen = stopped_at_the_third(inputs, monkeypatch)
    monkeypatch.setattr(cam, "_PIXELS", 1)  # a batch is one image
    with pytest.raises(KeyboardInterrupt):
        infer_cams(net, inputs, ids, tmp_path)
    assert len([load_scores(path) for path in tmp_path.iterdir()]) == len(seen) - 1
    infer_cams(net, inputs, ids, tmp_path)
    twice = [image_id for image_id in ids if seen.count(image_id) == 2]
    assert twice == [seen[2]] and len(seen) == len(ids) + 1


@pytest.mark.parametrize("scales", [(), (0,), (1, -0.5)])
def test_an_image_is_looked_at_in_some_size(scales):
    net = CAMNet(build_backbone("small"), 2).eval()
    with pytest.raises(InputError, match="scales must be one or more numbers above 0"):
        multi_scale_activation(net, torch.zeros(1, 3, 32, 32), scales)
