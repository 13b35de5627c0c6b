"""Start of a process with a compiled U-Net: from the cache, compiling anew, and without compiling."""

from functools import partial

from measuring import Baseline, python, run

from sar2eo.model.compile_cache import CACHE_VARIABLE
from sar2eo.model.creation import init_checkpoint

ROUNDS = 3
FEWER = 0.6  # most of what is left is Python's and torch's own start

PROGRAM = """
import sys, warnings
import numpy as np
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import resolve_model

warnings.simplefilter("ignore")
spec = resolve_model(sys.argv[1], compile=sys.argv[2] == "compiled", device="cpu", dtype="float32", steps=2)
load_translator(spec).translate(np.full((spec.batch, 3, 64, 64), 0.25, np.float32), [(0, 0)] * spec.batch)
"""


def test_start_with_a_compiled_unet(compare, monkeypatch, tmp_path):
    folder = init_checkpoint(tmp_path / "tiny", size="tiny")
    caches = (tmp_path / f"cache-{number}" for number in range(ROUNDS))

    def cold():
        monkeypatch.setenv(CACHE_VARIABLE, str(next(caches)))
        return run(python(PROGRAM, folder, "compiled"))

    def warm():
        return run(python(PROGRAM, folder, "compiled"))  # from the cache that the cold one has just filled

    compare(
        "start, load and first batch, U-Net tiny, compiled before",
        warm,
        [
            Baseline("with an empty cache", cold, goal=FEWER),
            Baseline("not compiled", partial(run, python(PROGRAM, folder, "eager"))),
        ],
        rounds=ROUNDS,
    )
