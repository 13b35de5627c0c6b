"""The adapted U-Net, its two outputs, and the scaling of latents."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.model.folder import wants_prompt
from sar2eo.model.network import (
    adapt_unet,
    add_variance_channel,
    create_autoencoder,
    create_unet,
    create_vae,
    decode_latents,
    double_input,
    encode_images,
    latent_multiple,
    split_prediction,
    to_variance,
)


@pytest.fixture
def plain_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_input_weights_are_repeated_and_halved(plain_unet: UNet2DConditionModel) -> None:
    weight, bias = plain_unet.conv_in.weight.clone(), plain_unet.conv_in.bias.clone()
    unet = double_input(plain_unet)
    assert unet.conv_in.weight.shape == (8, 8, 3, 3)
    assert torch.equal(unet.conv_in.weight[:, :4], weight / 2)
    assert torch.equal(unet.conv_in.weight[:, 4:], weight / 2)
    assert torch.equal(unet.conv_in.bias, bias)
    assert unet.config.in_channels == 8


def test_variance_channel_starts_at_zero_and_leaves_the_others(plain_unet: UNet2DConditionModel) -> None:
    weight, bias = plain_unet.conv_out.weight.clone(), plain_unet.conv_out.bias.clone()
    unet = add_variance_channel(plain_unet)
    assert torch.equal(unet.conv_out.weight[:4], weight)
    assert torch.equal(unet.conv_out.bias[:4], bias)
    assert not unet.conv_out.weight[4].any()
    assert unet.conv_out.bias[4] == 0
    assert unet.config.out_channels == 5


def test_two_equal_latents_are_predicted_as_one_was_with_variance_one(
    plain_unet: UNet2DConditionModel,
) -> None:
    latents, prompt = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 12)
    with torch.no_grad():
        before = plain_unet(latents, 7, encoder_hidden_states=prompt).sample
        output = adapt_unet(plain_unet)(
            torch.cat([latents, latents], 1), 7, encoder_hidden_states=prompt
        ).sample
    prediction, raw = split_prediction(output)
    torch.testing.assert_close(prediction, before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_variance(raw), torch.ones(2, 1, 8, 8))


def test_adapting_twice_is_refused(plain_unet: UNet2DConditionModel) -> None:
    with pytest.raises(CheckpointError, match="8 channels in and 5 out"):
        adapt_unet(adapt_unet(plain_unet))


def test_variance_starts_at_one_and_keeps_its_range() -> None:
    raw = torch.tensor([0.0, -100.0, 100.0, 1.0])
    softplus = math.log1p(math.exp(1.0 + math.log(math.expm1(1 - 1e-6))))
    expected = torch.tensor([1.0, 1e-6, 10.0, softplus + 1e-6])
    torch.testing.assert_close(to_variance(raw), expected)
    assert to_variance(raw.bfloat16()).dtype == torch.float32


def test_prediction_is_split_in_float32() -> None:
    output = torch.arange(10.0).view(2, 5, 1, 1).bfloat16()
    prediction, raw = split_prediction(output)
    assert prediction.flatten(1).tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert raw.flatten().tolist() == [4, 9]
    assert prediction.dtype == raw.dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "low", "high"), [("tiny", 1e6, 2e6), ("small", 15e6, 20e6), ("region", 18e6, 20e6)]
)
def test_untrained_architectures_have_their_size_and_shapes(size: str, low: float, high: float) -> None:
    channels = {"tiny": 4, "small": 4, "region": 12}[size]
    height, width = (64, 96) if size == "region" else (72, 88)
    vae, unet = create_vae(size), create_unet(size, channels)
    assert low < parameters(vae, unet) < high
    with torch.no_grad():
        latents = encode_images(vae, torch.zeros(1, 3, height, width))
        output = unet(torch.cat([latents, latents], 1), 5, encoder_hidden_states=None).sample
    factor = {"tiny": 4, "small": 8, "region": 8}[size]
    assert latents.shape == (1, channels, height // factor, width // factor)
    assert output.shape == (1, channels + 1, height // factor, width // factor)
    assert not output[:, channels].any()


def test_a_region_attends_to_itself_at_its_two_lower_levels() -> None:
    unet = create_unet("region", 8)
    attending = [len(getattr(block, "attentions", ())) for block in (*unet.down_blocks, *unet.up_blocks)]
    assert attending == [0, 1, 1, 2, 2, 0]
    assert not wants_prompt(unet.config)
    assert latent_multiple(unet.config) == 4
    assert latent_multiple(create_unet("tiny").config) == 1
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):  # what the multiple is for
        unet(torch.zeros(1, 16, 8, 6), 5, encoder_hidden_states=None)


@pytest.mark.parametrize(
    ("widths", "groups"), [((32, 64, 96, 128), 16), ((16, 32, 48), 16), ((24, 36), 12), ((5, 7), 1)]
)
def test_an_autoencoder_has_the_most_groups_that_divide_its_widths(
    widths: tuple[int, ...], groups: int
) -> None:
    vae = create_autoencoder(3, widths, layers=2)
    assert vae.config.norm_num_groups == groups
    with torch.no_grad():
        latents = encode_images(vae, torch.zeros(1, 3, 24, 40))
    factor = 2 ** (len(widths) - 1)
    assert latents.shape == (1, 3, 24 // factor, 40 // factor)


def test_a_deep_compression_autoencoder_knows_its_neighbourhood_alone() -> None:
    """Without normalisation over the image, a far change leaves a place as it is."""
    torch.manual_seed(0)
    vae = create_autoencoder(4, (8, 16), architecture="dc").eval()
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 48:] = -1
    with torch.no_grad():
        latents, others = encode_images(vae, images), encode_images(vae, changed)
        assert latents.shape == (1, 4, 32, 32)
        decoded = decode_latents(vae, latents)
        torch.testing.assert_close(latents[..., :16], others[..., :16], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            decoded[..., :16], decode_latents(vae, others)[..., :16], atol=1e-6, rtol=0
        )
    assert not torch.allclose(latents[..., 28:], others[..., 28:])
    assert decoded.shape == images.shape


@pytest.mark.parametrize(("channels", "widths"), [(5, (8, 16)), (4, (8, 24)), (4, (8, 64))])
def test_a_deep_compression_autoencoder_needs_widths_that_divide(
    channels: int, widths: tuple[int, ...]
) -> None:
    with pytest.raises(SettingsError, match="the shortcuts of a dc autoencoder need"):
        create_autoencoder(channels, widths, architecture="dc")


def test_unknown_size_is_refused() -> None:
    with pytest.raises(SettingsError, match="'huge': must be one of tiny, small, region"):
        create_unet("huge")


def kl_vae(**config: object) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, **config).eval()


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 0.5}, [0.0, 0.0], [0.5, 0.5]),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, [0.25, 0.25], [0.5, 0.5]),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [4.0, 8.0]},
            [1, 2],
            [0.125, 0.0625],
        ),
    ],
)
def test_latents_are_scaled_as_the_vae_says(
    config: dict[str, object], shift: list[float], scale: list[float]
) -> None:
    vae, images = kl_vae(**config), torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        raw = vae.encode(images).latent_dist.mode()
        found = encode_images(vae, images)
        expected = (raw - torch.tensor(shift).view(1, 2, 1, 1)) * torch.tensor(scale).view(1, 2, 1, 1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(decode_latents(vae, found), vae.decode(raw).sample, atol=1e-5, rtol=1e-5)


def test_on_a_cpu_an_image_does_not_depend_on_its_companions() -> None:
    vae, images = kl_vae(), torch.rand(3, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        latents = encode_images(vae, images)
        decoded = decode_latents(vae, latents)
        for k in range(3):
            assert torch.equal(latents[k : k + 1], encode_images(vae, images[k : k + 1]))
            assert torch.equal(decoded[k : k + 1], decode_latents(vae, latents[k : k + 1]))
        expected = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_tiny_autoencoder_is_a_vae_too() -> None:
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=2.0)
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(encode_images(vae, images), vae.encode(images).latents * 2)
        assert decode_latents(vae, torch.zeros(1, 4, 4, 4)).shape == (1, 3, 8, 8)


def test_latents_and_images_are_float32_whatever_the_vae() -> None:
    vae = torch.nn.Module.to(kl_vae(), torch.bfloat16)
    with torch.no_grad():
        latents = encode_images(vae, torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))
        assert latents.dtype == decode_latents(vae, latents).dtype == torch.float32
