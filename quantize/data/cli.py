"""The verb ``data``: what can be said of a data set before anything is trained on it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from edge.command import CHECK_FAILED, DONE, Command, Outcome

REPORT = "data-check.html"


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=("check",), help="look for leaks, duplicates and contradictions")
    parser.add_argument(
        "folder", type=Path, metavar="D", help="data set folder: samples.csv, or a published layout"
    )
    parser.add_argument(
        "--out", type=Path, metavar="REPORT", help="write a page with pictures (HTML file or folder)"
    )


def _run(options: Namespace) -> Outcome:
    from edge.errors import InputError
    from edge.folders import refuse_existing
    from quantize.data.check import check_dataset

    page = None
    if options.out is not None:
        page = options.out if options.out.suffix.lower() in (".html", ".htm") else options.out / REPORT
        refuse_existing(page)
        if options.folder.resolve() in page.resolve().parents:
            raise InputError(
                "the report would lie in the data set", got=page, next_step="choose another folder for --out"
            )
    check = check_dataset(options.folder)
    lines = [f"{options.folder}: {len(check.photographs)} photographs, layout {check.layout}"]
    facts = check.as_dict()
    for name, row in facts["splits"].items():
        lines.append(f"  {name:8}{row['good']} good, {row['defective']} defective, {row['groups']} groups")
    for finding in check.findings:
        count = f"{len(finding.cases)} x " if finding.cases else ""
        lines.append(f"{finding.level}: {count}{finding.text}")
        for case in finding.cases[:3]:
            likeness = "" if case.likeness is None else f" (likeness {case.likeness:.2f})"
            lines.append("  " + " and ".join(s.id for s in case.samples[:4]) + likeness)
        if len(finding.cases) > 3:
            lines.append(f"  and {len(finding.cases) - 3} more")
    if check.choice is not None:
        lines.append(check.choice.explanation)
    if page is not None:
        from quantize.data.check_report import write_report

        write_report(page, check)
        lines.append(f"report: {page}")
    lines.append("sound" if check.passed else "failed: numbers measured on this data set would mislead")
    return Outcome("\n".join(lines), facts, DONE if check.passed else CHECK_FAILED)


data = Command("check a data set: leaks, duplicates, contradictions, statistics, pictures", _configure, _run)
