"""The command line: ``python -m affinity_lib run toy`` and its relatives."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from affinity_lib.errors import InputError

if TYPE_CHECKING:
    from affinity_lib.running.plan import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the words after ``python -m affinity_lib`` ask for.

    Returns:
        0 if all is well; 1 if a notebook failed, the disk is full, ``verify`` or ``check`` found
        something, ``predict`` could not read a photograph or whoever reads the output, such as
        ``head``, has closed it; 2 for bad input; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        print("Stopped, as the output was closed.", file=sys.stderr)
        return 1
    except OSError as error:
        path = error.filename2 or error.filename  # of a file that is renamed, where it was to go
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{path}: " if path else ""
            remedy = "free some space and give the same command"
            print(f"error: {where}{error.strerror}; {remedy}", file=sys.stderr)
            return 1
        if path is None:
            raise
        print(f"error: {path}: {error.strerror}; give another path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        begins = getattr(options, "force", False)
        how = "Without --force the same command goes on" if begins else "The same command goes on"
        print(f"\nStopped. {how} from here.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from affinity_lib.running.execution import StageFailed
    from affinity_lib.running.plan import make_plan, notebooks_before
    from affinity_lib.running.settings import parse

    plan = make_plan(options.profile)
    given = parse(options.set)
    plan = plan.with_settings({name: one for name, (one, *more) in given.items() if not more})
    grid = {name: values for name, values in given.items() if len(values) > 1}
    if options.before is not None and options.notebooks:
        raise InputError("--before and --notebooks cannot be given together: leave out one")
    if options.before is not None:
        options.notebooks = notebooks_before(plan, options.before)
    try:
        if options.shard or options.until:
            return _part(options, plan, grid)
        return _whole(options, plan, grid)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _whole(options: argparse.Namespace, plan: Plan, grid: dict[str, list]) -> int:
    from affinity_lib.running import results, runner, sweep
    from affinity_lib.showing import report, sweeps, tables  # they draw: not needed by a part

    how = {"only": options.notebooks, "force": options.force}
    if grid:
        rows, folder = sweep.execute_grid(plan, grid, options.run_dir, **how)
        table = sweeps.write_sweep(rows, list(grid), folder)
        print(f"\n{table.read_text(encoding='utf-8')}\n{results.display_path(table)}")
        return 0
    run = runner.execute(plan, options.run_dir, **how)
    tables.write_tables(run)
    page = report.write_report(run)
    print(f"\n{results.summary(run)}\n")
    where = results.display_path(page)
    print(f"Next: make lab opens the lessons; the page of this run is {where}")
    return 0


def _part(options: argparse.Namespace, plan: Plan, grid: dict[str, list]) -> int:
    from affinity_lib.running import shards

    if len(options.notebooks) != 1 or grid:
        raise InputError("a part is of one notebook and one run: give --notebooks NN, and no grid")
    if options.shard and options.until or options.force:
        raise InputError("--shard, --until and --force cannot be given together")
    part = {"shard": options.shard} if options.shard else {"until": options.until}
    shards.execute_part(plan, options.run_dir, only=options.notebooks[0], **part)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from affinity_lib.running.manifest import find_run
    from affinity_lib.showing import predict
    from affinity_lib.training.precision import pick_device

    network = Path(options.run)
    if network.is_file() and network.suffix != ".safetensors":
        raise InputError(
            f"{network} is no network: give a run, such as toy, or the safetensors file of its "
            "network before the photographs"
        )
    if not network.is_file():
        network = find_run(options.run) / predict.NETWORK
    if not network.is_file():
        raise InputError(f"{network} is missing: let the run end with notebook 6 first")
    photographs = predict.find_photographs(options.images, options.out)
    predictor = predict.Predictor(network, pick_device(options.device), options.crf)
    faults = predict.predict_photographs(predictor, photographs, options.out)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    done = len(photographs) - len(faults)
    print(
        f"{done} of {len(photographs)} photographs: their masks and overlays are in {options.out}"
    )
    return 1 if faults else 0


def _report(options: argparse.Namespace) -> None:
    from affinity_lib.running import manifest
    from affinity_lib.showing import report, tables

    run = manifest.find_run(options.run)
    tables.write_tables(run)
    print(report.write_report(run))


def _verify(options: argparse.Namespace) -> int:
    from affinity_lib.running import manifest

    count, differences = manifest.verify(manifest.find_run(options.run))
    print(*differences, f"{count} files checked, {len(differences)} differences", sep="\n")
    return 1 if differences else 0


def _compare(options: argparse.Namespace) -> None:
    from affinity_lib.running import results
    from affinity_lib.running.manifest import find_run

    print(results.compare(find_run(options.first), find_run(options.second)))


def _tune(options: argparse.Namespace) -> None:
    from affinity_lib.running import results
    from affinity_lib.running.manifest import find_run
    from affinity_lib.running.tune import tune

    if options.images < 1:
        raise InputError(f"--images must be >= 1, got {options.images}")
    run = find_run(options.run)
    path = results.display_path(tune(run, options.images))
    print(f"\nThe best of each table is in {path}: python -m affinity_lib run ... --set {path}")


def _check(options: argparse.Namespace) -> int:
    from affinity_lib.data.faults import count_table, remarks
    from affinity_lib.data.voc import VOCData
    from affinity_lib.stages.prepare import find_faults

    classes, splits = ",".join(options.classes), (options.train_split, "val")
    data, faults, notes = None, [], []
    try:
        data = VOCData(options.root, classes)
    except InputError as error:
        faults.append(error)
        if classes:  # which may be all that is wrong with it
            with suppress(InputError):
                data = VOCData(options.root)
    if data is not None:
        found = list(find_faults(data, *splits))
        faults += found
        try:
            notes = [] if any(fault.stops for fault in found) else remarks(data, *splits)
        except InputError as error:  # no image has a tag of these classes
            faults.append(error)
        print(count_table(data, splits))
    for kind, sentences in (("note", notes), ("fault", faults)):
        for sentence in sentences:
            print(f"{kind}: {sentence}")
    print(f"{len(faults)} fault{'s' * (len(faults) != 1)}")
    return 1 if faults else 0


def _convert(options: argparse.Namespace) -> None:
    from affinity_lib.data.convert import convert

    table = None if options.csv == "folders" else options.csv
    convert(options.images, table, options.out, options.val_fraction)
    print(f"The data set in VOC layout is in {options.out}")


def _exercises(options: argparse.Namespace) -> None:
    from affinity_lib.data.paths import find_root
    from affinity_lib.teaching.generate import write_exercises

    folder = find_root() / "notebooks"
    for kept in write_exercises(folder):
        print(f"What was written there is kept in {kept.relative_to(folder.parent)}")
    print(f"The exercises are in {(folder / 'exercises').relative_to(folder.parent)}, all open")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m affinity_lib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    run = command("run", _run, "execute the notebooks that are not up to date, with a profile")
    run.add_argument("profile", help="a file in notebooks/profiles, such as toy")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="a setting in place of the profile's, or a YAML file of some; with several values, a "
        "grid of runs",
    )
    run.add_argument("--run-dir", default="", help="where to run, if not in runs/PROFILE")
    run.add_argument(
        "--notebooks", nargs="+", default=[], metavar="NN", help="only these, such as 03 04"
    )
    run.add_argument(
        "--before", metavar="N", help="only those that come before notebook N: all that it reads"
    )
    run.add_argument(
        "--until",
        choices=["train"],
        help="only the training of the one notebook given, for shards to go on from",
    )
    run.add_argument(
        "--shard",
        metavar="K/N",
        help="only share K, from 0, of N of the images of the one notebook given",
    )
    run.add_argument("--force", action="store_true", help="run again even if nothing has changed")

    new = command("predict", _predict, "masks of new photographs from a run's trained network")
    new.add_argument("run", help="a folder, a name in runs/, or the file of a network")
    new.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a photograph, or a folder of some"
    )
    new.add_argument("--out", type=Path, required=True, help="folder of the masks and overlays")
    new.add_argument("--crf", action="store_true", help="refine masks with the run's dCRF")
    new.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")

    for name, function, text in (
        ("report", _report, "write a run's tables and its index.html again"),
        ("verify", _verify, "hash everything that a run recorded again"),
    ):
        command(name, function, text).add_argument("run", help="a folder, or a name in runs/")

    pair = command("compare", _compare, "settings and metrics of two runs side by side")
    pair.add_argument("first", help="a folder, or a name in runs/")
    pair.add_argument("second", help="another one")

    tune = command("tune", _tune, "try settings on training images that have masks")
    tune.add_argument("run", help="a folder, or a name in runs/")
    tune.add_argument("--images", type=int, default=48, metavar="N", help="how many (48)")

    look = command("check", _check, "read a data set in VOC layout and list all that is wrong")
    look.add_argument("root", help="the folder that holds JPEGImages")
    look.add_argument(
        "--classes", nargs="+", default=[], metavar="NAME", help="those to use, if not all"
    )
    look.add_argument("--train-split", default="train", metavar="LIST", help="if not train")

    command(
        "exercises",
        _exercises,
        "make the exercises of the solutions, without answers; yours are kept beside them",
    )

    own = command("convert", _convert, "bring your own images and tags into VOC layout")
    own.add_argument("images", type=Path, help="folder of the images")
    own.add_argument(
        "csv",
        help="table with columns file and tags, or a 0/1 column a class; or the word folders: the "
        "tag of an image is then the name of its folder",
    )
    own.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="part of the images for the val split, from 0 to below 1 (0.1)",
    )
    own.add_argument("out", type=Path, help="a folder to be made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
