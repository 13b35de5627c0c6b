"""What single tasks of a translation compute."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from sar2eo.geo.windows import Lattice
from sar2eo.translation.tasks import TaskContext, TileResult, blend_block


def test_variance_is_blended_and_confidence_is_one_over_it() -> None:
    spec: Any = SimpleNamespace(factor=8)
    context = TaskContext(
        lattice=Lattice((32, 48), 32, 16, 8),
        region=Lattice((32, 48), 32, 16, 8).scene,
        reader=None,
        row_edges=(0, 32),
        col_edges=(0, 48),
        bands=(0,),
        polarisations=("VH",),
        channels=(("VH",),) * 3,
        quantity="dn",
        calibration=None,
        stored_as=None,
        spec=spec,
    )
    left, right = 0.01, 4.0
    eo = np.zeros((3, 32, 32), np.uint8)
    results = {
        index: TileResult(eo, np.full((4, 4), variance, np.float32), None, None)
        for index, variance in enumerate((left, right))
    }
    found = blend_block(context, "confidence", 0, 0, 32, 48, results)[10]
    share = np.clip((np.arange(48) - 15.5) / 16, 0, 1)  # of the right tile, over columns 16 to 31
    np.testing.assert_allclose(found, 1 / ((1 - share) * left + share * right), rtol=1e-5)
