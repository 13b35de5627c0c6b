"""The matcher's denoiser with sparse and with dense attention: seconds, operations, memory."""

import json
from functools import partial

from measuring import Baseline, python, run

ROUNDS = 2

# A process each, so that the peak of memory is its own.
PROGRAM = """
import json, resource, sys, time
import torch
from torch.utils.flop_counter import FlopCounterMode
from sar2eo.matching.dcdm.network import MatchingDenoiser

side, dense = int(sys.argv[1]) // 8, sys.argv[2] == "dense"
torch.manual_seed(0)
regions = 10**6 if dense else 16
network = MatchingDenoiser(latent_channels=12, widths=(96, 192), top_regions=regions).eval()
optical, search = torch.randn(1, 12, side // 2, side // 2), torch.randn(1, 12, side, side)

def match():
    context = network.encode_search(search, torch.ones(1, 1, side, side))
    for _ in range(5):
        network.denoise(optical, optical, context, torch.tensor([999]))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

with torch.no_grad():
    before = peak()
    with FlopCounterMode(display=False) as counted:
        match()
    used = peak() - before
    start = time.perf_counter()
    match()
    seconds = time.perf_counter() - start
with open(sys.argv[3], "w") as file:
    json.dump({"gflop": counted.get_total_flops() / 1e9, "megabytes": used, "seconds": seconds}, file)
"""


def test_sparse_against_dense_attention(compare, tmp_path, record_property):
    def measured(kind):
        run(python(PROGRAM, 512, kind, tmp_path / f"{kind}.json"))

    compare(
        "matcher's denoiser, search 512, sparse attention, with start",
        partial(measured, "sparse"),
        [Baseline("dense", partial(measured, "dense"), goal=1.0)],
        rounds=ROUNDS,
    )
    sparse, dense = (json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("sparse", "dense"))
    record_property("measured", {"sparse": sparse, "dense": dense})
    assert sparse["gflop"] < dense["gflop"]
    assert sparse["megabytes"] < dense["megabytes"]
