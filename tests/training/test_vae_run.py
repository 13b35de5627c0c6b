"""`train_vae` and ``sar2eo train-vae``: from pairs to weights that a checkpoint can be made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support.dataset_fixtures import built_pairs

import sar2eo
from sar2eo.cli import cli
from sar2eo.errors import SettingsError, TrainingError, TrainingWarning
from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.settings import DataSettings, VaeRecipe, VaeSettings
from sar2eo.training.vae_run import prepare_vae_training, train_vae

QUICK: dict[str, Any] = {
    "latent_channels": 2,
    "widths": (8, 16, 16),
    "steps": 6,
    "batch": 2,
    "crop": 32,
    "lr": 2e-3,
    "warmup": 2,
    "adversarial": 0.5,
    "adversarial_from": 0.5,
    "ema": 0.5,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "validate_every": 3,
    "save_every": 2,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_vae(pairs, out, **QUICK)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")


def records(run: Path, part: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["part"] == part]


def test_a_run_leaves_a_vae_to_make_a_checkpoint_of(run: Path, tmp_path: Path) -> None:
    words = ["model", "init", "--size", "tiny", "--vae", str(run / "final"), "--zero-terminal-snr"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    checkpoint = load_checkpoint(tmp_path / "model")
    assert checkpoint.schedule["rescale_betas_zero_snr"] is True
    assert checkpoint.vae.config.latent_channels == 2
    for name, tensor in weights(run / "final").items():
        assert torch.equal(checkpoint.vae.state_dict()[name], tensor)
    notes = json.loads((run / "final" / "vae.json").read_text())
    assert notes["steps"] == 6
    assert set(notes["metrics"]) > {"eo_psnr", "sar_psnr", "eo_power_0", "score"}
    assert (run / "best" / "vae.json").is_file()


def test_the_adversary_joins_and_every_part_is_recorded(run: Path) -> None:
    train = records(run, "train")
    assert ["discriminator/loss" in line for line in train] == [False] * 3 + [True] * 3
    assert train[0].keys() > {"vae/eo_l1", "vae/sar_gradient", "vae/kl", "vae/posterior_std", "vae/loss"}
    assert "vae/adversarial" in train[-1]
    assert [line["step"] for line in records(run, "validation")] == [3, 6]
    assert sorted(path.name for path in (run / "pictures").iterdir()) == [
        "step-000003.png",
        "step-000006.png",
    ]


def test_a_resumed_run_is_bit_for_bit_the_same(pairs: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"

    def stop(counts: Any) -> None:
        if counts["steps"] == 5:  # after the state of step 4, past the adversary's joining
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_vae(pairs, out, **QUICK, progress=stop)
    assert not (out / "final").exists()
    steps: list[float] = []
    train_vae(pairs, out, **QUICK, progress=lambda counts: steps.append(counts["steps"]))
    assert steps == [5, 6]
    expected = weights(run / "final")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out / "final").items())
    config = "final/vae/config.json"
    assert (out / config).read_text() == (run / config).read_text()
    with pytest.raises(TrainingError, match=r"begun with settings\.kl"):
        train_vae(pairs, out, **QUICK | {"kl": 0.1})


def test_without_validation_pairs_it_says_so(tmp_path: Path) -> None:
    pairs = built_pairs(tmp_path / "pairs", counts={"train": 2})
    settings = QUICK | {"steps": 1, "warmup": 0, "adversarial": 0.0}
    with pytest.warns(TrainingWarning, match="trains without validation"):
        final = train_vae(pairs, tmp_path / "run", **settings)
    assert json.loads((final / "vae.json").read_text())["metrics"] == {}


def test_images_that_are_no_multiple_of_the_factor_are_cropped_to_one(tmp_path: Path) -> None:
    """As those of SpaceNet 6, 900 pixels, with the usual factor of 8."""
    prepared = prepare_vae_training(
        VaeRecipe(
            data=DataSettings(pairs=str(built_pairs(tmp_path / "pairs", size=50))),
            out=str(tmp_path / "run"),
            settings=VaeSettings(**QUICK),
        )
    )
    assert prepared.pairs.shape == (32, 32)
    assert prepared.held_out is not None
    assert prepared.held_out.shape == (48, 48)


def test_what_cannot_be_is_refused_before_anything_is_written(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SettingsError, match="30 x 30 pixels: the VAE's factor is 4"):
        train_vae(pairs, out, **QUICK | {"crop": 30})
    with pytest.raises(SettingsError, match="unknown width; known are"):
        train_vae(DataSettings(pairs=str(pairs)), out, VaeSettings(), width=3)
    assert not out.exists()


def test_the_command_takes_a_recipe_overrides_and_flags(pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "vae.toml"
    recipe.write_text(
        f'[train-vae]\nout = "{tmp_path / "run"}"\n[train-vae.data]\npairs = "nowhere"\n'
        "[train-vae.settings]\ncrop = 32\nbatch = 2\nsteps = 50\nwarmup = 2\nthreads = 1\n"
        'device = "cpu"\ndtype = "float32"\n'
    )
    words = [
        "train-vae",
        "--recipe",
        str(recipe),
        "--set",
        "train-vae.settings.lr=0.001",
        "--pairs",
        str(pairs),
    ]
    words += ["--widths", "8,16", "--latent-channels", "2", "--steps", "2", "--images", "eo"]
    dry = CliRunner().invoke(cli, [*words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    told = " ".join(dry.output.split())
    for fact in ("widths 8, 16", "steps 2", "lr 0.001", "batch 2", "images eo", "6 train pairs", "factor 2"):
        assert fact in told
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "final: 2 steps in " in done.output
    assert "eo_psnr " in done.output
    assert "were done before" in CliRunner().invoke(cli, words).output
    assert weights(tmp_path / "run" / "final")["encoder.conv_in.weight"].shape == (8, 3, 3, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "run"], "give either --pairs (a folder)"),
        (["--out", "run", "--pairs", "a", "--dataset", "qxs"], "either --pairs (a folder), or --dataset"),
        (["--pairs", "a"], "missing --out"),
        (
            ["--out", "run", "--pairs", "a", "--widths", "8x16"],
            "must be whole numbers with commas between them",
        ),
        (["--out", "run", "--pairs", "a", "--set", "train-vae.settings.lrate=1"], "unknown lrate"),
    ],
)
def test_slips_on_the_command_line_are_named(words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["train-vae", *words])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_it_is_exported() -> None:
    assert sar2eo.train_vae is train_vae
