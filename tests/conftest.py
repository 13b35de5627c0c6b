"""What all tests share: profiles, marks, and where the real data lies."""

import os
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
