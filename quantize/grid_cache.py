"""Grids that were made before: a network that goes to three targets is calibrated once.

A file is known by everything that decides the grid, this package's own code included, so nothing can be stale:
``$XDG_CACHE_HOME/edgeqc/grids/KEY.safetensors`` (default ``~/.cache``), in the form of ``quantize.tuned_grid``. The
newest `KEPT` stay.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from edge.backends._cache import cache_folder
from edge.errors import ArtifactError
from quantize.grid import CalibratedGrid
from quantize.recipe import GridRecipe
from quantize.tuned_grid import grid_state, load_grid, save_grid

KEPT = 32


def cached_grid(
    model: nn.Module,
    graph: fx.Graph,
    tiles: npt.NDArray[np.uint8],
    input_shape: tuple[int, int, int],
    recipe: GridRecipe,
    make: Callable[[], CalibratedGrid],
) -> CalibratedGrid:
    """The grid of a network, calibrated on ``tiles``; from the cache where it is there, else by ``make`` and kept.

    Args:
        model: batch norm folded.
        graph: of `model`; the operations of a user's own network are not to be seen in its modules.

    A grid from the cache has no moments and no weights from before the rounding: it is for lowering alone.
    """
    if not recipe.one_sided:  # the file's form has no place for it
        return make()
    folder = cache_folder("grids")
    file = folder / f"{_key(model, graph, tiles, input_shape, recipe)}.safetensors"
    if file.is_file():
        try:
            found = load_grid(file, model, input_shape)
        except ArtifactError as error:
            print(f"note: a grid in the cache is made again, {error}", file=sys.stderr)
        else:
            os.utime(file)
            return replace(found, recipe=recipe)
    grid = make()
    with NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as partial:
        place = Path(partial.name)
    save_grid(place, grid_state(grid.prepared), grid.count)
    place.replace(file)  # two exports at once write the same
    for old in sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return grid


def _key(
    model: nn.Module,
    graph: fx.Graph,
    tiles: npt.NDArray[np.uint8],
    input_shape: tuple[int, int, int],
    recipe: GridRecipe,
) -> str:
    digest = hashlib.sha256(
        f"{_code()} {torch.__version__} {graph} {input_shape} {asdict(recipe)} {tiles.shape}".encode()
    )
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(np.ascontiguousarray(tiles).tobytes())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """Of this package: what it makes of the same network may change with every line."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
