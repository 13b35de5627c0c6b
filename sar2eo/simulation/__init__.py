"""Paired SAR and EO scenes with known truth, made from a seeded landscape.

For tests, demonstrations and experiments: what is land, what changed between the two dates, and how far
the SAR is shifted against the EO are all known. The pictures resemble Sentinel-1 and Sentinel-2 at 10 m;
they are simple models of what a sensor sees, not radiative transfer.
"""

from sar2eo.simulation.files import SETTINGS_TAG, make_folder, simulated_before, write_pair, write_scene
from sar2eo.simulation.landscape import LandCover
from sar2eo.simulation.objects import ObjectKind, ObjectState
from sar2eo.simulation.pair import SimulatedPair, SimulatedScene, simulate_pair, simulate_scene
from sar2eo.simulation.settings import SimulationSettings

__all__ = [
    "SETTINGS_TAG",
    "LandCover",
    "ObjectKind",
    "ObjectState",
    "SimulatedPair",
    "SimulatedScene",
    "SimulationSettings",
    "make_folder",
    "simulate_pair",
    "simulate_scene",
    "simulated_before",
    "write_pair",
    "write_scene",
]
