"""The paper's tables for a run, as markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affinity_lib.data.files import save_text
from affinity_lib.data.literature import printed
from affinity_lib.data.voc import VOC_CLASSES
from affinity_lib.evaluation import PAPER_NETWORKS, PAPER_TABLE1
from affinity_lib.plots import markdown_table
from affinity_lib.running.manifest import load_manifest
from affinity_lib.running.results import load_results

RELEASED = {
    "resnet38": {"cam": 47.7, "rw": 61.0},
    "vgg16": {"cam": 48.9, "rw": 59.6},
}
"""Train mIoU that the authors print beside their released code: backbone -> row of Table 1."""


@dataclass(frozen=True)
class Table:
    """A table of mIoU or IoU in percent; a cell is a name, a number or None.

    >>> table = Table("t", "A table", ["row", "IoU"], [["cat", 51.04], ["dog", None]], ["A note."])
    >>> print(table.markdown())
    ### A table
    <BLANKLINE>
    | row | IoU |
    |---|---|
    | cat | 51.0 |
    | dog |  |
    <BLANKLINE>
    A note.
    >>> print(table.csv())
    row,IoU
    cat,51.04
    dog,
    <BLANKLINE>
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table with its title and notes; numbers have one decimal."""
        table = markdown_table(self.header, self.rows)
        return "\n\n".join([f"### {self.title}", table, *self.notes])

    def csv(self) -> str:
        """The table alone; numbers have two decimals."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        for row in self.rows:
            writer.writerow([f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row])
        return text.getvalue()


def write_tables(run: Path) -> list[Path]:
    """Write a run's tables into its folder ``tables``, each as ``.md`` and ``.csv``.

    Args:
        run: folder of a run with ``results.json`` and ``manifest.json``.

    Returns:
        The files; none for what the run has not come to yet.

    Raises:
        InputError: the run has no results.
    """
    results, settings = load_results(run), load_manifest(run)["settings"]
    written = []
    for table in paper_tables(results, settings):
        for suffix, text in ((".md", table.markdown() + "\n"), (".csv", table.csv())):
            path = run / "tables" / f"{table.name}{suffix}"
            save_text(path, text)
            written.append(path)
    return written


def paper_tables(results: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[Table]:
    """Tables 1, 2 and 4 of the paper, this run's numbers beside the paper's.

    Table 4 has the rows of the paper's own networks, and the fully supervised bound of this run's.

    Args:
        results: a run's ``results.json``.
        parameters: of the notebook that trained and tested the segmentation network.
    """
    found = [_table1(results)] if results["table1"] else []
    if "val" in results["segmentation"]:
        backbone = parameters.get("backbone") or results["settings"].get("backbone", "unknown")
        network = PAPER_NETWORKS.get(backbone, f"this run's network ({backbone})")
        found += [_table2(results, network, _testing(parameters)), _table4(results, network)]
    return found


def _table1(results: Mapping[str, Any]) -> Table:
    released = RELEASED.get(results["settings"].get("backbone"), {})
    rows = [
        [name, results["table1"].get(key), paper, released.get(key)]
        for key, (name, paper) in PAPER_TABLE1.items()
    ]
    said = _statements(results, "05_segmentation_labels").get("rw_crf")
    notes = [f"Last row: {said}."] if said else []
    header = ["train mIoU", "this run", "paper", "released code"]
    return Table("table1", "Table 1: labels", header, rows, [*notes, *_about(results)])


def _table2(results: Mapping[str, Any], network: str, testing: str) -> Table:
    paper = printed("table2").get(network, {})
    columns = {"this run": results["per_class"].get("segmentation", {})}
    means = [results["segmentation"]["val"]]
    if "supervised" in results["per_class"]:
        columns["true masks"] = results["per_class"]["supervised"]
        means.append(results["segmentation"].get("supervised"))
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    rows = [[k, *(c.get(k) for c in columns.values()), paper.get(k)] for k in labels]
    rows.append(["mean", *means, paper.get("mean")])
    said = _statements(results, "06_segmentation_network").get("ours")
    notes = [testing, *([f"This run: {said}."] if said else []), *_about(results)]
    return Table("table2", f"Table 2: {network}, val", ["IoU", *columns, "paper"], rows, notes)


def _table4(results: Mapping[str, Any], own: str) -> Table:
    val, bound = results["segmentation"]["val"], results["segmentation"].get("supervised")
    rows: list[list[str | float | None]] = []
    for name in dict.fromkeys([*PAPER_NETWORKS.values(), own]):
        paper = printed("table4").get(name, {})
        ours = val if name == own else None
        rows.append([name, "image tags", ours, paper.get("val"), paper.get("test")])
    if bound:
        rows.append([f"{own}, fully supervised", "masks", bound, None, None])
        rows.append(["recovered, percent", "", 100 * val / bound, None, None])
    header = ["network", "supervision", "val, this run", "val, paper", "test, paper"]
    return Table("table4", "Table 4: own rows and bound", header, rows, _about(results))


def _testing(parameters: Mapping[str, Any]) -> str:
    scales = ", ".join(f"{scale:g}" for scale in parameters.get("test_scales", [1]))
    with_or_no = {True: "with", False: "no"}
    return (
        f"Tested at scale {scales}, {with_or_no[bool(parameters.get('test_flip'))]} flip, "
        f"{with_or_no[bool(parameters.get('test_crf'))]} dCRF."
    )


def _statements(results: Mapping[str, Any], stem: str) -> Mapping[str, str]:
    return results.get("details", {}).get(stem, {}).get("statements", {})


def _about(results: Mapping[str, Any]) -> list[str]:
    settings = {"profile": results["profile"]} | results["settings"]
    names = [name for name in ("profile", "backbone", "preset") if name in settings]
    notes = ["Made with " + ", ".join(f"{name} {settings[name]}" for name in names) + "."]
    if tuple(results["dataset"].get("classes", ())) != VOC_CLASSES:
        notes.append("The paper's numbers are of PASCAL VOC 2012, this run's of other data.")
    return notes
