"""Checkpoints made, imported, saved and read; and everything broken that must be refused."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load, save_file
from support.base_fixtures import stable_diffusion_folder
from transformers import CLIPTextModel, CLIPTokenizer

from sar2eo.errors import CheckpointError, OutputError, SettingsError
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import describe_checkpoint, load_checkpoint, save_checkpoint, verify_checkpoint
from sar2eo.model.creation import import_checkpoint, init_checkpoint, pack_checkpoint
from sar2eo.model.network import create_autoencoder

SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_checkpoint(tmp_path_factory.mktemp("made") / "made", base=base, polarisations=("VH",))


@pytest.fixture
def broken(made: Path, tmp_path: Path) -> Path:
    """A copy of a sound checkpoint, for breaking."""
    return Path(shutil.copytree(made, tmp_path / "broken"))


def read(path: Path) -> dict[str, torch.Tensor]:
    return load(path.read_bytes())  # not mapped, so that the file may be written over


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_init_adapts_the_base(base: Path, made: Path) -> None:
    before = read(base / "unet" / WEIGHTS)
    checkpoint = load_checkpoint(made)
    after = checkpoint.unet.state_dict()
    assert torch.equal(after["conv_in.weight"], torch.cat([before["conv_in.weight"]] * 2, dim=1) / 2)
    assert torch.equal(after["conv_out.weight"][:4], before["conv_out.weight"])
    assert not after["conv_out.weight"][4].any()
    for name in before.keys() - {"conv_in.weight", "conv_out.weight", "conv_out.bias"}:
        assert torch.equal(after[name], before[name]), name
    vae = read(base / "vae" / WEIGHTS)
    assert all(torch.equal(value, vae[name]) for name, value in checkpoint.vae.state_dict().items())
    assert checkpoint.card.polarisations == ("VH",)
    assert checkpoint.card.name == "made"
    assert checkpoint.schedule["set_alpha_to_one"] is True
    assert checkpoint.schedule["beta_end"] == 0.012
    assert not checkpoint.unet.training


def test_an_untrained_base_keeps_all_but_the_unet(base: Path, made: Path, tmp_path: Path) -> None:
    paths = [init_checkpoint(tmp_path / name, base=base, untrained=True) for name in ("a", "b")]
    first, second, pretrained = (load_checkpoint(path) for path in (*paths, made))
    weights = first.unet.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in second.unet.state_dict().items())
    assert not torch.equal(weights["conv_in.weight"], pretrained.unet.state_dict()["conv_in.weight"])
    assert not weights["conv_out.weight"][-1].any()
    assert all(torch.equal(v, first.vae.state_dict()[n]) for n, v in pretrained.vae.state_dict().items())
    assert torch.equal(first.prompt_embeds, pretrained.prompt_embeds)
    with pytest.raises(SettingsError, match="goes with a base"):
        init_checkpoint(tmp_path / "c", size="tiny", untrained=True)


def test_prompt_is_embedded_without_padding(base: Path, made: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    tokens = tokenizer("electro-optical image").input_ids
    assert (tokens[0], tokens[-1], len(tokens)) == (0, 1, 21)  # start, end, and no padding after it
    with torch.no_grad():
        expected = encoder(torch.tensor([tokens])).last_hidden_state
    found = load_checkpoint(made).prompt_embeds
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_plain_diffusers_loads_unet_vae_and_scheduler(made: Path) -> None:
    unet, info = UNet2DConditionModel.from_pretrained(made / "unet", output_loading_info=True)
    assert (unet.config.in_channels, unet.config.out_channels) == (8, 5)
    vae, vae_info = AutoencoderKL.from_pretrained(made / "vae", output_loading_info=True)
    for found in (info, vae_info):
        assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_checkpoint(made)
    latents = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        expected = ours.unet(latents, 5, encoder_hidden_states=ours.prompt_embeds).sample
        found = unet(latents, 5, encoder_hidden_states=ours.prompt_embeds).sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        images = vae.decode(latents[:, :4]).sample
        torch.testing.assert_close(images, ours.vae.decode(latents[:, :4]).sample, atol=1e-5, rtol=1e-5)
    scheduler = DDIMScheduler.from_pretrained(made / "scheduler")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert scheduler.config.clip_sample is False


def test_a_checkpoint_holds_these_files_and_no_text_encoder(made: Path) -> None:
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()) == [
        "model_index.json",
        "prompt_embeds.safetensors",
        "sar2eo.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{WEIGHTS}",
        "vae/config.json",
        f"vae/{WEIGHTS}",
    ]


def test_no_path_of_this_machine_is_written(base: Path, made: Path) -> None:
    for path in made.rglob("*.json"):
        assert str(base) not in path.read_text(), path.name


def test_base_in_half_precision_predicting_v(tmp_path: Path) -> None:
    folder = stable_diffusion_folder(tmp_path / "base", half=True, prediction_type="v_prediction")
    checkpoint = load_checkpoint(init_checkpoint(tmp_path / "out", base=folder))
    half = read(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert checkpoint.card.prediction_type == "v_prediction"
    assert checkpoint.unet.dtype == torch.float32
    assert torch.equal(checkpoint.unet.conv_out.bias[:4], half["conv_out.bias"].float())


def test_base_with_a_tiny_autoencoder(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    shutil.rmtree(folder / "vae")
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    AutoencoderTiny(**widths, **blocks).save_pretrained(folder / "vae")
    out = init_checkpoint(tmp_path / "out", base=folder)
    assert isinstance(load_checkpoint(out).vae, AutoencoderTiny)
    assert describe_checkpoint(out)["vae"] == {
        "class": "AutoencoderTiny",
        "factor": 4,
        "latent_channels": 4,
        "scaling_factor": 1.0,
    }


def test_untrained_sizes_are_the_same_every_time(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (init_checkpoint(tmp_path / name, size="tiny", name="x") for name in ("a", "b"))
    assert describe_checkpoint(first)["sha256"] == describe_checkpoint(second)["sha256"]
    assert torch.equal(torch.get_rng_state(), state)
    facts = describe_checkpoint(first)
    assert facts["parameters"]["total"] < 2_000_000
    assert facts["unet"]["prompt"] is False
    assert not (first / "prompt_embeds.safetensors").exists()
    assert load_checkpoint(first).prompt_embeds is None


@pytest.mark.parametrize("architecture", ["kl", "dc"])
def test_an_untrained_unet_is_made_for_the_latents_of_a_trained_vae(
    tmp_path: Path, architecture: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(6)
    vae = create_autoencoder(3, (12, 24), architecture=architecture)
    vae.register_to_config(latents_mean=[1.0, 2.0, 3.0], latents_std=[1.0, 2.0, 4.0], scaling_factor=1.0)
    vae.save_pretrained(tmp_path / "final" / "vae")
    state = torch.get_rng_state()
    out = init_checkpoint(
        tmp_path / "out", size="region", vae=tmp_path / "final", zero_terminal_snr=True, polarisations=("VH",)
    )
    assert torch.equal(torch.get_rng_state(), state)
    loaded = load_checkpoint(out)
    assert (loaded.unet.config.in_channels, loaded.unet.config.out_channels) == (6, 4)
    assert loaded.vae.config.latents_std == [1.0, 2.0, 4.0]
    assert torch.equal(loaded.vae.decoder.conv_out.weight, vae.decoder.conv_out.weight)
    assert (loaded.card.prediction_type, loaded.card.spacing) == ("v_prediction", "trailing")
    assert loaded.schedule["rescale_betas_zero_snr"] is True
    assert loaded.prompt_embeds is None
    # A checkpoint's own VAE serves as well, and the U-Net is the same every time.
    again = load_checkpoint(init_checkpoint(tmp_path / "again", size="region", vae=out))
    assert torch.equal(again.unet.conv_in.weight, loaded.unet.conv_in.weight)
    assert again.schedule["rescale_betas_zero_snr"] is False
    assert again.card.prediction_type == "epsilon"
    assert "latents_mean" not in capfd.readouterr().err  # a warning that tells users nothing


def test_vaes_and_schedules_that_do_not_go_together_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="goes with a size"):
        init_checkpoint(tmp_path / "out", base=base, vae=base)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        init_checkpoint(tmp_path / "out", size="region", vae=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="zero terminal SNR needs v_prediction"):
        init_checkpoint(tmp_path / "out", size="tiny", zero_terminal_snr=True, prediction_type="epsilon")
    assert not (tmp_path / "out").exists()


def test_a_packed_checkpoint_has_half_the_bytes_and_another_card(made: Path, tmp_path: Path) -> None:
    out = pack_checkpoint(made, tmp_path / "packed", steps=8, licence="CC-BY-4.0")
    facts, before = describe_checkpoint(out), describe_checkpoint(made)
    assert facts["card"] == before["card"] | {"steps": 8, "licence": "CC-BY-4.0"}
    for part in ("unet", "vae"):
        weights = (folder / part / "diffusion_pytorch_model.safetensors" for folder in (made, out))
        full, half = (read(path) for path in weights)
        assert {tensor.dtype for tensor in half.values()} == {torch.float16}
        assert all(torch.equal(half[name], tensor.half()) for name, tensor in full.items())
    assert load_checkpoint(out).unet.dtype == torch.float32


def test_a_packed_checkpoint_may_have_another_decoder_and_no_other_encoder(
    made: Path, tmp_path: Path
) -> None:
    vae = load_checkpoint(made).vae
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    vae.save_pretrained(tmp_path / "decoder" / "vae")
    measured = tmp_path / "measured"
    shutil.copytree(made, measured)
    TranslatorCard.read(measured).with_changes(metrics={"validation_psnr": 20.0}).write(measured)
    assert TranslatorCard.read(pack_checkpoint(measured, tmp_path / "same")).metrics == {
        "validation_psnr": 20.0
    }
    packed = pack_checkpoint(measured, tmp_path / "out", dtype="float32", vae=tmp_path / "decoder")
    assert TranslatorCard.read(packed).metrics == {}
    assert TranslatorCard.read(pack_checkpoint(measured, tmp_path / "slower", steps=51)).metrics == {}
    assert torch.equal(load_checkpoint(packed).vae.decoder.conv_out.bias, vae.decoder.conv_out.bias)
    for change in ("weights", "scaling"):
        if change == "weights":
            with torch.no_grad():
                vae.encoder.conv_in.bias += 1
        else:
            vae = load_checkpoint(made).vae
            vae.register_to_config(scaling_factor=0.5)
        vae.save_pretrained(tmp_path / change / "vae")
        with pytest.raises(CheckpointError, match="its encoder is not that of"):
            pack_checkpoint(made, tmp_path / "other", vae=tmp_path / change)


def test_what_cannot_be_packed_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dtype='int8': must be one of float16"):
        pack_checkpoint(made, tmp_path / "out", dtype="int8")
    with pytest.raises(SettingsError, match=r"card: .*'stepz'"):
        pack_checkpoint(made, tmp_path / "out", stepz=1)
    loaded = load_checkpoint(made)
    with torch.no_grad():
        loaded.unet.conv_in.bias[0] = 1e6
    large = save_checkpoint(loaded, tmp_path / "large")
    with pytest.raises(CheckpointError, match="do not fit into float16: try bfloat16"):
        pack_checkpoint(large, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert pack_checkpoint(large, tmp_path / "out", dtype="bfloat16").is_dir()


def test_describe(made: Path) -> None:
    facts = describe_checkpoint(made)
    files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    # What `sha256sum FILES | sha256sum` prints.
    listing = "".join(f"{hashlib.sha256((made / name).read_bytes()).hexdigest()}  {name}\n" for name in files)
    assert facts["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    checkpoint = load_checkpoint(made)
    assert facts["parameters"]["unet"] == sum(p.numel() for p in checkpoint.unet.parameters())
    assert facts["parameters"]["vae"] == sum(p.numel() for p in checkpoint.vae.parameters())
    assert facts["unet"]["channels_in"] == 8
    assert facts["card"]["polarisations"] == ["VH"]
    assert json.loads(json.dumps(facts)) == facts


def test_a_readme_does_not_change_the_hash_but_the_card_does(made: Path, broken: Path) -> None:
    (broken / "README.md").write_text("About this model")
    assert describe_checkpoint(broken)["sha256"] == describe_checkpoint(made)["sha256"]
    dataclasses.replace(TranslatorCard.read(broken), gsd_m=10.0).write(broken)
    assert describe_checkpoint(broken)["sha256"] != describe_checkpoint(made)["sha256"]


def test_save_and_load_return_the_same_in_any_layout_and_dtype(made: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(made, dtype="bfloat16")
    checkpoint.unet.to(memory_format=torch.channels_last)
    again = load_checkpoint(save_checkpoint(checkpoint, tmp_path / "deep" / "saved"), dtype="bfloat16")
    for name, value in checkpoint.unet.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(again.unet.state_dict()[name], value), name
    assert (again.card, again.schedule) == (checkpoint.card, checkpoint.schedule)
    assert again.prompt_embeds is not None
    assert checkpoint.prompt_embeds is not None
    assert torch.equal(again.prompt_embeds, checkpoint.prompt_embeds)


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(made)
    with pytest.raises(OutputError, match="exists already"):
        save_checkpoint(checkpoint, made)
    with pytest.raises(OutputError, match="exists already"):
        init_checkpoint(made, size="tiny")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("sar2eo.model.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="no space left"):
        save_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def release(made: Path, path: Path, *, prefix: str = "", stage: int = 2) -> dict[str, torch.Tensor]:
    """Write U-Net weights as the release does; return them."""
    tensors = read(made / "unet" / WEIGHTS)
    tensors = {name: value + 0.01 for name, value in tensors.items()}
    if stage == 1:
        tensors |= {name: tensors[name][:4].clone() for name in ("conv_out.weight", "conv_out.bias")}
    save_file({prefix + name: value for name, value in tensors.items()}, path)
    return tensors


@pytest.mark.parametrize("prefix", ["", "module.", "unet.", "module.unet."])
def test_import_of_a_release(base: Path, made: Path, tmp_path: Path, prefix: str) -> None:
    tensors = release(made, tmp_path / "model.safetensors", prefix=prefix)
    out = import_checkpoint(tmp_path / "out", unet=tmp_path / "model.safetensors", base=base, name="release")
    checkpoint = load_checkpoint(out)
    assert all(torch.equal(value, tensors[name]) for name, value in checkpoint.unet.state_dict().items())
    card = checkpoint.card
    assert (card.prediction_type, card.spacing, card.sampler) == ("epsilon", "leading", "ddim")
    assert (card.steps, card.confidence_timestep, card.name) == (50, 481, "release")
    assert checkpoint.schedule["set_alpha_to_one"] is False
    assert checkpoint.prompt_embeds is not None


def test_import_of_the_first_stage_adds_the_variance_channel(base: Path, made: Path, tmp_path: Path) -> None:
    tensors = release(made, tmp_path / "model.safetensors", stage=1)
    out = import_checkpoint(tmp_path / "out", unet=tmp_path / "model.safetensors", base=base)
    unet = load_checkpoint(out).unet
    assert torch.equal(unet.conv_in.weight, tensors["conv_in.weight"])
    assert torch.equal(unet.conv_out.weight[:4], tensors["conv_out.weight"])
    assert not unet.conv_out.weight[4].any()


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["mid_block.resnets.0.conv1.weight"]


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["mid_block.extra"] = torch.zeros(1)


def misshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.bias"] = torch.zeros(3)


def unadapt(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :4].contiguous()


def empty(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "lacks 1 tensors, such as mid_block.resnets.0.conv1.weight"),
        (add_one, "has unexpected 1 tensors, such as mid_block.extra"),
        (misshape, r"conv_in.bias has shape \(3,\), must be \(8,\)"),
        (unadapt, "4 channels in and 5 out, must be 8 in and 4"),
        (empty, "holds no U-Net"),
    ],
)
def test_import_is_strict(
    base: Path, made: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    tensors = release(made, path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message) as error:
        import_checkpoint(tmp_path / "out", unet=path, base=base)
    one_line(error)
    assert not (tmp_path / "out").exists()


def test_import_refuses_pickles(base: Path, tmp_path: Path) -> None:
    for name in ("model.bin", "model.safetensors"):
        torch.save({"conv_in.weight": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(CheckpointError, match="is a pickle"):
            import_checkpoint(tmp_path / "out", unet=tmp_path / name, base=base)


# What is done to a sound checkpoint, and what is said of it.
def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def change(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **changes)


def as_pickle(name: str, renamed: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        torch.save(read(folder / name), (folder / name).with_name(renamed))
        if renamed != Path(name).name:
            (folder / name).unlink()

    return apply


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-10]) and None


def reshape_prompt(folder: Path) -> None:
    save_file({"prompt_embeds": torch.zeros(1, 21, 13)}, folder / "prompt_embeds.safetensors")


def rename_prompt(folder: Path) -> None:
    save_file({"embeds": torch.zeros(1, 21, 12)}, folder / "prompt_embeds.safetensors")


BREAKAGES = {
    "no card": (remove("sar2eo.json"), "not a sar2eo checkpoint"),
    "no index": (remove("model_index.json"), "model_index.json is missing"),
    "no U-Net weights": (remove(f"unet/{WEIGHTS}"), f"unet/{WEIGHTS} is missing"),
    "no VAE configuration": (remove("vae/config.json"), "vae/config.json is missing"),
    "no schedule": (remove(SCHEDULER), "scheduler_config.json is missing"),
    "no prompt": (remove("prompt_embeds.safetensors"), "prompt_embeds.safetensors is missing"),
    "pickle by name": (as_pickle(f"unet/{WEIGHTS}", "diffusion_pytorch_model.bin"), "is a pickle"),
    "pickle by content": (as_pickle(f"vae/{WEIGHTS}", WEIGHTS), "is a pickle"),
    "bare pickle": (write(f"vae/{WEIGHTS}", b"\x80\x04\x95" + bytes(20)), "is a pickle"),
    "cut short": (truncate(f"unet/{WEIGHTS}"), "not a whole safetensors file"),
    "no JSON": (write("unet/config.json", b"{"), "config.json cannot be read"),
    "a JSON list": (write("unet/config.json", b"[]"), "must hold a JSON object"),
    "width": (change("unet/config.json", block_out_channels=[8, 20]), "has shape"),
    "unknown block": (change("unet/config.json", up_block_types=["A", "CrossAttnB"]), "makes no network"),
    "more layers": (change("unet/config.json", layers_per_block=2), "lacks"),
    "fewer inputs": (change("unet/config.json", in_channels=4), "conv_in.weight has shape"),
    "VAE class": (change("vae/config.json", _class_name="VQModel"), "_class_name='VQModel'"),
    "VAE channels": (change("vae/config.json", latent_channels="4"), "latent_channels='4'"),
    "prediction": (
        change(SCHEDULER, prediction_type="v_prediction"),
        "the card says",
    ),
    "schedule": (
        change(SCHEDULER, beta_schedule="x"),
        "cannot make this noise schedule",
    ),
    "terminal SNR": (
        change(SCHEDULER, rescale_betas_zero_snr=True),
        "zero terminal SNR",
    ),
    "card field": (change("sar2eo.json", colour="red"), "unknown or missing fields colour"),
    "card value": (change("sar2eo.json", steps=0), "steps=0"),
    "prompt width": (reshape_prompt, r"shape \(1, 21, 13\): the U-Net wants \(1, tokens, 12\)"),
    "prompt name": (rename_prompt, "must hold just the tensor prompt_embeds"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_checkpoints_are_refused_in_one_line(broken: Path, name: str) -> None:
    breakage, message = BREAKAGES[name]
    verify_checkpoint(broken)
    breakage(broken)
    for function in (verify_checkpoint, load_checkpoint, describe_checkpoint):
        with pytest.raises(CheckpointError, match=message) as error:
            function(broken)
        one_line(error)


def test_parts_that_do_not_fit_are_not_saved(made: Path, tmp_path: Path) -> None:
    sound = load_checkpoint(made)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    with pytest.raises(CheckpointError, match="must be 6 and 4 for a VAE of 3 latent channels"):
        save_checkpoint(dataclasses.replace(sound, vae=vae), tmp_path / "out")
    with pytest.raises(CheckpointError, match="the prompt's embedding has shape None"):
        save_checkpoint(dataclasses.replace(sound, prompt_embeds=None), tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet/config.json", "config.json is missing"),
        (f"vae/{WEIGHTS}", f"{WEIGHTS} is missing"),
        ("text_encoder/model.safetensors", "model.safetensors is missing"),
        ("tokenizer/vocab.json", "tokenizer"),
        (SCHEDULER, "scheduler_config.json is missing"),
    ],
)
def test_incomplete_bases_are_refused(base: Path, tmp_path: Path, part: str, message: str) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / part).unlink()
    with pytest.raises(CheckpointError, match=message) as error:
        init_checkpoint(tmp_path / "out", base=folder)
    one_line(error)


def test_a_base_of_pickles_or_without_a_text_encoder_is_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(CheckpointError, match="has no text_encoder/"):
        init_checkpoint(tmp_path / "out", base=folder)
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        init_checkpoint(tmp_path / "out", base=folder)


def test_a_base_in_shards_is_read_and_what_only_resembles_one_is_named(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    whole = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / WEIGHTS).unlink()
    whole.save_pretrained(folder / "unet", max_shard_size="50KB")
    made = load_checkpoint(init_checkpoint(tmp_path / "out", base=folder))
    assert torch.equal(made.unet.conv_in.weight[:, :4] * 2, whole.conv_in.weight)
    for shard in folder.glob("unet/*-of-*"):
        shard.unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names .*00001-of-.* is missing$"):
        init_checkpoint(tmp_path / "two", base=folder)
    shutil.copy(base / "unet" / WEIGHTS, folder / "unet")
    with pytest.raises(CheckpointError, match="remove this index of other files"):
        init_checkpoint(tmp_path / "two", base=folder)
    with pytest.raises(CheckpointError, match="folder that diffusers converts it to"):
        init_checkpoint(tmp_path / "two", base=folder / "unet" / WEIGHTS)


def test_a_base_whose_weights_do_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = read(folder / "unet" / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / "unet" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"do not fit config.json: 1 keys, such as conv_in.bias"):
        init_checkpoint(tmp_path / "out", base=folder)


def test_arguments_are_checked(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="either a base or a size"):
        init_checkpoint(tmp_path / "out")
    with pytest.raises(SettingsError, match="either a base or a size"):
        init_checkpoint(tmp_path / "out", base=base, size="tiny")
    with pytest.raises(SettingsError, match="unexpected keyword argument 'colour'"):
        init_checkpoint(tmp_path / "out", size="tiny", colour="red")
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        init_checkpoint(tmp_path / "out", base=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="fetching it from the hub failed"):
        init_checkpoint(tmp_path / "out", base="owner/never-fetched")


def test_a_hub_id_is_found_offline_in_what_was_fetched_before(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--owner--base"
    shutil.copytree(base, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    out = init_checkpoint(tmp_path / "out", base="owner/base")
    assert load_checkpoint(out).prompt_embeds is not None


def test_a_loaded_checkpoint_survives_its_file_being_written_over(broken: Path) -> None:
    checkpoint = load_checkpoint(broken)
    before = {name: value.clone() for name, value in checkpoint.unet.state_dict().items()}
    (broken / "unet" / WEIGHTS).write_bytes(b"x")
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.unet.state_dict().items())
