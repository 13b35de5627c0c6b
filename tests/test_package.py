"""What `import sar2eo` and ``sar2eo --help`` bring, and what they do not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sar2eo

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "transformers", "rasterio", "xarray", "dask", "numpy")


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_help_imports_nothing_heavy() -> None:
    help_call = (
        "import contextlib\nfrom sar2eo.cli import cli\nwith contextlib.suppress(SystemExit): cli(['--help'])"
    )
    loaded = modules_after(help_call)
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_import_alone_imports_nothing_heavy() -> None:
    assert not modules_after("import sar2eo") & set(HEAVY)


def test_the_raster_side_needs_no_torch() -> None:
    loaded = modules_after("import sar2eo; sar2eo.translate; sar2eo.write_cog; sar2eo.open_scene")
    assert "rasterio" in loaded
    assert not loaded & {"torch", "diffusers", "transformers"}


def test_every_exported_name_exists_and_is_documented() -> None:
    assert sorted(sar2eo.__all__, key=str.casefold) == sorted(
        [
            "Grid",
            "TranslateSettings",
            "__version__",
            "build_pairs",
            "coregister",
            "describe_scene",
            "evaluate",
            "evaluate_matcher",
            "match_dcdm",
            "open_scene",
            "train_matcher",
            "train_vae",
            "train",
            "translate",
            "write_cog",
        ],
        key=str.casefold,
    )
    for name in sar2eo.__all__:
        assert getattr(sar2eo, name).__doc__
        assert name in dir(sar2eo)


def test_no_module_has_the_name_of_a_public_function() -> None:
    import pkgutil

    modules = {module.name for module in pkgutil.iter_modules(sar2eo.__path__)}
    assert not modules & set(sar2eo.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="translat"):
        sar2eo.translat  # noqa: B018


def test_only_the_command_line_starts_clusters() -> None:
    files = {path.relative_to(ROOT): path.read_text() for path in ROOT.glob("sar2eo/**/*.py")}
    users = {path for path, text in files.items() if re.search(r"connect_cluster\(|LocalCluster\(", text)}
    assert Path("sar2eo/cli/translate.py") in users
    assert {path.parent.name for path in users - {Path("sar2eo/compute/cluster.py")}} == {"cli"}


def test_the_tests_that_the_table_of_contracts_names_exist() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Contracts")[2].partition("## ")[0]
    cells = re.findall(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", table)
    assert len(cells) > 20
    for file, names in cells:
        text = (ROOT / file).read_text()
        assert all(f"def {name}(" in text for name in re.findall(r"test_\w+", names)), (file, names)
