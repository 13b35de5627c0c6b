"""The study of planted misregistration, small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def test_planted_shifts_are_recovered_and_other_places_refused(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "examples/misregistration.py"), str(tmp_path), "--shifts", "3",
               "--strangers", "3", "--size", "768", "--grid", "150"]  # fmt: skip
    told = subprocess.run(program, check=True, capture_output=True, text=True, timeout=400).stdout
    study = json.loads((tmp_path / "study.json").read_text())
    found = study["methods"]["structure"]
    assert (found["accepted"]["count"], found["accepted"]["of"]) == (3, 3)
    assert found["within_1_px"]["count"] == 3
    assert found["largest_px"] < 1
    # Three of three says little, and the table says so.
    assert found["within_1_px"]["low"] < 0.3
    assert (found["false_accepts"]["count"], found["false_accepts"]["of"]) == (0, 3)
    assert "| structure | 3 of 3 (29.2 to 100.0 %) |" in told
    planted = [case for case in study["cases"] if case["planted"] is not None]
    lengths = [np.hypot(*case["planted"]) for case in planted]
    np.testing.assert_allclose(lengths, [0, 10, 20], atol=0.01)
    for case in planted:
        assert case["error_px"] == np.hypot(*np.subtract(case["found"], case["planted"]))
    assert {(case["eo"], case["sar"]) for case in study["cases"]} == {
        (0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0),
    }  # fmt: skip
    # The same command has nothing left to do.
    before = (tmp_path / "cases.jsonl").read_bytes()
    again = subprocess.run(program, check=True, capture_output=True, text=True, timeout=100).stdout
    assert again == told
    assert (tmp_path / "cases.jsonl").read_bytes() == before
