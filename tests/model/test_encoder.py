"""The SAR encoder, and checkpoints that have one: what they take, how they sample, what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support.encoder_fixtures import encoder_checkpoint
from support.scenes import scene_array

import sar2eo
from sar2eo.errors import CheckpointError, PolarisationError
from sar2eo.geo.radiometry import choose_recorded
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import describe_checkpoint, load_checkpoint, save_checkpoint
from sar2eo.model.creation import pack_checkpoint
from sar2eo.model.diffusion import create_scheduler, sample
from sar2eo.model.network import SarCondition

FAST = {"device": "cpu", "dtype": "float32", "threads": 1, "tile": 64, "overlap": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_checkpoint(tmp_path_factory.mktemp("encoder") / "model")


def tile(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.2, (1, 1, 64, 64)).astype(np.float32))


def test_both_polarisations_give_the_mean_of_what_each_gives(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    co, cross, none = tile(1), tile(2), torch.full((1, 1, 64, 64), -1.0)
    with torch.no_grad():
        alone = [model.encode_sar(torch.cat(bands, 1)) for bands in ((co, none, co), (none, cross, cross))]
        both = model.encode_sar(torch.cat([co, cross, (co + cross) / 2], 1))
    assert both.latents.shape == (1, 4 + 4 + 1, 8, 8)
    assert both.guess is not None
    for found, parts in ((both.latents, [a.latents for a in alone]), (both.guess, [a.guess for a in alone])):
        torch.testing.assert_close(found, torch.stack(parts).mean(0))
    assert not torch.allclose(*(a.guess for a in alone))  # it knows which one it sees
    assert torch.equal(both.latents[:, -1:], torch.ones(1, 1, 8, 8))
    asked = both.with_trust(0)
    assert torch.equal(asked[:, :-1], both.latents[:, :-1])
    assert not asked[:, -1].any()


@pytest.mark.parametrize("others", [0, 1])
def test_a_tile_without_power_is_encoded_as_well(checkpoint: Path, others: int) -> None:
    model, none = load_checkpoint(checkpoint), torch.full((1, 3, 64, 64), -1.0)
    seen = torch.cat([none[:, :1], tile(1), tile(1)], 1)
    assert model.encoder is not None
    with torch.no_grad():
        latents, guess = model.encoder(torch.cat([none, seen][: 1 + others]))
    assert latents.shape == (1 + others, 4, 8, 8)
    assert bool(latents.isfinite().all() and guess.isfinite().all())


def test_sampling_starts_from_the_guess_under_the_noise_of_its_timestep(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    scheduler = create_scheduler("ddim", "trailing", "v_prediction", model.schedule)
    draw = torch.Generator().manual_seed(3)
    latents, guess, noise = (torch.randn(2, c, 8, 8, generator=draw) for c in (9, 4, 4))
    calls = []

    def predict(
        sar: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((sar, noisy, int(timestep)))
        return 0.1 * noisy, torch.zeros(2, 1, 8, 8)

    found, variance = sample(
        predict, SarCondition(latents, guess), noise, scheduler, 2, 300, temperature=0.5, start=500
    )
    bars = scheduler.alphas_cumprod
    x = bars[499].sqrt() * guess + (1 - bars[499]).sqrt() * 0.5 * noise
    for now, after in ((bars[499], bars[249]), (bars[249], torch.tensor(1.0))):
        clean = now.sqrt() * x - (1 - now).sqrt() * 0.1 * x
        drawn = now.sqrt() * 0.1 * x + (1 - now).sqrt() * x
        x = after.sqrt() * clean + (1 - after).sqrt() * drawn
    torch.testing.assert_close(found, x)
    assert [timestep for *_, timestep in calls] == [499, 249, 300]
    # The variance is that of what is known: without trust in the guess, at the timestep of the card.
    assert not calls[2][0][:, -1].any()
    torch.testing.assert_close(calls[2][1], bars[300].sqrt() * guess + (1 - bars[300]).sqrt() * noise)
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_it_is_saved_packed_and_described_whole(checkpoint: Path, tmp_path: Path) -> None:
    described = describe_checkpoint(checkpoint)
    assert set(described["parameters"]) == {"unet", "vae", "encoder", "total"}
    packed = pack_checkpoint(checkpoint, tmp_path / "packed")
    one, other = load_checkpoint(checkpoint), load_checkpoint(packed)
    assert one.encoder is not None
    assert other.encoder is not None
    for name, value in one.encoder.state_dict().items():
        torch.testing.assert_close(other.encoder.state_dict()[name], value.half().float(), msg=name)
    (packed / "encoder/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"encoder/config\.json is missing"):
        load_checkpoint(packed)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoder": True}, 'encoder=True, must be true with scaling "db", else false'),
        ({"scaling": "db"}, 'encoder=False, must be true with scaling "db"'),
        ({"start": 500}, "start=500, must be 1000 to 1000"),
        ({"encoder": True, "scaling": "db", "start": 500}, "start=500, must be 1000"),  # leading spacing
        ({"encoder": True, "scaling": "db", "spacing": "trailing", "start": 0}, "start=0, must be 1 to 1000"),
    ],
)
def test_cards_that_make_no_sense_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        TranslatorCard(name="x", **fields)  # type: ignore[arg-type]


def test_an_encoder_of_other_latents_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(checkpoint)
    assert model.encoder is not None
    other = type(model.encoder)(sar_channels=4, latent_channels=3, widths=(8, 16), inner=16)
    with pytest.raises(CheckpointError, match="the encoder guesses 3 latent channels: the VAE has 4"):
        save_checkpoint(dataclasses.replace(model, encoder=other), tmp_path / "out")


def scene(
    name: str = "VH", *, place: tuple[int, int] = (0, 0), side: int = 192
) -> "sar2eo.accessor.xr.DataArray":
    values = 10 * np.log10(np.random.default_rng(5).gamma(4, 0.02 / 4, (1, 192, 192))).astype(np.float32)
    row, col = place
    cut = values[:, row : row + side, col : col + side]
    array = scene_array(cut, quantity="db", polarisations=(name,))
    return array.assign_coords(y=array.y.values - 10 * row, x=array.x.values + 10 * col)


@pytest.mark.parametrize(("name", "like"), [("HH", "VV"), ("HV", "VH")])
def test_one_polarisation_will_do_and_horizontal_ones_count_as_their_kind(
    checkpoint: Path, name: str, like: str
) -> None:
    found = sar2eo.translate(scene(name), checkpoint, **FAST)
    assert np.array_equal(found.eo.values, sar2eo.translate(scene(like), checkpoint, **FAST).eo.values)
    other = sar2eo.translate(scene("VV" if like == "VH" else "VH"), checkpoint, **FAST)
    assert not np.array_equal(found.eo.values, other.eo.values)


def test_a_cut_out_gets_the_level_and_the_noise_of_its_place(checkpoint: Path) -> None:
    whole = sar2eo.translate(scene(), checkpoint, **FAST)
    part = sar2eo.translate(scene(place=(48, 96), side=96), checkpoint, **FAST)
    assert np.array_equal(part.amplitude_divisor, whole.amplitude_divisor)
    # The part's first tile is one of the whole's, too; here no other one reaches.
    same = whole.eo.values[:, 64:80, 112:128].astype(int) - part.eo.values[:, 16:32, 16:32]
    assert np.abs(same).max() <= 1


def test_other_polarisations_are_refused() -> None:
    with pytest.raises(PolarisationError, match="the scene has RH, the model takes VV, VH, or one of them"):
        choose_recorded(["RH"], ("VV", "VH"), (("VV",), ("VH",), ("VV", "VH")))
