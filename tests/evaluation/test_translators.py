"""The whole evaluation on a small model that means something: figures, report, refusals, command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from support.command_line import run
from support.dataset_fixtures import built_pairs
from support.evaluation_fixtures import simulated_pairs

import sar2eo
from sar2eo.datasets import collate, open_dataset
from sar2eo.errors import EvaluationWarning, OutputError, PairsError, SettingsError
from sar2eo.evaluation.model_probe import ModelImages, Probe
from sar2eo.evaluation.translators import adapt_pairs, plan_evaluation
from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model.card import TranslatorCard
from sar2eo.model.interface import Translation
from sar2eo.model.spec import resolve_model
from sar2eo.model.translator import DiffusionTranslator
from sar2eo.settings import DataSettings, EvaluateSettings

QUICK: dict[str, Any] = {"threads": 1, "dtype": "float32", "steps": 3}
PICTURES = ("contact_sheet", "confidence", "denoising", "octaves", "calibration", "steps")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_pairs(tmp_path_factory.mktemp("pairs") / "pairs")


@pytest.fixture(scope="module")
def report(checkpoint: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "report"
    returned = sar2eo.evaluate(
        checkpoint, pairs, out, samples=2, sweep_steps=(1, 3), upper_bound=True, **QUICK
    )
    assert returned == read(out)
    return out


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_the_model_beats_the_baselines_and_not_its_bound(report: Path) -> None:
    methods = read(report)["methods"]
    assert set(methods) == {"model", "model, mean of 2", "mean-colour", "sar-grey", "vae-upper-bound"}
    for name in ("psnr", "psnr_pooled", "psnr_8px", "psnr_pooled_8px", "ssim"):
        worst = min(methods["model"][name], methods["model, mean of 2"][name])
        assert methods["vae-upper-bound"][name] > worst
        assert worst > max(methods["mean-colour"][name], methods["sar-grey"][name])
    assert methods["model, mean of 2"]["psnr"] > methods["model"]["psnr"]
    assert methods["model"]["images"] == 14
    assert methods["model"]["seconds_per_image"] > 0
    assert methods["model"]["ciede2000"] < methods["sar-grey"]["ciede2000"]
    assert methods["model"]["octaves"][-1]["correlation"] > 0.8
    assert methods["model"]["scenes"]["sar.tif"]["psnr"] == pytest.approx(methods["model"]["psnr"])


def test_the_controls_tell_that_the_radar_is_looked_at_and_the_variance_means_something(report: Path) -> None:
    found = read(report)
    assert found["shuffle"]["model"]["cost_db"] > 3
    assert found["calibration"]["timestep"] == 500
    assert 0.5 < found["calibration"]["ratio"] < 2
    assert found["calibration"]["rank_correlation"] > 0.1
    errors = [group["error"] for group in found["calibration"]["quantiles"]]
    assert errors[-1] > 2 * errors[0]


def test_the_picture_shows_what_the_radar_shows(report: Path) -> None:
    found = read(report)
    methods = found["methods"]
    for name in ("structure", "grey", "correlation_8px", "gain_8px"):
        assert methods["vae-upper-bound"][name] >= methods["model"][name]
        low, high = methods["model"]["intervals"][name]
        assert low <= methods["model"][name] <= high
    assert methods["model"]["structure"] > 0.5
    assert methods["mean-colour"]["structure"] == methods["mean-colour"]["grey"] == 0
    assert methods["mean-colour"]["correlation_8px"] is None
    assert methods["mean-colour"]["gain_8px"] < 0.1 < methods["model"]["gain_8px"]
    assert methods["model"]["octaves"][-1]["agreement"] > 0.8
    assert "agreement" not in methods["vae-upper-bound"]["octaves"][0]
    # Where there is a hole nothing is searched.
    holes = [row["structure"] is None for row in found["pairs"]]
    assert 0 < sum(holes) < len(holes)


def test_figures_of_a_pair_are_those_of_scikit_image(checkpoint: Path, pairs: Path, report: Path) -> None:
    dataset = open_dataset(DataSettings(pairs=str(pairs)), "test")
    images = ModelImages(resolve_model(checkpoint, device="cpu", **QUICK))
    whole = next(i for i in range(len(dataset)) if dataset[i]["valid"].all())
    batch = collate([dataset[whole]])
    truth = (batch["eo"][0].permute(1, 2, 0).double().numpy() + 1) / 2
    drawn = [(images.draw(batch, n).eo[0].permute(1, 2, 0).double().numpy() + 1) / 2 for n in (0, 1)]
    row = read(report)["pairs"][whole]
    assert row["id"] == batch["id"][0]
    expected = np.mean([peak_signal_noise_ratio(truth, image, data_range=1) for image in drawn])
    assert row["psnr"] == pytest.approx(expected, abs=1e-4)
    expected = np.mean(
        [
            structural_similarity(
                *(truth, image),
                data_range=1,
                channel_axis=2,
                gaussian_weights=True,
                use_sample_covariance=False,
            )
            for image in drawn
        ]
    )
    assert row["ssim"] == pytest.approx(expected, abs=1e-4)


def test_the_report_says_what_was_done(report: Path, checkpoint: Path) -> None:
    found = read(report)
    assert found["models"]["model"]["sha256"] == resolve_model(checkpoint).sha256
    assert found["models"]["model"]["steps"] == 3
    assert found["settings"]["protocol"] == "usual"
    assert found["data"]["pairs"] == found["data"]["of"] == 7
    assert len(found["data"]["fingerprint"]) == 64
    assert {"sar2eo", "torch", "torchmetrics", "scikit-image"} <= set(found["software"])
    assert [row["steps"] for row in found["sweep"]] == [1, 3]
    for name in PICTURES:
        with Image.open(report / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture).std() > 5
    text = (report / "report.md").read_text()
    assert "| PSNR (dB, mean of images) |" in text
    for name in PICTURES:
        assert f"({name}.png)" in text
    assert {path.name for path in report.iterdir()} == {
        "metrics.json",
        "report.md",
        *(f"{name}.png" for name in PICTURES),
    }


def test_fewer_pairs_are_judged_the_same(checkpoint: Path, pairs: Path, report: Path, tmp_path: Path) -> None:
    found = sar2eo.evaluate(checkpoint, pairs, tmp_path / "few", limit=3, against=(), samples=2, **QUICK)
    whole = {row["id"]: row for row in read(report)["pairs"]}
    assert len(found["pairs"]) == 3
    for row in found["pairs"]:
        assert row == whole[row["id"]]
    other = sar2eo.evaluate(checkpoint, pairs, tmp_path / "other", limit=3, against=(), seed=1, **QUICK)
    assert other["methods"]["model"]["psnr"] != found["methods"]["model"]["psnr"]


def test_a_sweep_takes_the_steps_it_says(checkpoint: Path, pairs: Path, report: Path, tmp_path: Path) -> None:
    settings = QUICK | {"steps": 1}
    found = sar2eo.evaluate(checkpoint, pairs, tmp_path / "one", against=(), **settings)
    swept = read(report)["sweep"][0]
    assert swept["psnr"] == pytest.approx(found["methods"]["model"]["psnr"], abs=1e-9)
    assert swept["psnr"] != read(report)["sweep"][1]["psnr"]


def test_the_protocol_of_the_release(pairs: Path, tmp_path: Path) -> None:
    found = sar2eo.evaluate("identity", pairs, tmp_path / "r", protocol="release", against=(), threads=1)
    dataset = open_dataset(DataSettings(pairs=str(pairs)), "test")
    errors, values = 0.0, 0.0
    for i in range(len(dataset)):
        sample = dataset[i]
        sar, eo = ((sample[name].double() + 0.5).clamp(0, 1) for name in ("sar", "eo"))
        errors += float(((sar - eo).square() * sample["valid"]).sum())
        values += 3 * float(sample["valid"].sum())
    pooled = found["methods"]["model"]["psnr_pooled"]
    assert pooled == pytest.approx(-10 * np.log10(errors / values), abs=0.02)
    usual = sar2eo.evaluate("identity", pairs, tmp_path / "u", against=("sar-grey",), threads=1)
    assert abs(usual["methods"]["model"]["psnr_pooled"] - pooled) > 1
    grey = usual["methods"]["sar-grey"]["psnr_pooled"]
    assert usual["methods"]["model"]["psnr_pooled"] == pytest.approx(grey, abs=0.02)
    assert usual["calibration"] is None
    assert not (tmp_path / "u" / "denoising.png").exists()


@pytest.fixture(scope="module")
def probe(checkpoint: Path) -> tuple[Probe, ModelImages]:
    images = ModelImages(resolve_model(checkpoint, device="cpu", **QUICK))
    assert isinstance(images.translator, DiffusionTranslator)
    return Probe(images.translator.checkpoint, images.spec), images


def test_the_last_estimate_on_the_way_is_the_image(probe: tuple[Probe, ModelImages], pairs: Path) -> None:
    batch = collate([open_dataset(DataSettings(pairs=str(pairs)), "test")[4]])
    timesteps, images = probe[0].trace_denoising(batch["sar"][0], batch["index"][0])
    assert timesteps == sorted(timesteps, reverse=True)
    assert len(images) == 3
    drawn = probe[1].draw(batch).eo[0]
    assert (images[-1] - drawn).abs().max() <= 1.01 / 127.5
    assert (images[0] - drawn).abs().max() > 0.1
    assert len(probe[0].trace_denoising(batch["sar"][0], 4, count=2)[0]) == 2


def test_sides_are_padded_to_what_the_network_wants_and_cut_back(checkpoint: Path, pairs: Path) -> None:
    class Coarse:
        multiple = 32

        def translate(self, sar: Any, origins: Any) -> Translation:
            assert not any(side % self.multiple for side in sar.shape[2:])
            rows, cols = (side // spec.factor for side in sar.shape[2:])
            return Translation(to_eo_bytes(sar), np.ones((len(sar), rows, cols), np.float32), None)

        def with_steps(self, steps: int) -> "Coarse":
            return self

    spec = resolve_model(checkpoint, device="cpu", **QUICK)
    batch = collate([open_dataset(DataSettings(pairs=str(pairs)), "test").sample(0, 0)])
    drawn = ModelImages(spec, Coarse()).draw(batch)
    assert drawn.eo.shape == batch["eo"].shape
    assert drawn.variance is not None
    assert drawn.variance.shape[1:] == tuple(-(-side // spec.factor) for side in batch["eo"].shape[2:])


def test_pairs_of_another_kind_than_the_models_are_told(pairs: Path) -> None:
    dataset = open_dataset(DataSettings(pairs=str(pairs)), "test")
    own = TranslatorCard(name="own", polarisations=dataset.polarisations, gsd_m=dataset.gsd_m)
    assert adapt_pairs(own, dataset).channels == dataset.channels
    other = TranslatorCard(name="other", polarisations=("HV",), gsd_m=0.5, scaling=255.0)
    with pytest.warns(
        EvaluationWarning, match=r"polarisations .* for HV; pixels of .* for 0\.5 m; scaling p99"
    ):
        adapt_pairs(other, dataset)


def test_each_model_sees_its_own_channels(checkpoint: Path, tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", polarisations=("VH", "VV"), counts={"test": 3}, holes=False)
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    card = json.loads((other / "sar2eo.json").read_text())
    card |= {"polarisations": ["VH"], "channels": [["VH"]] * 3}
    (other / "sar2eo.json").write_text(json.dumps(card))
    request = plan_evaluation(
        checkpoint, pairs, tmp_path / "out", EvaluateSettings(against=(str(other),)), overwrite=False
    )
    assert request.seen["model"].channels == TranslatorCard.read(checkpoint).channels == (("VV",),) * 3
    assert request.seen[str(other)].channels == (("VH",),) * 3
    quick = {**QUICK, "against": (str(other),)}
    both = sar2eo.evaluate(checkpoint, pairs, tmp_path / "both", **quick)
    alone = sar2eo.evaluate(other, pairs, tmp_path / "alone", **{**quick, "against": ()})
    assert both["methods"][str(other)]["psnr"] == pytest.approx(alone["methods"]["model"]["psnr"], abs=1e-6)
    assert both["methods"]["model"]["psnr"] != pytest.approx(alone["methods"]["model"]["psnr"], abs=1e-3)


def test_what_cannot_be_written_is_refused_before_any_work(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "report", tmp_path / "file" / "deep" / "er"):
        with pytest.raises(OutputError, match="is not a writable folder"):
            plan_evaluation("identity", pairs, out)
    plan_evaluation("identity", pairs, tmp_path / "new" / "folders" / "report")
    assert not (tmp_path / "new").exists()


def test_what_is_invalid_calibrates_nothing(probe: tuple[Probe, ModelImages], pairs: Path) -> None:
    dataset = open_dataset(DataSettings(pairs=str(pairs)), "test")
    holed = next(i for i in range(len(dataset)) if not dataset[i]["valid"].all())
    forced = probe[0].predict_from_truth(collate([dataset[holed]]))
    assert forced.variance.shape == forced.error.shape == forced.valid.shape == (1, 17, 17)  # 66 / 4, padded
    assert not forced.valid[0, :2, :4].any()
    assert not forced.valid[0, 16].any()  # half of it is padding
    assert forced.valid[0, 3:16, 5:16].all()
    assert (forced.error >= 0).all()


def test_what_needs_networks_or_training_pairs_is_left_out(pairs: Path, tmp_path: Path) -> None:
    from support.dataset_fixtures import built_pairs

    built_pairs(tmp_path / "test_only", counts={"test": 2}, size=32)
    with pytest.warns(EvaluationWarning) as told:
        found = sar2eo.evaluate(
            "identity", tmp_path / "test_only", tmp_path / "out", metrics=("psnr", "lpips", "fid"), threads=1
        )
    assert set(found["left_out"]) == {"mean-colour", "lpips", "fid"}
    assert len(told) == 3
    assert "psnr" in found["methods"]["model"]
    assert "ssim" not in found["methods"]["model"]
    assert "--lpips-weights" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"against": ("mean-color",)}, SettingsError, "neither a baseline .*mean-colour.* nor a model"),
        ({"against": ("model",)}, SettingsError, "./model"),
        ({"sweep_steps": (1, 2)}, SettingsError, "nor steps"),
        ({"upper_bound": True}, SettingsError, "neither a VAE"),
        ({"metrics": ("psmr",)}, SettingsError, "psmr"),
        ({"samples": 0}, SettingsError, "at least 1"),
        ({"sample": 2}, SettingsError, "unknown sample; known are"),
        ({"split": "val", "data": "no/pairs"}, PairsError, "no/pairs"),
        ({"lpips_weights": "a.pth", "metrics": ("lpips",)}, SettingsError, "safetensors"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    changes: dict[str, Any], error: type[Exception], words: str, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        sar2eo.evaluate(**{"model": "identity", "data": pairs, "out": tmp_path / "out"} | changes)
    assert not list(tmp_path.iterdir())


def test_existing_reports_are_replaced_on_request_only(
    report: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "report", tmp_path / "mine"
    shutil.copytree(report, out)
    other.mkdir()
    quick: dict[str, Any] = {"against": (), "threads": 1, "limit": 1}
    with pytest.raises(OutputError, match="exists already"):
        sar2eo.evaluate("identity", pairs, out, **quick)
    with pytest.raises(OutputError, match="not a report"):
        sar2eo.evaluate("identity", pairs, other, overwrite=True, **quick)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sar2eo.evaluation.report.draw_pictures", fail)
        with pytest.raises(OutputError, match="no space"):
            sar2eo.evaluate("identity", pairs, out, overwrite=True, **quick)
    assert read(out) == read(report)
    sar2eo.evaluate("identity", pairs, out, overwrite=True, **quick)
    assert list(read(out)["methods"]) == ["model"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "report"]


def test_threads_are_given_back(pairs: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    sar2eo.evaluate("identity", pairs, tmp_path / "out", against=(), limit=1, threads=1)
    assert torch.get_num_threads() == before


def test_progress_counts_up_to_all_pairs(pairs: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    sar2eo.evaluate(
        "identity", pairs, tmp_path / "out", threads=1, progress=lambda *counts: told.append(counts)
    )
    assert {("model", 7, 7), ("baselines", 7, 7)} <= set(told)
    assert ("mean-colour", 6, 6) in told
    assert all(done <= total for _, done, total in told)


def test_a_plan_checks_and_counts(checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(sweep_steps=(1, 2), samples=2, limit=4)
    plan = plan_evaluation(checkpoint, pairs, tmp_path / "out", settings).describe()
    assert plan["pairs"] == 4
    assert plan["images_to_draw"] == 4 * 2 + 4 * 2
    assert not list(tmp_path.iterdir())


def test_the_command_line(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    common = ("evaluate", "--model", "identity", "--pairs", pairs, "--out", out, "--threads", "1")
    planned = run(*common, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "images_to_draw" in planned.output.replace(" ", "_")
    assert not out.exists()
    done = run(
        *common,
        "--against",
        "sar-grey",
        "identity",
        "--limit",
        "2",
        "--metrics",
        "psnr,scc",
        "--protocol",
        "release",
    )
    assert done.exit_code == 0, done.output
    assert f"{out}: PSNR over 2 pairs: model " in done.stdout
    found = read(out)
    assert list(found["methods"]) == ["model", "identity", "sar-grey"]
    assert found["settings"]["metrics"] == ["psnr", "scc"]
    again = run(*common)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    wrong = run(*common, "--metrics", "psmr")
    assert wrong.exit_code == 2
    assert "psmr" in wrong.stderr


def test_the_recipe_says_what_it_would_do() -> None:
    path = Path(__file__).parents[2] / "pipelines" / "evaluate.toml"
    done = run(
        "run",
        path,
        "--dry-run",
        "--set",
        "evaluate.data.pairs=no/such/pairs",
        "--set",
        "evaluate.model=identity",
    )
    assert done.exit_code == 2  # identity has neither VAE nor steps
    assert "upper_bound" in done.stderr
