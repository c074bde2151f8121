"""A grid that was made before is the same to the last bit, and anything that decides it makes another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from edge.preprocess import InputSpec  # noqa: E402
from quantize import grid_cache, models  # noqa: E402
from quantize.recipe import NARROW_WEIGHT_LEVELS, GridRecipe  # noqa: E402
from targets.lowering import Network  # noqa: E402

SIDE = 32


def _network(seed=0, **changes):
    torch.manual_seed(seed)
    model = models.build({"name": "sample-centric", "size": "nano", "channels": 1}).eval()
    tiles = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 1), np.uint8)
    return replace(Network(model, InputSpec(SIDE, SIDE, 1), tiles), **changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgeqc" / "grids"


@pytest.fixture
def counted(monkeypatch):
    """How often a grid was calibrated."""
    made = []
    calibrated = Network._calibrated
    monkeypatch.setattr(Network, "_calibrated", lambda self: made.append(self) or calibrated(self))
    return made


def _state(grid):
    return {
        name: value for name, value in grid.folded.state_dict().items() if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("widening", [0.0, 0.25])
def test_the_second_target_gets_the_grid_of_the_first_to_the_last_bit(widening, folder, counted):
    recipe = GridRecipe(widening=widening)
    first, second = _network(recipe=recipe), _network(recipe=recipe)
    ours, theirs = _state(first.grid), _state(second.grid)
    assert len(counted) == 1 and len(list(folder.iterdir())) == 1
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert str(first.grid.folded.graph) == str(second.grid.folded.graph)
    assert second.grid.recipe == recipe and second.grid.count == first.grid.count


def test_whatever_decides_a_grid_makes_another(folder, counted, monkeypatch):
    one = _network()
    _ = one.grid
    others = [
        _network(seed=1),
        _network(tiles=one.tiles[::-1].copy()),
        _network(recipe=GridRecipe(weight_levels=NARROW_WEIGHT_LEVELS)),
    ]
    for other in others:
        _ = other.grid
    monkeypatch.setattr(grid_cache, "_code", lambda: "another version")
    _ = _network().grid
    assert len(counted) == len(list(folder.iterdir())) == 5


def test_the_oldest_go_first(folder, monkeypatch):
    monkeypatch.setattr(grid_cache, "KEPT", 1)
    _ = _network().grid
    (old,) = folder.iterdir()
    _ = _network(seed=1).grid
    (new,) = folder.iterdir()
    assert new != old


def test_a_damaged_file_is_said_and_made_again(folder, counted, capsys):
    _ = _network().grid
    (file,) = folder.iterdir()
    file.write_bytes(b"no tensors")
    _ = _network().grid
    assert "note: a grid in the cache is made again" in capsys.readouterr().err
    _ = _network().grid
    assert len(counted) == 2
