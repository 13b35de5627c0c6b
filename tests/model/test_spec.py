"""Models by name and options: resolving, fingerprints, loading once, and the identity."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.compute.dask_run import collect_telemetry
from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model import loading
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import describe_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.diffusion import create_scheduler, read_schedule
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import ModelSpec, resolve_model, resolve_spacing


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "untrained"
    return init_checkpoint(out, size="tiny", steps=20, sampler="dpm++")


@pytest.fixture(autouse=True)
def _no_network_and_nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading, "_LOADED", loading.OrderedDict())


def resolve(model: str | Path, **options: Any) -> ModelSpec:
    return resolve_model(model, **{"device": "cpu", "dtype": "float32"} | options)


def test_identity_returns_its_input_as_bytes() -> None:
    spec = resolve_model("identity", batch=2)
    assert (spec.factor, spec.parameters, spec.card, spec.confidence) == (1, 0, None, False)
    assert spec.sha256 == "689f6a627384c7dcb2dcc1487e540223e77bdf9dcd0d8be8a326eda65b0ce9a4"
    sar = np.random.default_rng(0).uniform(-1, 1, (2, 3, 7, 9)).astype(np.float32)
    before = collect_telemetry().get("model_seconds", 0.0)
    translation = load_translator(spec).translate(sar, [(0, 0), (0, 9)])
    assert np.array_equal(translation.eo, to_eo_bytes(sar))
    assert translation.variance is None
    assert translation.spread is None
    assert collect_telemetry().get("model_seconds", 0.0) > before


def test_identity_of_several_samples_has_no_spread() -> None:
    translator = load_translator(resolve_model("identity", samples=3))
    translation = translator.translate(np.zeros((1, 3, 4, 5), np.float32), [(0, 0)])
    assert translation.spread is not None
    assert translation.spread.shape == (1, 4, 5)
    assert not translation.spread.any()


def test_identity_needs_neither_torch_nor_rasterio() -> None:
    code = (
        "import sys; from sar2eo.model.loading import load_translator; "
        "from sar2eo.model.spec import resolve_model; load_translator(resolve_model('identity')); "
        "print(*{'torch', 'rasterio', 'diffusers', 'huggingface_hub'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_options_default_to_the_cards(untrained: Path) -> None:
    spec = resolve(untrained)
    facts = describe_checkpoint(untrained)
    assert spec.path == str(untrained.resolve())
    assert spec.sha256 == facts["sha256"]
    assert spec.parameters == facts["parameters"]["total"]
    assert (spec.factor, spec.latent_channels) == (4, 4)
    assert spec.card == TranslatorCard.read(untrained)
    assert (spec.steps, spec.sampler, spec.spacing) == (20, "dpm++", "leading")
    assert (spec.seed, spec.samples, spec.batch) == (2025, 1, 1)
    assert spec.threads >= 1
    assert spec.confidence


def test_options_override_the_cards(untrained: Path) -> None:
    spec = resolve(
        str(untrained), steps=4, sampler="ddim", seed=7, samples=2, batch=3, threads=1, dtype="bfloat16"
    )
    assert (spec.steps, spec.sampler, spec.spacing) == (4, "ddim", "trailing")
    assert (spec.seed, spec.samples, spec.batch, spec.threads, spec.dtype) == (7, 2, 3, 1, "bfloat16")


def test_the_cards_temperature_goes_with_the_cards_steps(untrained: Path, tmp_path: Path) -> None:
    assert resolve(untrained).temperature == 1.0
    folder = tmp_path / "warm"
    shutil.copytree(untrained, folder)
    TranslatorCard.read(folder).with_changes(temperature=1.04).write(folder)
    assert resolve(folder).temperature == 1.04
    assert resolve(folder, sampler="dpm++", steps=20, seed=7).temperature == 1.04
    assert resolve(folder, steps=19).temperature == resolve(folder, sampler="ddim").temperature == 1.0
    assert resolve("identity").temperature == 1.0
    assert TranslatorCard.read(folder).with_changes(licence="MIT", steps=20).temperature == 1.04
    assert TranslatorCard.read(folder).with_changes(steps=50).temperature == 1.0
    assert TranslatorCard.read(folder).with_changes(sampler="ddim", temperature=1.1).temperature == 1.1


def test_older_cards_have_the_papers_temperature(untrained: Path, tmp_path: Path) -> None:
    raw = TranslatorCard.read(untrained).to_dict()
    assert raw.pop("temperature") == 1.0
    assert TranslatorCard.from_dict(raw) == TranslatorCard.read(untrained)
    with pytest.raises(CheckpointError, match="unknown or missing fields steps, temprature"):
        TranslatorCard.from_dict(
            {name: value for name, value in raw.items() if name != "steps"} | {"temprature": 1.0}
        )


@given(steps=st.integers(1, 1000), sampler=st.sampled_from(["ddim", "dpm++"]))
def test_leading_spacing_is_kept_only_where_it_starts_near_pure_noise(steps: int, sampler: str) -> None:
    spacing = resolve_spacing("leading", sampler, steps)
    scheduler = create_scheduler(sampler, spacing, "epsilon", read_schedule({}, set_alpha_to_one=True))
    scheduler.set_timesteps(steps)
    assert 900 <= int(scheduler.timesteps[0]) <= 999
    assert spacing == "leading" or resolve_spacing("trailing", sampler, steps) == "trailing"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, "trailing"),
        (9, "trailing"),
        (10, "leading"),
        (50, "leading"),
        (100, "leading"),
        (1000, "trailing"),
    ],
)
def test_few_steps_are_trailing(steps: int, expected: str) -> None:
    assert resolve_spacing("leading", "ddim", steps) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: must be 1 to 1000"),
        ({"samples": 0}, "samples=0"),
        ({"batch": -1}, "batch=-1"),
        ({"threads": 0}, "threads=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed="),
        ({"sampler": "euler"}, "sampler='euler': must be one of ddim, dpm"),
        ({"dtype": "int8"}, "dtype='int8': must be one of auto, float32, bfloat16, float16"),
        ({"device": "gpu"}, "device='gpu': must be auto, cpu, cuda or cuda:N"),
        ({"device": "cpu:1"}, "device='cpu:1'"),
        ({"device": "cuda:99"}, "this machine has"),
    ],
)
def test_options_that_are_not_allowed(untrained: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        resolve(untrained, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "no such folder, and not a hub id"),
        ("./owner/name", "no such folder, and not a hub id"),
        ("owner/never-fetched", "fetching it from the hub failed"),
        (Path("owner/name"), "no such folder"),
    ],
)
def test_models_that_are_not_there(model: str | Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        resolve(model)
    assert "\n" not in str(error.value)


def test_a_file_and_a_foreign_folder_are_refused(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        resolve(untrained / "sar2eo.json")
    with pytest.raises(CheckpointError, match="not a sar2eo checkpoint"):
        resolve(tmp_path)


def test_a_hub_id_is_found_offline(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--owner--name"
    shutil.copytree(untrained, cached / "snapshots" / ("1" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve("owner/name", revision="v1").sha256 == resolve(untrained).sha256
    with pytest.raises(CheckpointError, match="fetching it from the hub failed"):
        resolve("owner/name", revision="v2")


def test_a_spec_travels(untrained: Path) -> None:
    spec = resolve(untrained)
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert len(pickle.dumps(spec)) < 4000


def test_the_fingerprint_holds_what_changes_pixels(untrained: Path, tmp_path: Path) -> None:
    spec = resolve(untrained)
    assert json.loads(json.dumps(spec.fingerprint())) == spec.fingerprint()
    changes = {
        "sha256": "0" * 64,
        "steps": 3,
        "sampler": "ddim",
        "spacing": "trailing",
        "seed": 1,
        "samples": 2,
        "device": "cuda:0",
        "dtype": "bfloat16",
        "batch": 2,
        "compile": True,
        "threads": spec.threads + 1,
    }
    for name, value in changes.items():
        changed = dataclasses.replace(spec, **{name: value})  # type: ignore[arg-type]
        assert changed.fingerprint() != spec.fingerprint(), name
    elsewhere = resolve(Path(shutil.copytree(untrained, tmp_path / "elsewhere")))
    assert elsewhere.fingerprint() == spec.fingerprint()


def test_weights_are_loaded_once_and_old_ones_are_let_go(untrained: Path) -> None:
    spec = resolve(untrained)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_translator(spec), range(8)))
    assert all(translator is found[0] for translator in found)
    assert load_translator(dataclasses.replace(spec, seed=1)) is not found[0]
    assert load_translator(spec) is found[0]
    for seed in range(2, 5):
        load_translator(dataclasses.replace(spec, seed=seed))
    assert len(loading._LOADED) == 2
    assert load_translator(spec) is not found[0]


def test_a_checkpoint_that_changed_after_resolving_is_refused(untrained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(untrained, tmp_path / "copy"))
    spec = resolve(folder)
    dataclasses.replace(TranslatorCard.read(folder), gsd_m=10.0).write(folder)
    with pytest.raises(CheckpointError, match="changed since the run was prepared"):
        load_translator(spec)


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"avx2"}, "float32"), ({"avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16")]
)
def test_dtype_follows_the_processor(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: str
) -> None:
    monkeypatch.setattr("sar2eo.compute.device._cpu_flags", lambda: flags)
    assert resolve(untrained, dtype="auto").dtype == dtype


@pytest.mark.parametrize(
    ("capability", "free_gib", "dtype", "batch"),
    [
        ((8, 0), 40, "bfloat16", 8),
        ((7, 5), 15, "float16", 4),
        ((9, 0), 200, "bfloat16", 16),
        ((8, 6), 2, "bfloat16", 1),
    ],
)
def test_cuda_is_chosen_by_what_the_card_can(
    untrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    free_gib: int,
    dtype: str,
    batch: int,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free_gib * 2**30, 80 * 2**30))
    spec = resolve_model(untrained)
    assert (spec.device, spec.dtype, spec.batch) == ("cuda:0", dtype, batch)
    assert resolve_model(untrained, device="cuda:1").device == "cuda:1"
    with pytest.raises(SettingsError, match="this machine has 2 CUDA devices"):
        resolve_model(untrained, device="cuda:2")
