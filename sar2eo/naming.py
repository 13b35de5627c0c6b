"""Names of results from a template: ``{id}_eo`` and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from sar2eo.errors import SceneError, SettingsError
from sar2eo.scene import parse_source
from sar2eo.scene.handles import shown
from sar2eo.scene.stac import is_stac, read_item

__all__ = ["FIELDS", "check_template", "facts_of", "fill"]

FIELDS = ("id", "stem", "date", "time", "platform", "orbit", "polarisations")
"""What a template may hold.

``id`` is a STAC item's id, else the ``stem``, which is the name of the scene's file without its suffix;
``date`` and ``time`` are those of the acquisition, as in 20240506 and 070809, in UTC.
"""

_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f]+")


def check_template(template: str) -> None:
    """Refuse what is no template of a file's name.

    Raises
    ------
    SettingsError
        For fields that are not in `FIELDS`, and for folders.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise SettingsError(f"name {template!r}: {error}; a brace itself is {{{{ or }}}}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in FIELDS or form or conversion):
            allowed = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise SettingsError(f"name {template!r}: {{{name}}} is not known, known are {allowed}")
    if not template or "/" in template or template.startswith("."):
        raise SettingsError(f"name {template!r}: must name files in --out, not folders or hidden files")


def facts_of(source: str, attrs: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the values of the fields for a scene.

    Parameters
    ----------
    source : str
        As `sar2eo.open_scene` takes it.
    attrs : mapping
        Of the opened scene.
    """
    parsed = parse_source(source)
    first = parsed if isinstance(parsed, str) else next(iter(parsed.values()))
    named = shown(first)
    file, _, item = named.partition("#") if is_stac(first) else (named, "", "")
    if file.endswith("/manifest.safe"):
        file = file.removesuffix("/manifest.safe")  # of the product that it lies in
    stem = file.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zip").rsplit(".", 1)[0]
    name = item or (read_item(source).id if is_stac(source) else stem)
    when = str(attrs.get("datetime") or "")
    digits = re.sub(r"[-:]", "", when)
    return {
        "id": name,
        "stem": stem,
        "date": digits[:8] or None,
        "time": digits[9:15] or None,
        "platform": attrs.get("platform"),
        "orbit": attrs.get("orbit_direction"),
        "polarisations": "-".join(attrs.get("polarisations") or ()) or None,
    }


def fill(template: str, facts: Mapping[str, str | None]) -> str:
    """Fill a template that `check_template` let pass; what no file's name should hold becomes ``_``.

    Raises
    ------
    SceneError
        If the scene does not tell what the template asks for.
    """
    asked = {name for _, name, _, _ in Formatter().parse(template) if name}
    missing = sorted(name for name in asked if not facts[name])
    if missing:
        raise SceneError(f"the scene does not say its {', '.join(missing)}, which name {template!r} asks for")
    return template.format_map({name: _NOT_IN_NAMES.sub("_", str(facts[name])) for name in asked})
