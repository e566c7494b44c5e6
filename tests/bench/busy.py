"""``python tests/bench/busy.py``: what one busy process beside it costs training and inference.

Two threads that share each small operation wait for whichever the system has put aside; what is
shared in larger pieces waits less. Each row is measured in a process of its own, first on an idle
machine, then with a process beside it that does nothing but compute. Worth something only where
nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet, classification_loss
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc import VOCData
from affinity_lib.plots import markdown_table
from affinity_lib.training import loop
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.parallel import each_image

PASSIVE, ACTIVE = {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}
ROWS = {
    "training, 1 thread": ("train", 1, 1, {}),
    "training, 2 threads": ("train", 2, 1, {}),
    "training, 2 threads that sleep": ("train", 2, 1, PASSIVE),
    "training, 2 threads that spin": ("train", 2, 1, ACTIVE),
    "training, 2 processes": ("train", 2, 2, {}),
    "inference, 1 thread": ("in_a_loop", 1, 1, {}),
    "inference, 2 threads an image": ("in_a_loop", 2, 1, {}),
    "inference, 2 images at once": ("at_once", 2, 1, {}),
}
"""Name of a row -> what it does, torch's threads, processes, environment."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every row and print a table."""
    parser = argparse.ArgumentParser(prog="python tests/bench/busy.py", description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="training steps a measurement")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        what, threads, nproc, _ = ROWS[options.row]
        torch.set_num_threads(threads)
        print(json.dumps(globals()[what](VOCData(options.data), options.steps, nproc)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_toy(Path(folder) / "toy", train=80, val=0, size=112, seed=0)
        for name in ROWS:
            idle, start = measured(name, data, options.steps)
            with busy():
                beside, _ = measured(name, data, options.steps)
            lines.append([name, idle, beside, idle / beside, start])
            print(*lines[-1], file=sys.stderr, flush=True)
    header = ["", "a second, idle", "beside a busy process", "times slower", "seconds to start"]
    print(markdown_table(header, lines))


def measured(name: str, data: Path, steps: int) -> tuple[float, float]:
    """Steps or images a second of one row, and the seconds until the first."""
    command = [sys.executable, __file__, "--row", name, "--data", data, "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"} | ROWS[name][3]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@contextmanager
def busy() -> Iterator[None]:
    """While a process computes."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def train(data: VOCData, steps: int, nproc: int) -> tuple[float, float]:
    """Training steps a second of the small network at the size of the toy scenes."""
    stamps, start = [], time.perf_counter()

    class Stamps(loop.Progress):
        def update(self, count: int = 1) -> None:
            stamps.extend([time.perf_counter()] if count else [])

    loop.Progress = Stamps
    net, ids = network(data), data.ids("train")
    samples = Inputs(data, net.backbone).samples(ids, 112, tags=True, scale=(0.75, 1.35))
    recipe = loop.Recipe(-(-(steps + 10) * 8 // len(ids)), 8, 4e-4, mixed_precision=True)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "checkpoint.pt"
        loop.fit(net, samples, loss, recipe, where, report_every=10**9, nproc=nproc)
    return (len(stamps) - 10) / (stamps[-1] - stamps[9]), stamps[0] - start


def loss(model, batch) -> torch.Tensor:
    images, tags = batch
    return classification_loss(forward(model, images), tags)


def in_a_loop(data: VOCData, steps: int, nproc: int) -> tuple[float, float]:
    """Images a second, one after the other."""
    look, ids = looking(data, steps)
    start = time.perf_counter()
    for image_id in ids:
        look(image_id)
    return len(ids) / (time.perf_counter() - start), 0


def at_once(data: VOCData, steps: int, nproc: int) -> tuple[float, float]:
    """Images a second, as many at once as torch has threads."""
    look, ids = looking(data, steps)
    start = time.perf_counter()
    each_image(look, ids, "images")
    return len(ids) / (time.perf_counter() - start), 0


def looking(data: VOCData, steps: int):
    net = network(data).eval()
    inputs = Inputs(data, net.backbone)

    @torch.inference_mode()
    def look(image_id: str) -> torch.Tensor:
        return net(inputs.image(image_id)[None])

    ids = data.ids("train")
    for image_id in ids[:8]:
        look(image_id)
    return look, [ids[k % len(ids)] for k in range(2 * steps)]


def network(data: VOCData) -> CAMNet:
    torch.manual_seed(0)
    return CAMNet(build_backbone("small", 8), len(data.classes), width=128)


if __name__ == "__main__":
    main()
