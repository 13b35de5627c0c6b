"""One translation: its plan, checks before work, the report, scaling, edits."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from support.command_line import SMALL, run
from support.scenes import amplitude, scene_array, write_scene

import sar2eo
from sar2eo.errors import (
    FitWarning,
    PolarisationError,
    RadiometryError,
    Sar2eoError,
    SceneError,
    SettingsError,
)
from sar2eo.model.card import TranslatorCard
from sar2eo.model.spec import resolve_model
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.settings import TranslateRecipe
from sar2eo.translation import dataset as lazy_dataset
from sar2eo.translation.dataset import _choose_channels, resolve_spec
from sar2eo.translation.plan import estimate, find_target, plan, read_name_fields
from sar2eo.translation.region import clip_to

OPTIONS = {"tile": 128, "overlap": 16, "scaling": (255.0,)}


def test_bands_keep_their_names_when_selected_or_reordered() -> None:
    scene = scene_array(amplitude((64, 64), 4, bands=2), ("VV", "VH"))
    whole = sar2eo.translate(scene, "identity", **OPTIONS)
    turned = sar2eo.translate(scene.isel(band=[1, 0]), "identity", **OPTIONS)
    np.testing.assert_array_equal(turned.eo.values, whole.eo.values)
    cross = sar2eo.translate(scene.sel(band=["VH"]), "identity", **OPTIONS)
    np.testing.assert_array_equal(cross.eo.values[0], whole.eo.values[1])
    assert cross.attrs["polarisations"] == ["VH"]


def test_force_substitutes_like_by_like() -> None:
    card = TranslatorCard(name="a", polarisations=("VV", "VH"))
    with pytest.warns(FitWarning, match="HV, HH"):
        names, channels = _choose_channels(("HV", "HH"), card, force=True)
    assert names == ("HH", "HV")
    assert channels == (("HH",), ("HV",), ("HH", "HV"))
    with pytest.warns(FitWarning):
        assert _choose_channels(("VV",), card, force=True) == (("VV",), (("VV",), ("VV",), ("VV", "VV")))


def parts(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    from shapely import box

    corner = {"y": slice(0, 60), "x": slice(0, 60)}
    grid = decode_attributes(dataset)["grid"]
    area = box(grid.bounds[0], grid.bounds[3] - 600, grid.bounds[0] + 600, grid.bounds[3])
    return {
        "whole": dataset,
        "slice of the result": dataset.isel(corner),
        "clipped": clip_to(dataset, area, grid),
        "edited": dataset.assign(eo=255 - dataset.eo),
        "computed": dataset.compute(),
    }


@pytest.mark.parametrize("part", ["whole", "slice of the result", "clipped", "edited", "computed"])
def test_tiles_in_the_report_are_those_that_ran(scene_file: Path, tmp_path: Path, part: str) -> None:
    dataset = sar2eo.translate(
        sar2eo.open_scene(scene_file), "identity", **OPTIONS, batch=4, block=(128, 128)
    )
    windows = sar2eo.write_cog(parts(dataset)[part], tmp_path / "eo.tif")["tiles"]
    assert windows["resumed"] == 0
    assert windows["translated"] + windows["skipped"] == windows["total"]
    total = {"whole": 20, "edited": 20, "slice of the result": 8, "clipped": 8, "computed": 0}
    assert windows["total"] == total[part]


def test_tiles_of_a_region_are_those_that_ran(scene_file: Path, tmp_path: Path) -> None:
    scene = sar2eo.open_scene(scene_file).isel(y=slice(200, 260), x=slice(200, 260))
    windows = sar2eo.write_cog(sar2eo.translate(scene, "identity", **OPTIONS), tmp_path / "eo.tif")["tiles"]
    assert windows["translated"] + windows["skipped"] == windows["total"]
    assert windows["resumed"] == 0


@pytest.mark.parametrize(
    ("region", "empty"), [({"window": [200, 200, 60, 60]}, 0), ({"window": [0, 420, 60, 60]}, 1)]
)
def test_a_dry_run_of_a_region_looks_at_the_region(
    scene_file: Path, tmp_path: Path, region: dict[str, list[int]], empty: float
) -> None:
    from sar2eo.settings import from_table

    table = {"scenes": [str(scene_file)], "out": str(tmp_path / "eo.tif"), "model": "identity"}
    settings = {"tile": 128, "overlap": 16, "scaling": [255.0]}
    recipe = from_table(TranslateRecipe, table | {"region": region, "settings": settings}, "translate")
    spec = resolve_spec(recipe.model, recipe.settings)
    (entry,) = plan(recipe, spec, find_target(recipe))
    tiles = estimate(entry, recipe, spec)["tiles"]
    assert tiles["without data, estimated"] == empty * tiles["total"]


def test_scaling_is_sampled_once(scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], lazy_dataset.scale_from_reader
    monkeypatch.setattr(lazy_dataset, "scale_from_reader", lambda *args: calls.append(1) or original(*args))
    lazy = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", tile=128, overlap=16, block=(128, 128))
    sar2eo.write_cog(lazy, tmp_path / "eo.tif")
    assert len(calls) == 1


def test_an_edit_that_changes_the_type_is_refused_before_work(scene_file: Path, tmp_path: Path) -> None:
    dataset = sar2eo.translate(sar2eo.open_scene(scene_file), "identity", **OPTIONS)
    for eo in (dataset.eo * 0.5, dataset.eo.isel(band=[0]), dataset.eo.isel(band=0, drop=True)):
        with pytest.raises(SettingsError, match="uint8"):
            sar2eo.write_cog(
                dataset.drop_vars("eo").drop_dims("band", errors="ignore").assign(eo=eo), tmp_path / "a.tif"
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--report", "no/such/r.json"], 1, "no folder"),
        (["--quicklook", "no/such/q.png"], 1, "no folder"),
        (["--report", "eo.tif"], 2, "another name"),
        (["--report", "eo.json"], 2, "another name"),
        (["--bbox", "1,2,3,4", "--bbox-crs", "nonsense"], 2, "nonsense"),
    ],
)
def test_outputs_and_regions_are_checked_before_work(
    scene_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("translate", scene_file, "--out", "eo.tif", *SMALL, *arguments)
    assert done.exit_code == code, done.output
    assert word in done.stderr
    assert "unexpected" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_a_scene_is_never_replaced_by_its_translation(tmp_path: Path, extra: list[str]) -> None:
    scene = write_scene(tmp_path / "scene.tif", amplitude((100, 90), 6))
    before = scene.read_bytes()
    for source in (str(scene), f"VV={scene}"):
        done = run("translate", source, "--out", scene, *SMALL, "--overwrite", *extra)
        assert done.exit_code == 2, done.output
        assert "the scene itself" in done.stderr
    assert scene.read_bytes() == before


def test_names_of_edited_datasets_are_the_same_in_another_process(scene_file: Path) -> None:
    code = (
        "import sys, json, sar2eo, numpy as np, xarray as xr\n"
        "from dask.base import tokenize\n"
        "eo = sar2eo.translate(sar2eo.open_scene(sys.argv[1]), 'identity', tile=128, overlap=16)\n"
        "third = xr.apply_ufunc(lambda a: a // 3, eo.eo, dask='parallelized', output_dtypes=[np.uint8])\n"
        "edits = [eo.eo, eo.eo // 2, eo.eo.where(eo.valid, 7), eo.eo.clip(3, 9), third, eo.valid]\n"
        "print(json.dumps([tokenize(edit.data) for edit in edits]))\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, str(scene_file)],
            check=True,
            capture_output=True,
            env={
                "OMP_NUM_THREADS": "1",
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": str(Path(sar2eo.__file__).parents[1]),
            },
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(set(json.loads(told[0]))) == 6


@pytest.mark.parametrize(
    ("card", "error", "words"),
    [
        ({"gsd_m": 4.0}, SceneError, ["10 x 10 m", "4 m", "resolution=4"]),
        ({"polarisations": ("HH",)}, PolarisationError, ["has VV", "HH"]),
        ({"scaling": 0.5, "calibration": "sigma0"}, RadiometryError, ["none", "sigma0"]),
    ],
)
def test_a_scene_that_does_not_fit_the_card_is_refused_or_forced_with_a_warning(
    card: dict[str, Any], error: type[SceneError], words: list[str]
) -> None:
    scene = scene_array(amplitude((64, 64), 4))
    spec = dataclasses.replace(
        resolve_model("identity"), card=TranslatorCard(name="a", **{"polarisations": ("VV",)} | card)
    )
    with pytest.raises(error) as caught:
        sar2eo.translate(scene, spec)
    assert all(word in str(caught.value) for word in [*words, "force=True"])
    with pytest.warns(FitWarning, match=words[0]):
        sar2eo.translate(scene, spec, force=True)


def test_a_card_that_fits_says_nothing_and_its_fixed_scaling_is_used() -> None:
    card = TranslatorCard(name="a", gsd_m=10.0, scaling=100.0)
    eo = sar2eo.translate(
        scene_array(amplitude((64, 64), 4)), dataclasses.replace(resolve_model("identity"), card=card)
    )
    assert eo.amplitude_divisor.values.tolist() == [100.0]


def test_spread_is_written_on_request(scene_file: Path, tmp_path: Path) -> None:
    spread = tmp_path / "spread.tif"
    done = run(
        *("translate", scene_file, "--out", tmp_path / "eo.tif", *SMALL, "--samples", 2, "--spread", spread)
    )
    assert done.exit_code == 0, done.output
    with rasterio.open(spread) as raster, rasterio.open(scene_file) as source:
        valid = source.read_masks(1) > 0
        assert (raster.read(1)[valid] == 0).all()
        np.testing.assert_array_equal(raster.read_masks(1) > 0, valid)


def test_a_manifest_is_named_after_its_product() -> None:
    product = "S1A_IW_GRDH_1SDV_20201107T135241"
    assert read_name_fields(f"scenes/{product}.SAFE/manifest.safe", {})["id"] == product


def test_a_folder_that_is_missing_is_made_where_its_name_ends_with_a_slash(tmp_path: Path) -> None:
    for name in ("new/inner", "results.v2"):
        missing = TranslateRecipe(scenes=("scene.tif",), out=str(tmp_path / name))
        with pytest.raises(Sar2eoError, match=r"no such folder|must end in"):
            find_target(missing)
        assert find_target(dataclasses.replace(missing, out=f"{tmp_path / name}/")).folder == tmp_path / name
        assert (tmp_path / name).is_dir()
