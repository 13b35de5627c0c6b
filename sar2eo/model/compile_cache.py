"""Where compiled networks are kept, so that the next run need not compile them again."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from sar2eo.errors import SettingsError

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable of torch's compiler: the folder of its graphs, kernels and libraries."""


def find_cache_folder() -> Path:
    """Return the user's own folder for compiled networks.

    ``$XDG_CACHE_HOME/sar2eo/compiled``, or ``~/.cache/sar2eo/compiled`` where that is not set, or no absolute
    path (XDG Base Directory Specification, https://specifications.freedesktop.org/basedir-spec). It may be
    deleted at any time.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise SettingsError(
            f"--compile: this user has no home folder: set XDG_CACHE_HOME or {CACHE_VARIABLE}"
        ) from error
    return base / "sar2eo" / "compiled"


def use_compile_cache() -> Path:
    """Let torch's compiler cache in `find_cache_folder`, unless the user has set a folder.

    Torch's default is a folder with a predictable name in the system's temporary space, which another user
    may have made before, and which a restart deletes.

    The folder's content is executed: libraries are loaded, graphs unpickled. So it must belong to this user,
    and nobody else may write to it: it is made with mode 0700, and refused if others can write. A folder set
    by `CACHE_VARIABLE` is the user's responsibility.

    Returns
    -------
    Path
        The folder in use.

    Raises
    ------
    SettingsError
        If the folder cannot be made, belongs to somebody else, or others may write to it.
    """
    given = os.environ.get(CACHE_VARIABLE, "")
    # Torch sets the variable itself, to its default, as soon as parts of it are imported.
    if given and not given.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        return Path(given)
    folder = find_cache_folder()
    another = f"or set {CACHE_VARIABLE} to a folder of your own"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            folder.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"--compile: {folder} cannot be made or used ({error.strerror}): make room for it, {another}"
        ) from error
    if found.st_uid != os.geteuid():
        raise SettingsError(
            f"--compile: {folder} belongs to another user, whose code would be run: delete it, {another}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(
            f"--compile: others may write to {folder} (mode {stat.S_IMODE(found.st_mode):o}), and their code "
            f"would be run: delete it, {another}"
        )
    os.environ[CACHE_VARIABLE] = str(folder)
    return folder
