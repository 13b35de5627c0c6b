"""Build wheel and sdist of what git tracks, and check that they may be released.

    python .ci/release_check.py --out dist [--url https://host/owner/sar2eo]

With ``--url``, README's relative links become absolute links to the files of this version, as PyPI
needs them. docs/releasing.md says what is checked.
"""

import argparse
import configparser
import email
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from readme_renderer import markdown

ROOT = Path(__file__).parents[1]
LARGEST_BYTES = 100_000_000  # PyPI's limit for a file
LINK = re.compile(r"(!?\[[^\]]*\])\((?!https?://|#|mailto:)([^)\s]+)\)")
RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", re.M)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--url", help="of the repository: README's links are made absolute")
    given = parser.parse_args()
    version = check_version()
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_tracked(Path(folder) / "sar2eo")
        readme = copy / "README.md"
        readme.write_text(with_absolute_links(readme.read_text("utf-8"), given.url, version), "utf-8")
        check_readme(readme)
        build = ["-m", "build", "--no-isolation", "--outdir", str(given.out.resolve()), str(copy)]
        shutil.rmtree(given.out, ignore_errors=True)
        done = subprocess.run([sys.executable, *build], capture_output=True, text=True)
        if done.returncode:
            fail(f"the build failed:\n{done.stdout}{done.stderr}")
    (wheel,), (sdist,) = given.out.glob("*.whl"), given.out.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], check=True)
    check_wheel(wheel, version)
    if given.url is None:
        print("note: README's links are relative; build for PyPI with PROJECT_URL=https://host/owner/sar2eo")
    for path in (wheel, sdist):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def check_version() -> str:
    """Return the version, if it is the newest release of the changelog."""
    text = (ROOT / "sar2eo/_version.py").read_text("utf-8")
    version = re.search(r'__version__ = "(.+)"', text)
    released = RELEASE.search((ROOT / "CHANGELOG.md").read_text("utf-8"))
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    if version is None or released is None or cited is None or not version[1] == released[1] == cited[1]:
        said = [found and found[1] for found in (version, released, cited)]
        fail(
            "versions differ: _version.py {}, newest release in CHANGELOG.md {}, CITATION.cff {}".format(
                *said
            )
        )
    return version[1]


def copy_tracked(target: Path) -> Path:
    """Copy the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def with_absolute_links(text: str, url: str | None, version: str) -> str:
    """Return README with links to files of this repository, which have to be there."""

    def absolute(link: re.Match[str]) -> str:
        label, target = link.groups()
        if not (ROOT / target.partition("#")[0]).exists():
            fail(f"README.md links to {target}, which is not there")
        if url is None:
            return link[0]
        return f"{label}({url.rstrip('/')}/{'raw' if label[0] == '!' else 'blob'}/v{version}/{target})"

    return LINK.sub(absolute, text)


def check_readme(path: Path) -> None:
    text = path.read_text("utf-8")
    if not markdown.render(text):
        fail("README.md does not render")
    if (words := len(text.split())) > 900:
        fail(f"README.md has {words} words; 900 are the most")


def check_wheel(path: Path, version: str) -> None:
    """Check what is in the wheel, and what it asks for."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        info = f"sar2eo-{version}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    foreign = [name for name in names if name.split("/")[0] not in ("sar2eo", info)]
    if foreign or any("/tests/" in name for name in names):
        fail(f"the wheel holds what is not the package: {', '.join(foreign[:5])}")
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sar2eo").rglob("*.safetensors")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "sar2eo").rglob("*.json")}
    wanted |= {"sar2eo/py.typed", f"{info}/entry_points.txt"}
    if missing := sorted(wanted - set(names)):
        fail(f"the wheel lacks {', '.join(missing)}")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    said = {str(Requirement(line)) for line in setup["options"]["install_requires"].split("\n") if line}
    requirements = map(Requirement, metadata.get_all("Requires-Dist", []))
    asked = {str(each) for each in requirements if "extra ==" not in str(each.marker)}
    if asked != said:
        fail(f"the wheel asks for other packages than setup.cfg says: {', '.join(sorted(asked ^ said))}")
    if path.stat().st_size > LARGEST_BYTES:
        fail(f"{path.name} has {path.stat().st_size} bytes; PyPI takes {LARGEST_BYTES}")


def fail(message: str) -> None:
    sys.exit(f"release check: {message}")


if __name__ == "__main__":
    main()
