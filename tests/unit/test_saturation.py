"""What a clamp behind a sum cuts off gets no place on the grid, unless somebody else reads it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
nn = torch.nn

from quantize.grid import calibrate  # noqa: E402
from quantize.operations import SUMS  # noqa: E402
from quantize.requantization import observer_before  # noqa: E402

SHAPE = (1, 16, 16)


class _Clamped(nn.Module):
    """relu6(wide + narrow), wide reaching to about 100."""

    def __init__(self, read_twice):
        super().__init__()
        torch.manual_seed(0)
        self.read_twice = read_twice
        self.wide, self.narrow, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            self.wide.weight.copy_(torch.tensor([100.0, -80.0, 5.0, 1.0]).view(4, 1, 1, 1))

    def forward(self, x):
        wide = self.wide(x)
        mask = self.last(nn.functional.relu6(wide + self.narrow(x)))
        return (self.last(wide) if self.read_twice else mask).mean((2, 3), keepdim=True).flatten(1), mask


def _calibrated(network):
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return images, calibrate(network.eval(), [images], input_shape=SHAPE)


def _ranges(grid):
    (node,) = [node for node in grid.prepared.graph.nodes if node.target in SUMS]
    return [observer_before(grid.prepared, node, index).range() for index in (0, 1)]


def test_a_summand_reaches_as_far_as_the_clamp_and_the_other_summand_let_it(monkeypatch):
    network = _Clamped(False)
    images, grid = _calibrated(network)
    wide, narrow = _ranges(grid)
    assert narrow < 3 and 6 < wide <= 1.01 * (6 + narrow)
    monkeypatch.setattr("quantize.grid.saturate_summands", lambda _: None)
    _, without = _calibrated(network)
    assert _ranges(without)[0] > 60
    with torch.no_grad():
        away = [
            sum(float((one.folded(x)[1] - network(x)[1]).square().mean()) for x in images.split(1))
            for one in (grid, without)
        ]
    assert away[0] < away[1] / 4


def test_a_summand_that_something_else_reads_keeps_its_range():
    _, grid = _calibrated(_Clamped(True))
    assert _ranges(grid)[0] > 60
