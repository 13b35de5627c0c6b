"""Every exception and warning that sar2eo raises on purpose.

::

    Sar2eoError                 the user can do something about it; exit code 1
    ├── SettingsError           a setting is not allowed; exit code 2 (also a ValueError)
    ├── SceneError              an input cannot be opened, or is of the wrong kind
    │   ├── GeoreferenceError   there is no georeference, or none that can be used
    │   ├── PolarisationError   polarisations are unknown, or not those that are needed
    │   └── RadiometryError     quantity or calibration is unknown, or cannot be converted
    ├── CheckpointError         a checkpoint is missing, broken, unsafe, or does not fit
    ├── PairsError              pairs or a data set are missing, broken or unsuitable
    ├── CoregistrationError     there is too little evidence of how two scenes lie on each other
    ├── TrainingError           a training run cannot start or go on
    ├── OutputError             a result cannot be written, or would overwrite something
    │   └── JournalError        unfinished work belongs to other settings, or is damaged
    └── ClusterError            a Dask cluster cannot run the graph

    Sar2eoWarning               (a UserWarning)
    ├── GeolocationWarning      geolocation is of limited accuracy
    ├── RadiometryWarning       a guess or a substitution changes how values are read
    ├── FitWarning              an input is outside what the model was trained on, and used by request
    ├── PairsWarning            pairs are weaker than they look
    ├── TrainingWarning         a run goes on otherwise than it would have
    └── EvaluationWarning       a measure that was asked for could not be computed

A message names the value, what is allowed, and the likely mistake, on one line, without passwords and
signatures of URLs.
"""

from __future__ import annotations

import re
import warnings

_USER = re.compile(r"(?<=://)[^/?#\s'\"]*@")
# A query may be a signature; GDAL puts options of a request there, and requests leaves out the server.
_QUERY = re.compile(r"((?:https?://|(?<=url: )/|/vsicurl)[^\s?'\"]*)\?[^\s'\"<>|)\]]*(?<![:;,.])", re.I)


def hide_secrets(text: str) -> str:
    """Leave user, password and query out of the URLs in a text."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


class Sar2eoError(Exception):
    """Base of all errors that a user can do something about.

    Attributes
    ----------
    exit_code : int
        Exit code of the command line.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(hide_secrets(str(message)))


class SettingsError(Sar2eoError, ValueError):
    """A setting is outside what is allowed, or settings contradict each other."""

    exit_code = 2


class SceneError(Sar2eoError):
    """A scene cannot be opened, or is not of the kind that is needed."""


class GeoreferenceError(SceneError):
    """A scene has no georeference, or one that cannot be used."""


class PolarisationError(SceneError):
    """The polarisations of a scene are unknown, or are not those that are needed."""


class RadiometryError(SceneError):
    """The quantity or calibration of a scene is unknown, or cannot be converted."""


class CheckpointError(Sar2eoError):
    """A checkpoint is missing, incomplete, unsafe, or does not fit the request."""


class PairsError(Sar2eoError):
    """Pairs or a data set are missing, broken, empty or unsuitable."""


class CoregistrationError(Sar2eoError):
    """Two scenes do not meet, or there is too little evidence of how one lies on the other."""


class TrainingError(Sar2eoError):
    """A training run cannot start or go on: other settings, a broken state, values that are not finite."""


class OutputError(Sar2eoError):
    """A result cannot be written, or would overwrite something."""


class JournalError(OutputError):
    """Unfinished work beside the output belongs to other settings, or cannot be read."""


class ClusterError(Sar2eoError):
    """A Dask cluster cannot be started or joined, or lacks what the run needs."""


class Sar2eoWarning(UserWarning):
    """Base of all warnings of this package."""

    def __init__(self, message: object = "") -> None:
        super().__init__(hide_secrets(str(message)))


class GeolocationWarning(Sar2eoWarning):
    """The geolocation of a scene is of limited accuracy."""


class RadiometryWarning(Sar2eoWarning):
    """A guess or a substitution changes how the values of a scene are read."""


class FitWarning(Sar2eoWarning):
    """A model is used, by request, on an input outside what it was trained on."""


class PairsWarning(Sar2eoWarning):
    """Pairs are weaker than they look: uncertain alignment, a scene that is not terrain-corrected."""


class TrainingWarning(Sar2eoWarning):
    """A training run goes on otherwise than it would have: from an older state, on another machine."""


class EvaluationWarning(Sar2eoWarning):
    """A measure cannot be computed as asked: a network or the training split is missing."""


def refuse_misfit(message: str, error: type[SceneError], *, verb: str, force: bool) -> None:
    """Refuse a scene that does not fit a model; with `force`, warn instead.

    Parameters
    ----------
    message : str
    error : type of SceneError
    verb : str
        What ``force=True`` does, such as "translates".
    force : bool
        Give a `FitWarning` that points three calls up: at the caller of the function whose check failed.
    """
    if not force:
        raise error(f"{message} (force=True {verb} all the same)")
    warnings.warn(message, FitWarning, stacklevel=4)


_NO_MEMORY = re.compile("can(?:'t|not) allocate memory|not enough memory|can't start new thread", re.I)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, of any library, says that the machine's memory has run out."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def explain(error: BaseException) -> str:
    """Say in one line what went wrong; with the class's name if it is no error of ours, files or memory."""
    if isinstance(error, Sar2eoError):
        return one_line(error)
    if lacks_memory(error):
        return f"out of memory ({one_line(error, 80)}): use a smaller --tile or --batch, or fewer --workers"
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}: was it moved or removed, or is a disk full or gone?"
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: object, most: int | None = None) -> str:
    """Return the message of an exception or a warning on one line, or its class's name where it has none.

    Parameters
    ----------
    error : object
    most : int, optional
        Characters to keep: some libraries append whole configurations.
    """
    return hide_secrets(" ".join(str(error).split()))[:most] or type(error).__name__
