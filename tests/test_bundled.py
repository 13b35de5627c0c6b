"""The model that comes with the package, or the word that none does."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from sar2eo import hub
from sar2eo.bases import init_checkpoint
from sar2eo.cli import cli
from sar2eo.errors import CheckpointError
from sar2eo.models import BUNDLED, resolve_model


def test_without_a_bundled_model_another_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "hub.py"))
    with pytest.raises(CheckpointError, match="has no model of its own: name a checkpoint folder"):
        resolve_model(BUNDLED)
    told = CliRunner().invoke(cli, ["model", "info", "bundled"])
    assert told.exit_code == 1
    assert len(told.stderr.splitlines()) == 1


def test_the_bundled_model_is_known_by_its_name_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine has it elsewhere, so no path may travel in the spec."""
    for place in ("here", "there"):
        init_checkpoint(tmp_path / place / BUNDLED, size="tiny", name="x")
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "here" / "hub.py"))
    spec = resolve_model(BUNDLED, device="cpu", dtype="float32")
    assert (spec.path, spec.folder) == (BUNDLED, tmp_path / "here" / BUNDLED)
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "there" / "hub.py"))
    assert spec.folder == tmp_path / "there" / BUNDLED
    assert spec.load() is spec.load()
    told = CliRunner().invoke(cli, ["model", "info", "bundled"])
    assert told.exit_code == 0
    assert spec.sha256 in told.stdout
