"""Two processes on one machine: each its share, one result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sar2eo.datasets import Order

PROGRAM = """
import json, sys
from pathlib import Path
from support.training_fixtures import ToyTask, toy_batches, toy_settings, toy_validation
from sar2eo.datasets import Order
from sar2eo.training.loop import create_accelerator, describe_run, run_loop

settings = toy_settings()
accelerator = create_accelerator(settings)
out = Path(sys.argv[1])
outcome = run_loop(
    ToyTask(), accelerator, settings=settings, batches=toy_batches(), validation=toy_validation, out=out,
    identity=describe_run(settings, accelerator),
)
order = Order(5, 2, 1, accelerator.process_index, accelerator.num_processes)
facts = {"indices": [order.indices(step) for step in range(2)], "begun_at": outcome.begun_at}
(out.parent / f"process-{accelerator.process_index}.json").write_text(json.dumps(facts))
"""


@pytest.mark.slow
def test_two_processes_share_the_data_and_write_one_run(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    told = []
    for _ in range(2):
        arguments = [*command, str(program), str(tmp_path / "run")]
        subprocess.run(arguments, check=True, capture_output=True, env=environment, cwd=tmp_path)
        told.append([json.loads((tmp_path / f"process-{k}.json").read_text()) for k in range(2)])
    whole = Order(5, 2, 1)
    for step in range(2):
        for process in range(2):
            expected = whole.indices(2 * step + process)
            assert told[0][process]["indices"][step] == [list(pair) for pair in expected]
    assert [facts["begun_at"] for facts in told[0]] == [0, 0]
    assert [facts["begun_at"] for facts in told[1]] == [6, 6]  # the same command finds it finished
    identity = json.loads((tmp_path / "run/run.json").read_text())["identity"]
    assert identity["processes"] == 2
