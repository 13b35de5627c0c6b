"""The diffusion translator on a checkpoint that means something: equalities, controls, samples, precision."""

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.model_fixtures import simulate_pair, to_model_input

import sar2eo.model.translator
from sar2eo.errors import CheckpointError, Sar2eoWarning, SettingsError
from sar2eo.geo.radiometry import to_eo_bytes
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import load_checkpoint
from sar2eo.model.creation import init_checkpoint
from sar2eo.model.interface import Translation
from sar2eo.model.loading import load_translator
from sar2eo.model.network import decode_latents, encode_images, split_prediction, to_variance
from sar2eo.model.noise import draw_scene_noise
from sar2eo.model.spec import ModelSpec, resolve_model
from sar2eo.model.translator import DiffusionTranslator

TILE = 96
ORIGINS = [(0, 0), (0, 64), (64, 0), (64, 64)]
FAST = {"device": "cpu", "dtype": "float32", "threads": 1, "steps": 4}

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pair() -> tuple[FloatArray, FloatArray]:
    return simulate_pair(160, 160, seed=4)


@pytest.fixture(scope="module")
def windows(pair: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Four overlapping windows of one scene, at ORIGINS."""
    scene = to_model_input(pair[0])
    return np.stack([scene[:, r : r + TILE, c : c + TILE] for r, c in ORIGINS])


def spec_of(checkpoint: Path, **options: Any) -> ModelSpec:
    return resolve_model(checkpoint, **FAST | options)


def run(checkpoint: Path, sar: FloatArray, origins: Sequence[tuple[int, int]], **options: Any) -> Translation:
    return load_translator(spec_of(checkpoint, **options)).translate(sar, origins)


def apart(a: Translation, b: Translation) -> npt.NDArray[np.int64]:
    return np.abs(a.eo.astype(np.int64) - b.eo)


def test_it_means_something(
    checkpoint: Path, pair: tuple[FloatArray, FloatArray], windows: FloatArray
) -> None:
    found = run(checkpoint, windows, ORIGINS, batch=4)
    truth = np.stack([pair[1][:, r : r + TILE, c : c + TILE] for r, c in ORIGINS])
    error = float(np.mean((found.eo / 255 - truth) ** 2))
    spread_of_truth = float(np.mean((truth - truth.mean(axis=(0, 2, 3), keepdims=True)) ** 2))
    assert error < 0.5 * spread_of_truth
    assert found.eo.shape == (4, 3, TILE, TILE)
    assert found.eo.dtype == np.uint8
    assert found.spread is None
    assert found.variance is not None
    assert found.variance.shape == (4, TILE // 4, TILE // 4)
    assert found.variance.dtype == np.float32
    assert found.variance.max() > 1.5 * found.variance.min() > 0


def test_it_equals_a_plain_loop(checkpoint: Path, windows: FloatArray) -> None:
    """DDIM by the equations (C-DiffSET, Eq. 1 and 4; DDIM, Eq. 12), v-prediction, trailing steps."""
    parts = load_checkpoint(checkpoint)
    alpha_bars = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    steps = [999, 749, 499, 249]
    with torch.inference_mode():
        condition = encode_images(parts.vae, torch.from_numpy(windows[1:2]))
        latents = torch.from_numpy(draw_scene_noise(2025, range(24), range(16, 40), 4))[None]
        for timestep, after in zip(steps, [*steps[1:], None], strict=True):
            inputs = torch.cat([condition, latents], dim=1)
            output = parts.unet(inputs, timestep, encoder_hidden_states=None).sample
            v, raw = split_prediction(output)
            if timestep == 499:  # nearest to the card's 500
                variance = to_variance(raw)
            here, there = alpha_bars[timestep], 1.0 if after is None else alpha_bars[after]
            clean = here**0.5 * latents - (1 - here) ** 0.5 * v
            noise = here**0.5 * v + (1 - here) ** 0.5 * latents
            latents = (there**0.5 * clean + (1 - there) ** 0.5 * noise).float()
        expected = to_eo_bytes(decode_latents(parts.vae, latents).numpy())
    found = run(checkpoint, windows[1:2], [(0, 64)], batch=1)
    assert np.abs(found.eo.astype(int) - expected).max() <= 1
    assert (found.eo != expected).mean() < 0.001
    np.testing.assert_allclose(found.variance, variance[:, 0].numpy(), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_window_does_not_depend_on_its_companions(
    checkpoint: Path, windows: FloatArray, dtype: str
) -> None:
    whole = run(checkpoint, windows, ORIGINS, batch=4, dtype=dtype)
    assert whole.variance is not None
    orders = ([3, 2, 1, 0], [1, 1, 3, 3], [2, 0])
    for order in orders:
        part = run(checkpoint, windows[order], [ORIGINS[i] for i in order], batch=4, dtype=dtype)
        assert part.variance is not None
        assert np.array_equal(part.eo, whole.eo[order]), order
        assert np.array_equal(part.variance, whole.variance[order]), order


def test_batch_sizes_agree_within_one_level(checkpoint: Path, windows: FloatArray) -> None:
    one = [run(checkpoint, windows[i : i + 1], ORIGINS[i : i + 1], batch=1, steps=25) for i in range(4)]
    four = run(checkpoint, windows, ORIGINS, batch=4, steps=25)
    assert np.abs(four.eo.astype(int) - np.concatenate([t.eo for t in one])).max() <= 1


def test_batch_sizes_agree_in_bfloat16_in_nearly_all_pixels(checkpoint: Path, windows: FloatArray) -> None:
    options = {"dtype": "bfloat16", "threads": 2}
    one = [run(checkpoint, windows[i : i + 1], ORIGINS[i : i + 1], batch=1, **options) for i in range(4)]
    four = run(checkpoint, windows, ORIGINS, batch=4, **options)
    apart_by = np.abs(four.eo.astype(int) - np.concatenate([t.eo for t in one]))
    assert (apart_by <= 1).mean() > 0.999


def test_precisions_agree_roughly(checkpoint: Path, windows: FloatArray) -> None:
    exact = run(checkpoint, windows, ORIGINS, batch=4)
    half = run(checkpoint, windows, ORIGINS, batch=4, dtype="bfloat16")
    assert apart(exact, half).mean() < 3
    assert apart(exact, half).any()


def test_noise_is_anchored_to_the_scene(checkpoint: Path, windows: FloatArray) -> None:
    same_place = run(checkpoint, windows[:1], [(640, 64)], batch=1)
    again = run(checkpoint, windows[:1], [(640, 64)], batch=1)
    elsewhere = run(checkpoint, windows[:1], [(640, 68)], batch=1)
    assert np.array_equal(same_place.eo, again.eo)
    assert (apart(same_place, elsewhere) > 1).mean() > 0.5


def test_overlapping_windows_agree_because_their_noise_does(checkpoint: Path, windows: FloatArray) -> None:
    anchored = run(checkpoint, windows[:2], ORIGINS[:2], batch=2)
    adrift = run(checkpoint, windows[:2], [(0, 0), (4000, 4000)], batch=2)

    def seam(found: Translation) -> float:
        inner = slice(12, 20)  # of the 32 columns both windows see
        left, right = found.eo[0, :, :, 64:].astype(int), found.eo[1, :, :, :32].astype(int)
        return float(np.abs(left - right)[..., inner].mean())

    assert seam(anchored) < 0.75 * seam(adrift)


def test_another_seed_and_another_scene_change_most_pixels(checkpoint: Path, windows: FloatArray) -> None:
    found = run(checkpoint, windows, ORIGINS, batch=4)
    other_seed = run(checkpoint, windows, ORIGINS, batch=4, seed=7)
    other_scene = run(checkpoint, windows[::-1].copy(), ORIGINS, batch=4)
    assert (apart(found, other_seed) > 1).mean() > 0.5
    assert (apart(found, other_scene) > 1).mean() > 0.8


def test_samplers_agree_in_the_limit_and_steps_matter(checkpoint: Path, windows: FloatArray) -> None:
    ddim, dpm = (run(checkpoint, windows, ORIGINS, batch=4, steps=50, sampler=s) for s in ("ddim", "dpm++"))
    few = run(checkpoint, windows, ORIGINS, batch=4, steps=2)
    assert apart(ddim, dpm).mean() < 4
    assert apart(ddim, few).mean() > 2 * apart(ddim, dpm).mean()


def test_the_temperature_is_that_of_the_noise_it_starts_from(
    checkpoint: Path, windows: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = tmp_path / "warm"
    shutil.copytree(checkpoint, warm)
    TranslatorCard.read(warm).with_changes(steps=4, temperature=1.5).write(warm)
    found, plain = (run(folder, windows, ORIGINS, batch=4) for folder in (warm, checkpoint))
    assert (found.eo != plain.eo).mean() > 0.5
    monkeypatch.setattr(
        sar2eo.model.translator, "draw_scene_noise", lambda *given: np.float32(1.5) * draw_scene_noise(*given)
    )
    louder = run(checkpoint, windows, ORIGINS, batch=4)
    np.testing.assert_array_equal(found.eo, louder.eo)


def test_samples_are_averaged_and_their_spread_measured(
    checkpoint: Path, windows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = run(checkpoint, windows[:1], ORIGINS[:1], batch=1, samples=2)
    first = run(checkpoint, windows[:1], ORIGINS[:1], batch=1)

    def second_noise(seed: int, rows: range, cols: range, channels: int, sample: int = 0) -> FloatArray:
        return draw_scene_noise(seed, rows, cols, channels, sample + 1)

    monkeypatch.setattr(sar2eo.model.translator, "draw_scene_noise", second_noise)
    second = run(checkpoint, windows[:1], ORIGINS[:1], batch=1)
    assert (apart(first, second) > 1).mean() > 0.5
    mean = (first.eo.astype(float) + second.eo) / 2
    assert np.abs(both.eo - mean).max() <= 1
    assert both.spread is not None
    assert both.spread.shape == (1, TILE, TILE)
    spread = np.abs(first.eo.astype(float) - second.eo).mean(axis=1) / 2**0.5
    np.testing.assert_allclose(both.spread, spread, atol=1)
    assert first.variance is not None
    assert second.variance is not None
    np.testing.assert_allclose(both.variance, (first.variance + second.variance) / 2, rtol=1e-5)


def test_any_multiple_of_the_factor_is_a_tile(checkpoint: Path, windows: FloatArray) -> None:
    found = run(checkpoint, windows[:1, :, :36, :44], [(4, 8)], batch=1)
    assert found.eo.shape == (1, 3, 36, 44)
    assert found.variance is not None
    assert found.variance.shape == (1, 9, 11)


def test_what_does_not_fit_is_refused(checkpoint: Path, windows: FloatArray) -> None:
    with pytest.raises(SettingsError, match="4 tiles with 4 origins: must be 1 to 2"):
        run(checkpoint, windows, ORIGINS, batch=2)
    with pytest.raises(SettingsError, match="2 tiles with 1 origins"):
        run(checkpoint, windows[:2], ORIGINS[:1], batch=2)
    with pytest.raises(SettingsError, match="multiples of the model's factor 4"):
        run(checkpoint, windows[:1], [(0, 2)], batch=2)
    with pytest.raises(SettingsError, match=r"tiles of 30 x 96 pixels"):
        run(checkpoint, windows[:1, :, :30], [(0, 0)], batch=2)


def test_windows_that_a_unet_cannot_halve_evenly_are_refused(tmp_path: Path, windows: FloatArray) -> None:
    region = init_checkpoint(tmp_path / "region", size="region")
    with pytest.raises(SettingsError, match="wants tiles that are multiples of 32"):
        run(region, windows[:1, :, :48, :64], [(0, 0)], batch=1)


def test_windows_that_overflow_in_half_precision_are_decoded_again(
    checkpoint: Path, windows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(checkpoint, windows, ORIGINS, batch=4, dtype="float16")
    seen = []

    def overflowing(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        images = decode_latents(vae, latents)
        seen.append((vae.dtype, images.clone()))
        if vae.dtype == torch.float16:
            images[1, 0, 5, 5] = float("nan")
            images[3, 2, 0, 0] = float("inf")
        return images

    monkeypatch.setattr(sar2eo.model.translator, "decode_latents", overflowing)
    found = DiffusionTranslator(spec_of(checkpoint, batch=4, dtype="float16")).translate(windows, ORIGINS)
    assert [dtype for dtype, _ in seen] == [torch.float16, torch.float32]
    exact = to_eo_bytes(seen[1][1].numpy())
    assert np.array_equal(found.eo[[0, 2]], plain.eo[[0, 2]])
    assert np.array_equal(found.eo[[1, 3]], exact[[1, 3]])
    assert not np.array_equal(exact[[1, 3]], plain.eo[[1, 3]])


def test_values_that_are_not_finite_are_an_error(
    checkpoint: Path, windows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sar2eo.model.translator, "decode_latents", lambda vae, z: decode_latents(vae, z) * float("nan")
    )
    with pytest.raises(CheckpointError, match="not finite in float32"):
        run(checkpoint, windows[:1], ORIGINS[:1], batch=1)


def test_threads_of_the_pool_use_the_threads_of_the_spec(checkpoint: Path, windows: FloatArray) -> None:
    spec = spec_of(checkpoint, batch=1, threads=2)
    here = load_translator(spec).translate(windows[:1], ORIGINS[:1])

    def there() -> tuple[int, Translation]:
        return torch.get_num_threads(), load_translator(spec).translate(windows[:1], ORIGINS[:1])

    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as pool:
        before, found = pool.submit(there).result()
        assert pool.submit(torch.get_num_threads).result() == 2
    assert before in (1, 2)
    assert np.array_equal(here.eo, found.eo)


class StandIn(torch.nn.Module):
    """Has the weights of a U-Net, and computes something else."""

    def __init__(self, unet: Any, call: Callable[..., Any]) -> None:
        super().__init__()
        self.unet, self.call = unet, call

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.call(*arguments, **options)


def stand_in(
    translator: DiffusionTranslator, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet: Any = StandIn(translator.checkpoint.unet, call)
    networks = dataclasses.replace(translator.checkpoint, unet=unet)
    monkeypatch.setattr(translator, "_networks", networks)


def test_a_batch_that_memory_does_not_hold_is_halved(
    checkpoint: Path, windows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CUDA device whose memory others use as well; the same on any device."""
    translator = load_translator(spec_of(checkpoint, batch=4, samples=2))
    assert isinstance(translator, DiffusionTranslator)
    whole, unet, seen = translator.translate(windows, ORIGINS), translator.checkpoint.unet, []

    def small(inputs: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append(len(inputs))
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return unet(inputs, *arguments, **options)

    stand_in(translator, small, monkeypatch)
    monkeypatch.setattr(translator, "_at_once", 4)
    with pytest.warns(Sar2eoWarning) as warned:
        halved = translator.translate(windows, ORIGINS)
    assert [str(w.message).split("here on ")[1][0] for w in warned] == ["2", "1"]
    assert seen[:3] == [4, 2, 1]
    assert apart(whole, halved).max() <= 1
    assert whole.spread is not None
    assert halved.spread is not None
    np.testing.assert_allclose(halved.spread, whole.spread, atol=0.1)
    assert halved.variance is not None
    np.testing.assert_allclose(halved.variance, whole.variance, rtol=1e-3)
    seen.clear()
    translator.translate(windows[:3], ORIGINS[:3])
    assert set(seen) == {1}  # what it has learned it keeps

    def none(inputs: torch.Tensor, *_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    stand_in(translator, none, monkeypatch)
    with pytest.raises(SettingsError, match=r"cpu has too little memory for one tile of 96 x 96 pixels"):
        translator.translate(windows, ORIGINS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler in itself
def test_what_a_compiler_runs_out_of_or_lacks_is_told_as_without_it(
    checkpoint: Path, windows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = load_translator(spec_of(checkpoint, batch=2))
    assert isinstance(translator, DiffusionTranslator)

    def fail_with(error: Exception) -> None:
        def failing(*_: object) -> Any:
            raise error

        torch.compiler.reset()
        call = torch.compile(lambda inputs, *_, **__: inputs + 1, backend=failing)
        stand_in(translator, call, monkeypatch)
        monkeypatch.setattr(translator, "_at_once", 2)

    fail_with(RuntimeError("no g++ was found\nin all of these places"))
    with pytest.raises(
        SettingsError, match=r"cannot be compiled \(RuntimeError: no g\+\+ was found\): is there"
    ):
        translator.translate(windows[:2], ORIGINS[:2])
    fail_with(torch.OutOfMemoryError("out of memory"))
    with (
        pytest.warns(Sar2eoWarning, match="from here on 1 tiles"),
        pytest.raises(SettingsError, match="too little memory for one tile"),
    ):
        translator.translate(windows[:2], ORIGINS[:2])


def test_one_translation_at_a_time_per_device(
    checkpoint: Path, windows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(checkpoint, batch=1)
    translators = [DiffusionTranslator(dataclasses.replace(spec, seed=seed)) for seed in (1, 2)]
    running, most = 0, 0
    guard = threading.Lock()

    def watched(*_: object) -> str:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with guard:
            running -= 1
        return "done"

    monkeypatch.setattr(DiffusionTranslator, "_translate", watched)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(t.translate, windows[:1], ORIGINS[:1]) for t in translators * 4]
        assert [job.result() for job in jobs] == ["done"] * 8
    assert most == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler in itself
def test_a_compiled_network_agrees(checkpoint: Path, windows: FloatArray) -> None:
    eager = run(checkpoint, windows, ORIGINS, batch=4)
    compiled = run(checkpoint, windows, ORIGINS, batch=4, compile=True)
    assert apart(eager, compiled).max() <= 1
