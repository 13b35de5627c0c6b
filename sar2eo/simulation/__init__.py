"""Paired SAR and EO scenes with known truth, made from a seeded landscape.

For tests, demonstrations and experiments: land cover, what changed between the two dates, and the shift of
the SAR against the EO are all known. The pictures resemble Sentinel-1 and Sentinel-2 at 10 m; they are
simple models of what a sensor sees, not radiative transfer.
"""

from sar2eo.simulation.fields import SimulationSettings
from sar2eo.simulation.landscape import LandCover
from sar2eo.simulation.objects import ObjectKind, ObjectState
from sar2eo.simulation.pair import (
    SETTINGS_TAG,
    SimulatedPair,
    make_folder,
    simulate_pair,
    simulated_before,
    write_pair,
)
