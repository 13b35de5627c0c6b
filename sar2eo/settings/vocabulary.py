"""The words that settings, cards and file attributes choose from, and the types that settings share."""

from __future__ import annotations

from typing import Annotated, Literal

from sar2eo.settings.schema import Bounds, Flag, Group, Names

Quantity = Literal["dn", "amplitude", "intensity", "db"]
"""Digital numbers proportional to amplitude; amplitude; its square; or 10 log10 of its square."""

Calibration = Literal["none", "beta0", "sigma0", "gamma0", "rtc"]
"""What the values refer to; rtc is radiometrically terrain-corrected gamma0."""

Polarisation = Literal["HH", "HV", "VH", "VV"]
"""Transmit, then receive."""

Sampler = Literal["ddim", "dpm++"]
"""DDIM with eta 0, or DPM-Solver++ of second order (2M)."""

Spacing = Literal["leading", "trailing"]
"""Which timesteps few steps take; the paper's 981 ... 1 are leading."""

PredictionType = Literal["epsilon", "v_prediction"]
"""What the U-Net's first channels mean."""

Compression = Literal["deflate", "zstd", "jpeg", "webp"]
"""Compression of COGs; jpeg and webp lose detail of the EO image."""

TieMethod = Literal["dcdm", "structure", "phase", "ncc"]
"""How images are matched; dcdm is learned."""

Transform = Literal["shift", "affine", "local"]
"""One shift for all, an affine transform, or a smooth field of shifts."""

Align = Literal["off", "score", "shift"]
"""Leave the registration alone, record how well it holds, or correct it."""

Dataset = Literal["qxs", "sar2opt", "spacenet6"]
"""Published data sets whose folders are read as they come."""

Loss = Literal["c-diff", "c-diff-timestep", "l2"]
"""Likelihood of the variance channel, the same with the release's timestep weight, or squared error."""

Metric = Literal["psnr", "ssim", "scc", "lpips", "fid", "features"]
"""Those of C-DiffSET, section 4.2, and the distance of efficientnet-lite0's features."""

Protocol = Literal["usual", "release"]
"""How [-1, 1] becomes [0, 1]: ``(x + 1) / 2``, or as in the authors' release ``x + 0.5``, clipped."""

Split = Literal["train", "val", "test"]

INPUT, MODEL, OUTPUT, RUN = map(Group, ("Input", "Model", "Output", "Run"))

Count = Annotated[int, Bounds(least=1)]
Natural = Annotated[int, Bounds(least=0)]
SamplingSteps = Annotated[int, Bounds(1, 1000)]
Samples = Annotated[int, Bounds(1, 1000)]
Seed = Annotated[int, Bounds(0, 2**64 - 1)]
Positive = Annotated[float, Bounds(above=0, below=float("inf"))]
Weight = Annotated[float, Bounds(least=0, below=float("inf"))]
Share = Annotated[float, Bounds(0, 1)]
Fraction = Annotated[float, Bounds(least=0, below=1)]
EoBands = Annotated[
    Annotated[tuple[Count, ...], Names("R,G,B")] | None,
    "Numbers of red, green and blue, of a file's bands or in the names of files; by default as bands say.",
]
EoRange = Annotated[tuple[float, ...], Names("LOW,HIGH")]
PixelWindow = Annotated[tuple[int, ...], Names("ROW,COL,HEIGHT,WIDTH")]

Folder = Annotated[str, Flag(metavar="DIR")]
File = Annotated[str, Flag(metavar="FILE")]
JsonFile = Annotated[str, Flag(metavar="FILE.json")]
Checkpoint = Annotated[str, Flag(metavar="DIR|HUB_ID")]
Source = Annotated[str, Flag(metavar="SCENE"), INPUT]
Sources = Annotated[tuple[str, ...], Flag(metavar="PATH..."), INPUT]
Polarisations = Annotated[tuple[str, ...], Flag("--pol", "VV,VH", str.upper)]

CardSteps = Annotated[SamplingSteps | None, "Denoising steps; by default as the model's card says.", MODEL]
CardSampler = Annotated[Sampler | None, "Sampler; by default as the model's card says.", MODEL]
Revision = Annotated[str | None, "Revision of a model on a hub.", MODEL]
Device = Annotated[str, "Where networks run: cpu, cuda, cuda:N, or auto.", RUN]
Dtype = Annotated[str, "Precision of networks: float32, bfloat16, float16, or auto.", RUN]
Threads = Annotated[Count | None, "Torch threads of each process; by default all cores.", RUN]
Report = Annotated[JsonFile | None, "Write what was done as JSON."]
