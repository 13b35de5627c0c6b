"""The cache of compiled networks: whose it is, and that a second process has no need to compile."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sar2eo.errors import SettingsError
from sar2eo.model.compile_cache import CACHE_VARIABLE, find_cache_folder, use_compile_cache
from sar2eo.model.spec import resolve_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and an environment that names no cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(CACHE_VARIABLE, "")  # so that it is as it was when the test is over
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "home"


def test_the_folder_follows_the_users_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cache_folder() == home / ".cache" / "sar2eo" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/to/nothing")
    assert find_cache_folder() == home / ".cache" / "sar2eo" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert find_cache_folder() == home / "elsewhere" / "sar2eo" / "compiled"


def test_it_is_made_for_its_user_alone_and_told_to_torch(home: Path) -> None:
    before = os.umask(0)
    try:
        folder = use_compile_cache()
    finally:
        os.umask(before)
    assert folder == find_cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ[CACHE_VARIABLE] == str(folder)
    assert use_compile_cache() == folder


def test_a_folder_that_the_user_has_set_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(home / "own"))
    assert use_compile_cache() == home / "own"
    assert os.environ[CACHE_VARIABLE] == str(home / "own")
    assert not find_cache_folder().exists()


def test_torchs_own_default_is_no_choice_of_the_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(Path(tempfile.gettempdir()) / "torchinductor_somebody"))
    assert use_compile_cache() == find_cache_folder()


def test_a_folder_others_could_read_is_closed_and_one_they_could_write_to_refused(home: Path) -> None:
    folder = find_cache_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    use_compile_cache()
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o702, 0o777):
        os.environ.pop(CACHE_VARIABLE, None)
        folder.chmod(mode)
        with pytest.raises(SettingsError, match=rf"others may write to .* \(mode {mode:o}\)"):
            use_compile_cache()
        assert CACHE_VARIABLE not in os.environ


def test_a_folder_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(SettingsError, match="compiled belongs to another user"):
        use_compile_cache()


def test_it_is_refused_before_work_where_it_cannot_be(home: Path, checkpoint: Path) -> None:
    home.write_text("not a folder")
    with pytest.raises(
        SettingsError, match=r"--compile: .*compiled cannot be made or used \(Not a directory\)"
    ):
        resolve_model(checkpoint, device="cpu", compile=True)
    assert not resolve_model(checkpoint, device="cpu").compile  # who does not compile needs none


PROGRAM = """
import json, sys, warnings
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters
from sar2eo.model.loading import load_translator
from sar2eo.model.spec import resolve_model

def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True):
    # Of a single kernel, which compiles in seconds; all around it is as it is.
    return (torch.sin(sample[:, :5]) + timestep[:, None, None, None] / 1000,)

warnings.simplefilter("ignore")
UNet2DConditionModel.forward = forward
# Two calls of a whole batch and one of its remainder, as of a scene of five windows.
spec = resolve_model(sys.argv[1], compile=True, device="cpu", dtype="float32", batch=2, steps=2)
translator = load_translator(spec)
sar = np.full((2, 3, 32, 32), 0.25, np.float32)
sizes = [translator.translate(sar[:count], [(0, 0)] * count).eo.tolist() for count in (2, 2, 1)]
told = {name: dict(counters[name]) for name in ("frames", "aot_autograd", "inductor")}
print(json.dumps([told, sizes[2] == sizes[1][:1]]))
"""


@pytest.mark.slow
def test_a_second_process_does_not_compile_anew(home: Path, checkpoint: Path) -> None:
    def run() -> dict[str, dict[str, int]]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(checkpoint)], capture_output=True, text=True, check=True
        )
        told, same = json.loads(done.stdout.splitlines()[-1])
        assert same
        return told

    cold, warm = run(), run()
    # One shape, so one graph: the remainder of a batch is padded.
    assert cold["frames"]["total"] == warm["frames"]["total"] == 1
    assert cold["inductor"]["fxgraph_cache_miss"] == 1
    assert warm["aot_autograd"]["autograd_cache_hit"] == 1
    assert "autograd_cache_miss" not in warm["aot_autograd"]
    assert "fxgraph_cache_miss" not in warm["inductor"]
    assert any(find_cache_folder().rglob("*.so"))
