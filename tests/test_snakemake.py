"""The Snakefile, executed for real: two jobs at a time, one of them killed on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import TINY

from affinity_lib.data.paths import find_root
from affinity_lib.running.manifest import artifacts, load_manifest, save_manifest, verify

ROOT = find_root()


def snakemake(folder: Path, run: Path, overrides: str) -> subprocess.Popen:
    settings = {"run_dir": run, "args": overrides, "shards": 2, "train_threads": 1}
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "-s", ROOT / "notebooks" / "Snakefile"]
        + ["--cores", "2", "--directory", folder, "--config"]
        + [f"{name}={value}" for name, value in settings.items()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(words: str) -> list[int]:
    """Those whose command line has these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().decode().replace("\0", " "):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the job to kill in /proc")
def test_snakemake_ends_with_the_files_of_a_plain_run_though_a_job_was_killed(tiny_run, tmp_path):
    plain, plan = tiny_run
    values = TINY | {"data_root": plan.values["data_root"]}
    overrides = " ".join(f"--set {name}={value}" for name, value in values.items())
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    manifest = load_manifest(run)
    for stem in ("01_class_activation_maps", "04_random_walk"):  # the others are up to date
        shutil.rmtree(run / stem)
        del manifest["stages"][stem]
    save_manifest(run, manifest)
    first = snakemake(tmp_path, run, overrides)
    job = f"--run-dir {run} {overrides} --notebooks 01 --shard 1/2"
    working = run / "notebooks" / "01_class_activation_maps.1of2.running.ipynb"
    while not working.exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    for victim in processes_of(job):
        os.kill(victim, signal.SIGKILL)
    said = first.communicate()[0]
    assert first.returncode != 0 and "shard=1" in said, said
    assert load_manifest(run)["stages"]["01_class_activation_maps"]["state"] == "running"

    second = snakemake(tmp_path, run, overrides)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert "01_class_activation_maps, training" not in said  # that job was done
    for stem in plan.notebooks:
        assert artifacts(run, stem) == artifacts(plain, stem)
    stages = load_manifest(run)["stages"]
    assert sorted(stages["01_class_activation_maps"]["parts"]) == ["0of2", "1of2", "train"]
    assert sorted(stages["04_random_walk"]["parts"]) == ["0of2", "1of2"]
    assert "parts" not in stages["05_segmentation_labels"]
    assert verify(run)[1] == [] and (run / "index.html").is_file()


@pytest.mark.parametrize(
    ("profile", "arguments", "expected"),
    [
        ("toy", "", {}),
        ("voc12", "", {"01": 1, "03": 1, "04": 1, "06": 1}),
        ("voc12", "--set nproc=2", {"01": 2, "03": 2, "04": 1, "06": 2}),
        ("voc12", "--set device=cpu", {}),
        ("toy", "--set device=cuda:0", {"01": 1, "03": 1, "04": 1, "06": 1}),
    ],
)
def test_jobs_that_compute_on_a_gpu_ask_for_it(tmp_path, profile, arguments, expected):
    words = ["--dry-run", "--cores", "2", "--directory", tmp_path, "--config"]
    words += [f"profile={profile}", f"args={arguments}", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", ROOT / "notebooks" / "Snakefile", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    jobs = re.findall(r"number=(\d\d)[^\n]*\n(?:.*\n)*?.*gpu=(\d+)", done.stdout + done.stderr)
    assert len(jobs) > 15
    most = {number: max(int(n) for job, n in jobs if job == number) for number, _ in jobs}
    assert {number: count for number, count in most.items() if count} == expected
