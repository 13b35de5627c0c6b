"""Calibration, the shuffle control, baselines and the noise of pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sar2eo.errors import PairsError
from sar2eo.evaluation.model_probe import ModelImages, pad_to_multiple
from sar2eo.evaluation.scores import (
    Measures,
    ScoreKeeper,
    ShuffleControl,
    compute_calibration,
    compute_mean_colour,
    predict_constant,
    predict_sar_grey,
)
from sar2eo.evaluation.translators import spread_evenly, spread_over_places
from sar2eo.model.spec import resolve_model


def test_calibration_by_hand() -> None:
    found = compute_calibration([4.0, 1.0, 2.0, 3.0], [8.0, 1.0, 3.0, 4.0], quantiles=2)
    assert found["quantiles"] == [
        {"variance": 1.5, "error": 2.0, "values": 2},
        {"variance": 3.5, "error": 6.0, "values": 2},
    ]
    assert found["ratio"] == pytest.approx(16 / 10)
    assert found["rank_correlation"] == pytest.approx(1)


def test_calibrated_errors_have_ratio_one_in_every_quantile() -> None:
    draw = np.random.default_rng(1)
    variance = draw.uniform(0.1, 5, 200_000)
    found = compute_calibration(variance, variance * draw.standard_normal(200_000) ** 2)
    assert found["ratio"] == pytest.approx(1, abs=0.02)
    for group in found["quantiles"]:
        assert group["error"] == pytest.approx(group["variance"], rel=0.05)
    unrelated = compute_calibration(variance, draw.permutation(variance))
    assert abs(unrelated["rank_correlation"]) < 0.02


def test_a_constant_variance_has_no_rank() -> None:
    found = compute_calibration(np.ones(7), np.arange(7.0), quantiles=3)
    assert np.isnan(found["rank_correlation"])
    assert sum(group["values"] for group in found["quantiles"]) == 7


def images(count: int, seed: int) -> torch.Tensor:
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16))
    return torch.from_numpy(levels).float() / 127.5 - 1


def test_shuffling_costs_who_knows_and_not_who_guesses() -> None:
    truth, valid = images(6, 1), torch.ones(6, 1, 16, 16)
    knows, guesses = ShuffleControl(seed=3), ShuffleControl(seed=3)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    for i in range(6):
        knows.add((truth[i] + 0.1 * noise[i]).clamp(-1, 1), truth[i], valid[i], i)
        guesses.add(torch.zeros(3, 16, 16), truth[i], valid[i], i)
    found = knows.summarise("usual")
    assert found is not None
    assert found["pairs"] == 6
    assert found["cost_db"] > 10
    assert found["cost_8px_db"] > 10
    assert found["cost_db"] == pytest.approx(found["psnr"] - found["psnr_shuffled"])
    blind = guesses.summarise("usual")
    assert blind is not None
    assert blind["cost_db"] == 0
    assert blind["cost_8px_db"] == 0


def test_no_pair_is_held_against_its_own_truth() -> None:
    for count in (2, 3, 5):
        control = ShuffleControl(seed=count)
        for number, image in enumerate(images(count, count)):
            control.add(image, image, torch.ones(1, 16, 16), number)
        found = control.summarise("usual")
        assert found is not None
        assert np.isnan(found["psnr"])  # of an image and itself there is none
        assert found["psnr_shuffled"] < 15
    alone = ShuffleControl(seed=1)
    alone.add(images(1, 1)[0], images(1, 1)[0], torch.ones(1, 16, 16), 0)
    assert alone.summarise("usual") is None


def test_shuffling_takes_the_truth_of_other_ground() -> None:
    ground = [0, 0, 0, 1, 1, 2]
    scenes = images(3, 7)
    control = ShuffleControl(4, lambda a, b: ground[a] != ground[b])
    for number, place in enumerate(ground):
        control.add(scenes[place], scenes[place], torch.ones(1, 16, 16), number)
    found = control.summarise("usual")
    assert found is not None
    assert found["pairs"] == 6
    assert found["psnr_shuffled"] < 15
    same = ShuffleControl(4, lambda a, b: False)
    for number in range(3):
        same.add(scenes[0], scenes[0], torch.ones(1, 16, 16), number)
    assert same.summarise("usual") is None


def samples(valid: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"eo": image, "valid": v} for image, v in zip(images(len(valid), 5), valid, strict=True)]


def test_mean_colour_is_that_of_valid_pixels() -> None:
    valid = torch.ones(4, 1, 16, 16)
    valid[0, :, :8] = 0
    stored = samples(valid)
    expected = torch.cat([s["eo"][:, s["valid"][0] > 0] for s in stored], dim=1).mean(1)
    found = compute_mean_colour(stored)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    drawn = predict_constant(found)({"eo": torch.zeros(2, 3, 5, 7)})
    assert drawn.shape == (2, 3, 5, 7)
    assert (drawn == found.view(1, 3, 1, 1)).all()
    with pytest.raises(PairsError, match="no valid pixel"):
        compute_mean_colour(samples(torch.zeros(2, 1, 16, 16)))  # type: ignore[arg-type]


def test_sar_grey_is_the_mean_of_its_channels() -> None:
    sar = images(2, 6)
    grey = predict_sar_grey({"sar": sar, "eo": torch.zeros_like(sar)})
    assert grey.shape == sar.shape
    torch.testing.assert_close(grey[:, 1], sar.mean(1))


@given(count=st.integers(1, 200), limit=st.none() | st.integers(1, 250))
def test_positions_spread_evenly(count: int, limit: int | None) -> None:
    found = spread_evenly(count, limit)
    assert len(found) == len(set(found.tolist())) == min(count, limit or count)
    assert found[0] == 0
    assert found[-1] == (count - 1 if len(found) > 1 else 0)
    assert np.ptp(np.diff(found)) <= 1 if len(found) > 2 else True


def test_pairs_spread_over_places() -> None:
    places = ["b"] * 2 + ["a"] * 9 + ["c"]
    assert spread_over_places(places, 12) == list(range(12))
    assert spread_over_places(places, 6) == [0, 1, 2, 6, 10, 11]
    assert spread_over_places(places, 2) == [2, 11]
    assert spread_over_places([str(n) for n in range(100)], 12)[-1] == 99


def test_figures_of_the_picture_are_those_of_all_blocks() -> None:
    truth, valid = images(3, 8), torch.ones(3, 1, 16, 16)
    prediction = (0.5 * truth + 0.1 * images(3, 9)).clamp(-1, 1)
    batch = {"eo": truth, "valid": valid, "id": ["a", "b", "c"], "index": [2, 0, 1]}
    measures = Measures(("psnr",), "usual", ["x", "x", "y"], np.zeros((3, 2)))
    judge = ScoreKeeper(measures)
    judge.add(prediction, batch)
    found = judge.summarise()
    coarse = [((image + 1) / 2).unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)) for image in (prediction, truth)]
    p, t = (image.double().numpy() for image in coarse)
    error, spread = ((p - t) ** 2).mean(), ((t - t.mean((0, 2, 3), keepdims=True)) ** 2).mean()
    assert found["gain_8px"] == pytest.approx(10 * np.log10(spread / error), rel=1e-4)
    grey = [np.tensordot([0.299, 0.587, 0.114], image, (0, 1)).ravel() for image in (p, t)]
    assert found["correlation_8px"] == pytest.approx(np.corrcoef(*grey)[0, 1], rel=1e-4)
    low, high = found["intervals"]["gain_8px"]
    assert low <= found["gain_8px"] <= high
    # Too small for crops.
    assert np.isnan([found["structure"], *found["intervals"]["grey"]]).all()
    assert {place: part["images"] for place, part in found["scenes"].items()} == {"x": 2, "y": 1}


def test_draws_that_share_nothing_do_not_agree() -> None:
    truth, valid = (
        torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)),
        torch.ones(2, 1, 64, 64),
    )
    batch = {"eo": truth, "valid": valid, "id": ["a", "b"], "index": [0, 1]}
    for second, agreement in ((truth, 1), (truth.flip(3), 0)):
        judge = ScoreKeeper(Measures(("psnr",), "usual", [None, None], np.zeros((2, 2))))
        judge.add(truth, batch)
        judge.compare_draws(truth, second, valid)
        assert judge.summarise()["octaves"][0]["agreement"] == pytest.approx(agreement, abs=0.05)


@given(rows=st.integers(1, 20), cols=st.integers(1, 20), factor=st.sampled_from([1, 4, 8]))
def test_padding_keeps_the_image_and_reaches_the_factor(rows: int, cols: int, factor: int) -> None:
    image = torch.rand(1, 3, rows, cols)
    whole = pad_to_multiple(image, factor)
    assert whole.shape[2] % factor == whole.shape[3] % factor == 0
    assert whole.shape[2] - rows < factor
    assert torch.equal(whole[..., :rows, :cols], image)
    outside = pad_to_multiple(torch.ones(1, 1, rows, cols), factor, value=0.0)
    assert outside.sum() == rows * cols


def test_images_of_a_model_are_its_own_whatever_the_batch() -> None:
    spec = resolve_model("identity", batch=2)
    batch = {"sar": images(5, 7)[..., :13], "index": [3, 1, 4, 0, 2]}
    drawn = ModelImages(spec).draw(batch)
    torch.testing.assert_close(drawn.eo, batch["sar"], atol=1e-6, rtol=0)
    assert drawn.variance is None
