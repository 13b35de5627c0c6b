"""What all tests share: profiles, marks, and where the real data lies."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Wall time is the machine's, not the code's: no deadline. CI draws the same examples every time.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scenes beside the project; without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real scenes beside the project")
    return REAL_DATA


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 400 x 500 pixels with a hole."""
    import numpy as np
    from support.scenes import amplitude, write_scene

    valid = np.ones((400, 500), bool)
    valid[:150, 300:] = False
    return write_scene(tmp_path_factory.mktemp("scenes") / "scene.tif", amplitude((400, 500), 5), valid)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: two would wait for each other, on networks this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """A tiny checkpoint that means something; trained once for each state of the code it depends on."""
    import hashlib

    import torch
    from support.model_fixtures import trained_checkpoint

    sources = [Path(__file__).parent / "support" / "model_fixtures.py"]
    sources += [
        Path(__file__).parents[1] / "sar2eo/model" / f"{name}.py" for name in ("network", "diffusion")
    ]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + torch.__version__.encode())
    return trained_checkpoint(request.config.cache.mkdir(f"checkpoint-{state.hexdigest()[:12]}"))
