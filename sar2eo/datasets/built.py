"""Data set of pairs from a folder of `sar2eo.build_pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo.datasets.augmentation import Augmentation
from sar2eo.datasets.pairs import Pair, PairsDataset, read_raster
from sar2eo.errors import PairsError
from sar2eo.geo.grid import Grid

_COLUMNS = (
    *("id", "split", "sar_chip", "eo_chip", "height", "width", "crs", "transform", "sar_href"),
    *("quantity", "calibration", "polarisations", "scaling"),
    *("day_gap", "platform", "orbit_direction", "block"),
)
_GSD_SAMPLES = 32


@dataclass(frozen=True)
class _Row:
    """The columns of one row of the index that are used, as plain values."""

    id: str
    sar_chip: str
    eo_chip: str
    quantity: str
    calibration: str
    polarisations: tuple[str, ...]
    scaling: tuple[float, ...]
    sar_href: str
    day_gap: float | None
    platform: str | None
    orbit_direction: str | None
    block: str


class BuiltPairs(PairsDataset):
    """One split of a folder of pairs; SAR is divided by the 99th percentile of its scene.

    If scenes differ in quantity, all are converted to amplitude. If they differ in polarisations, the common
    ones are used. Without an `augmentation`, samples are the centre, as large as the smallest chip.

    Raises `PairsError` if the folder has no readable index, the split is empty, chips are missing, or scenes
    have no polarisation in common.
    """

    def __init__(self, folder: Path, split: str, *, augmentation: Augmentation | None = None) -> None:
        self.folder = folder
        self.split = split
        table = _read_index(folder, split)
        self.rows = tuple(_parse_row(record) for record in table.to_dict("records"))
        self._check_chips()
        shared = [
            name for name in self.rows[0].polarisations if all(name in row.polarisations for row in self.rows)
        ]
        if not shared:
            raise PairsError(
                f"{folder}: its SAR scenes have no polarisation in common: build pairs of scenes that have"
            )
        calibrations = {row.calibration or "none" for row in self.rows}
        super().__init__(
            [row.id for row in self.rows],
            size=(int(table["height"].min()), int(table["width"].min())),
            polarisations=shared,
            # Whatever chips hold, networks see amplitude.
            quantity="dn" if {row.quantity for row in self.rows} == {"dn"} else "amplitude",
            calibration=calibrations.pop() if len(calibrations) == 1 else "none",
            gsd_m=_median_gsd_m(table),
            augmentation=augmentation or Augmentation(centre=True),
        )

    def _check_chips(self) -> None:
        """Check that all chips exist, by listing their folders, which is fast for many chips."""
        chips = [path for index in range(len(self.rows)) for path in self.files(index)]
        existing = {
            path for folder in {chip.parent for chip in chips} if folder.is_dir() for path in folder.iterdir()
        }
        missing = [chip for chip in chips if chip not in existing]
        if missing:
            raise PairsError(
                f"{missing[0]} does not exist, like {len(missing)} of {len(chips)} chips of {self.split}: "
                f"is {self.folder} a complete copy?"
            )

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The block of each chip; splits consist of whole blocks."""
        return tuple(row.block for row in self.rows)

    @cached_property
    def _bounds(self) -> npt.NDArray[np.float64]:
        return _compute_bounds(_read_index(self.folder, self.split))  # only matchers need it

    def overlapping(self, index: int) -> npt.NDArray[np.bool_]:
        """Return which chips overlap one on the ground, on any date, shape (pairs,)."""
        west, south, east, north = self._bounds.T
        left, bottom, right, top = self._bounds[index]
        return np.asarray((west < right) & (left < east) & (south < top) & (bottom < north))

    def read(self, index: int) -> Pair:
        """Read a pair of chips; see `PairsDataset.read`."""
        row = self.rows[index]
        (sar, sar_valid), (eo, eo_valid) = (read_raster(path) for path in self.files(index))
        if len(sar) != len(row.polarisations) or eo.shape != (3, *sar.shape[1:]) or eo.dtype != np.uint8:
            raise PairsError(
                f"{row.id}: SAR of shape {sar.shape} and EO of shape {eo.shape} and {eo.dtype}: must be of "
                f"one size, with {len(row.polarisations)} and 3 bands, EO uint8"
            )
        bands = [row.polarisations.index(name) for name in self.polarisations]
        return Pair(
            sar=sar if bands == list(range(len(sar))) else sar[bands],
            eo=eo,
            valid=sar_valid & eo_valid,
            low=(0.0,) * len(bands),
            high=tuple(row.scaling[band] for band in bands),
            quantity=row.quantity,
        )

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the files of the SAR and the EO chip."""
        row = self.rows[index]
        return self.folder / row.sar_chip, self.folder / row.eo_chip

    def facts(self, index: int) -> dict[str, Any]:
        """Return SAR scene, days between the acquisitions, platform and orbit direction."""
        row = self.rows[index]
        names = ("sar_href", "day_gap", "platform", "orbit_direction")
        return {name: getattr(row, name) for name in names}

    def describe(self) -> str:
        """Describe the split: numbers of chips and scenes, size, polarisations, quantity."""
        scenes = len({row.sar_href for row in self.rows})
        size = "x".join(map(str, self.size))
        return (
            f"{len(self)} {self.split} pairs of {size} pixels from {scenes} SAR scenes "
            f"({', '.join(self.polarisations)}, {self.quantity}), built by sar2eo"
        )


def _read_index(folder: Path, split: str) -> Any:
    import pandas as pd

    path = folder / "pairs.parquet"
    if not path.is_file():
        raise PairsError(f"{folder} has no pairs.parquet: not a folder of sar2eo build-pairs")
    try:
        # pandas, not geopandas: footprints are not needed.
        table = pd.read_parquet(path, columns=list(_COLUMNS))
    except (OSError, ValueError, KeyError) as error:
        raise PairsError(f"{path} is not an index of pairs: {str(error).splitlines()[0]}") from error
    chosen = table[table["split"] == split]
    if chosen.empty:
        counts = ", ".join(f"{count} {name}" for name, count in table["split"].value_counts().items())
        raise PairsError(f"{folder} has no {split} pairs, but {counts or 'none at all'}")
    return chosen.sort_values("id", kind="stable")


def _compute_bounds(table: Any) -> npt.NDArray[np.float64]:
    """Return west, south, east and north of every chip in degrees, shape (chips, 4)."""
    from pyproj import Transformer

    found = np.empty((len(table), 4))
    transforms = np.array([tuple(map(float, value))[:6] for value in table["transform"]])
    sizes = table[["height", "width"]].to_numpy(float)
    for crs in table["crs"].unique():
        at = (table["crs"] == crs).to_numpy()
        a, b, c, d, e, f = transforms[at].T
        rows, cols = sizes[at].T
        corners = [(0 * rows, 0 * cols), (0 * rows, cols), (rows, 0 * cols), (rows, cols)]
        x = np.stack([a * col + b * row + c for row, col in corners])
        y = np.stack([d * col + e * row + f for row, col in corners])
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        found[at] = np.stack([lon.min(0), lat.min(0), lon.max(0), lat.max(0)], axis=1)
    return found


def _parse_row(record: dict[str, Any]) -> _Row:
    def known(value: Any) -> Any:
        return None if value is None or value != value else value

    row = _Row(
        **{
            name: record[name]
            for name in ("id", "sar_chip", "eo_chip", "quantity", "calibration", "sar_href")
        },
        polarisations=tuple(map(str, record["polarisations"])),
        scaling=tuple(map(float, record["scaling"])),
        **{name: known(record[name]) for name in ("day_gap", "platform", "orbit_direction")},
        block=str(record["block"]),
    )
    if len(row.scaling) != len(row.polarisations) or not all(0 < value < np.inf for value in row.scaling):
        raise PairsError(
            f"{row.id}: scaling {row.scaling} for {', '.join(row.polarisations)}: must be one positive "
            "amplitude for each polarisation"
        )
    return row


def _median_gsd_m(table: Any) -> float:
    """Return the median ground sample distance of up to 32 chips, in metres."""
    some = table.iloc[np.linspace(0, len(table) - 1, min(_GSD_SAMPLES, len(table))).astype(int)]
    found = [
        Grid(row.crs, tuple(map(float, row.transform)), (row.height, row.width)).ground_sample_distance_m()  # type: ignore[arg-type]
        for row in some.itertuples()
    ]
    return float(np.median(found))
