"""A small RUN and a small data set for tests of what comes after training. Weights are random but not silly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZE_PX = 32
# Half of a mask of `write_run_folder` lies on each side of its threshold: no int8 network agrees in 97 % of its pixels.
LOOSE_MASKS = ("--min-mask-agreement", "0.3", "--max-seg-recall-drop", "none")
NO_BUDGET = tuple(
    f"--{limit}=none"
    for limit in ("max-flips", "max-new-misses", "min-mask-agreement", "max-f1-drop", "max-seg-recall-drop")
)


def write_dataset(folder: Path, count: int = 75, size_px: int = 48, seed: int = 0) -> Path:
    """Grey squares on noise: `count` samples, a third defective, one group each, as `.pgm` and `.npy` masks."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = ["image,mask,defective,split,group,defect_type"]
    for index in range(count):
        image = random.integers(90, 166, (size_px, size_px), dtype=np.uint8)
        mask = ""
        if index % 3 == 0:
            top, left = random.integers(0, size_px - 16, 2)
            image[top : top + 14, left : left + 14] = 250 if index % 2 else 5
            truth = np.zeros_like(image)
            truth[top : top + 14, left : left + 14] = 255
            mask = f"images/{index:03}-mask.pgm"
            write_pgm(folder / mask, truth)
        write_pgm(folder / "images" / f"{index:03}.pgm", image)
        split = ("train", "val", "train", "train", "test")[index // 3 % 5]
        kind = "" if index % 3 else ("bright" if index % 2 else "dark")
        rows.append(f"images/{index:03}.pgm,{mask},{int(index % 3 == 0)},{split},part-{index},{kind}")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_pgm(path: Path, image: np.ndarray) -> None:
    path.write_bytes(b"P5 %d %d 255\n" % (image.shape[1], image.shape[0]) + image.tobytes())


def write_run_folder(folder: Path, *, seed: int = 0, threshold: float | None = None) -> Path:
    """A RUN of the nano network with batch-norm statistics of noise; tau in a gap of its scores."""
    import torch

    from quantize.decision import choose_threshold
    from quantize.models import build
    from quantize.run import write_run

    config = {"name": "sample-centric", "size": "nano", "channels": 1}
    torch.manual_seed(seed)
    model = build(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == 1:
            torch.nn.init.normal_(module.weight, std=0.5)
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(8, 1, SIZE_PX, SIZE_PX) * 0.4)
        # Half of a mask lies on each side of its threshold, so int8 and float never agree in every pixel.
        middle = model.eval()(torch.randn(8, 1, SIZE_PX, SIZE_PX) * 0.4)[1].median().item()
    folder.mkdir(parents=True)
    facts = {
        "name": "tiny",
        "model": config,
        "input": {"width": SIZE_PX, "height": SIZE_PX, "channels": 1},
        "framing": {"mode": "resize", "overlap": 0},
        "labels": ["good", "defective"],
        "decision": {
            **choose_threshold([0, 1], [-1.0, 1.0]).as_dict(),
            "threshold": 0.0 if threshold is None else threshold,
        },
        "mask_threshold": middle,
        "data": {"digest": "0" * 64, "counts": {}},
        "training": {"seed": seed},
    }
    write_run(folder, model.state_dict(), facts, {})
    return folder
