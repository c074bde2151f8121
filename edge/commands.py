"""The runtime's verbs: `run`, `predict`, `bench`, `doctor`. What a verb needs is imported when it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edge.command import BAD_INPUT, DONE, MISSING, Command, Outcome


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--backend", metavar="NAME", help="must be the artifact's own; the default is that one"
    )
    parser.add_argument("--device", help="device of the backend, e.g. CPU, edgetpu:0, cuda:0")
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="run on the host in place of the target's own device, marked as such",
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()) or not int(width) or not int(height):
        raise ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, e.g. 1280x1024")
    return int(width), int(height)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _configure_run(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="A", help="artifact folder (or RUN folder)")
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="image file, folder of images, or data set folder"
    )
    parser.add_argument(
        "--sink",
        action="append",
        default=[],
        metavar="URI",
        help="jsonl:FILE, jsonl:- or overlay:FOLDER; can be repeated (default: jsonl:-)",
    )
    parser.add_argument("--overlays", metavar="FOLDER", help="the same as --sink overlay:FOLDER")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N images")
    _add_device(parser)


def _run(options: Namespace) -> Outcome:
    """Inspect pictures. One that cannot be read gets a line with `error`, the rest goes on; exit code 2."""
    from edge.errors import InputError
    from edge.inspector import inspect_file, open_inspector
    from edge.sinks import STANDARD_OUTPUT, check_sink, failure, open_sink, record
    from edge.sources import find_pictures

    uris = list(options.sink) + ([f"overlay:{options.overlays}"] if options.overlays else [])
    if options.json != "-" and not any(uri.startswith("jsonl:") for uri in uris):
        uris.insert(0, STANDARD_OUTPUT)
    if options.json == "-" and STANDARD_OUTPUT in uris:
        raise InputError(
            "--json and the sink jsonl:- both want standard output", next_step="drop one of them"
        )
    for uri in uris:
        check_sink(uri)
    pictures = find_pictures(options.source, options.limit)
    results: list[dict[str, Any]] = []
    failures: list[InputError] = []
    defective = 0
    with ExitStack() as stack:
        inspector = stack.enter_context(
            open_inspector(
                options.artifact, backend=options.backend, device=options.device, stand_in=options.stand_in
            )
        )
        sinks = [stack.enter_context(open_sink(uri)) for uri in uris]
        for picture in pictures:
            try:
                frame, inspection = inspect_file(inspector, picture.path)
            except InputError as error:
                failures.append(error)
                if len(failures) == len(pictures):
                    raise  # nothing was inspected, so no sink's file appears
                facts, seen = failure(picture, error), None
            else:
                defective += inspection.defective
                facts, seen = record(picture, inspection, inspector), (frame, inspection)
            for sink in sinks:
                sink(picture, facts, seen)
            if options.json is not None:  # only then is it kept in memory
                results.append(facts)
        ran_on = asdict(inspector.session.ran_on)
    summary = (
        f"{len(pictures)} images: {defective} defective, {len(pictures) - defective - len(failures)} good, "
        f"{len(failures)} not inspected; {_where(ran_on)}"
    )
    print(summary, file=sys.stderr)
    if failures:
        print(f"edgeqc run: {len(failures)} of {len(pictures)} images: {failures[0]}", file=sys.stderr)
    return Outcome(
        data={
            "images": len(pictures),
            "defective": defective,
            "not_inspected": len(failures),
            "ran_on": ran_on,
            "results": results,
        },
        exit_code=BAD_INPUT if failures else DONE,
    )


def _where(ran_on: dict[str, Any]) -> str:
    mark = " (stand-in, not verified on device)" if ran_on["stand_in"] else ""
    return f"ran on {ran_on['device']}, {ran_on['sdk']} {ran_on['version']}{mark}"


def _configure_predict(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN_OR_ARTIFACT", help="RUN folder or artifact folder")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="D", help="data set folder with samples.csv"
    )
    parser.add_argument("--split", required=True, metavar="S", help="which split of it")
    parser.add_argument("--out", type=Path, required=True, metavar="P.npz", help="prediction file to write")
    _add_device(parser)


def _predict(options: Namespace) -> Outcome:
    from edge.inspector import open_inspector
    from edge.predictions import predict as predict_samples
    from edge.samples import dataset_digest, read_samples

    samples = read_samples(options.data, options.split)
    with open_inspector(
        options.model, backend=options.backend, device=options.device, stand_in=options.stand_in
    ) as inspector:
        predictions = predict_samples(inspector, samples)
    facts = {"split": options.split, "dataset": dataset_digest(samples)}
    predictions = replace(predictions, meta={**predictions.meta, **facts})
    predictions.save(options.out)
    defective = int(predictions.verdicts.sum())
    counts = f"{len(samples)} samples of {options.split}, {defective} called defective"
    return Outcome(
        text=f"{options.out}: {counts}; {_where(predictions.meta['ran_on'])}",
        data={"out": options.out, "n": len(samples), "defective": defective, **predictions.meta},
    )


def _configure_bench(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="A", help="artifact folder (or RUN folder)")
    parser.add_argument(
        "--frames", type=_count, default=200, metavar="N", help="inspections to time (default 200)"
    )
    parser.add_argument(
        "--warmup", type=int, default=20, metavar="N", help="inspections before that (default 20)"
    )
    parser.add_argument("--frame", type=_size, metavar="WxH", help="random frames of this size")
    parser.add_argument("--data", type=Path, metavar="D", help="photographs of this data set folder")
    _add_device(parser)


def _bench(options: Namespace) -> Outcome:
    from edge.bench import measure, table

    facts = measure(
        options.artifact,
        frames=options.frames,
        warmup=options.warmup,
        frame=options.frame,
        data=options.data,
        backend=options.backend,
        device=options.device,
        stand_in=options.stand_in,
    )
    return Outcome(text=table(facts), data=facts)


def _configure_doctor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="BACKEND",
        help="exit 4 when this backend is not usable; can be repeated",
    )


def _doctor(options: Namespace) -> Outcome:
    from edge.doctor import examine, table

    facts = examine(options.require)
    return Outcome(text=table(facts), data=facts, exit_code=DONE if facts["healthy"] else MISSING)


run = Command("verdicts and masks for image files, folders and data sets", _configure_run, _run)
predict = Command("write a prediction file, on the host or on the device", _configure_predict, _predict)
bench = Command("latency, throughput, memory and temperature on this device", _configure_bench, _bench)
doctor = Command(
    "which backends work here, and the exact fix for those that do not", _configure_doctor, _doctor
)
