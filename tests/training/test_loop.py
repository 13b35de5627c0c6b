"""The loop: updates by hand, resuming, refusals, signals, and what a crash may leave."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from support.training_fixtures import ToyTask, toy_batches, toy_settings, toy_validation
from torch import nn

from sar2eo.errors import OutputError, PairsError, SettingsError, TrainingError, TrainingWarning
from sar2eo.training.loop import Outcome, _Run, create_accelerator, describe_run, run_loop
from sar2eo.training.phase import Phase, learning_rate
from sar2eo.training.run_folder import RunFolder, State, States, record
from sar2eo.training.task import Batch

pytestmark = pytest.mark.usefixtures("one_thread")


def go(out: Path, *, task: ToyTask | None = None, stop_after: int | None = None, **changes: Any) -> Outcome:
    settings = toy_settings(**changes)
    accelerator = create_accelerator(settings)

    def watch(counts: Any) -> None:
        if counts["steps"] == stop_after:
            raise InterruptedError

    return run_loop(
        task or ToyTask(),
        accelerator,
        settings=settings,
        batches=toy_batches(settings.accumulate),
        validation=toy_validation,
        out=out,
        identity=describe_run(settings, accelerator, data="points"),
        progress=watch,
    )


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "states" / f"step-{step:06d}"
    return {f"{p.stem}.{k}": v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_learning_rates_by_hand() -> None:
    settings = toy_settings(steps=12, warmup=4, lr=8.0)
    assert [learning_rate(settings, step) for step in range(4)] == [2, 4, 6, 8]
    assert learning_rate(settings, 4) == 8
    assert learning_rate(settings, 8) == pytest.approx(4)
    assert learning_rate(settings, 11) == pytest.approx(4 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(toy_settings(warmup=0, decay="constant", lr=8.0), 10**6) == 8


def test_loss_falls_and_the_result_is_the_average(tmp_path: Path) -> None:
    outcome = go(tmp_path / "run", steps=60, validate_every=20, save_every=0)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines if line["part"] == "validation"]
    assert scores[-1] < 0.1 * scores[0]
    assert outcome.metrics["score"] == scores[-1]
    state = tensors(tmp_path / "run", 60)
    exported = load_file(outcome.final / "line.safetensors")
    assert torch.equal(exported["weight"], state["average.line.weight"])
    assert not torch.equal(exported["weight"], state["weights.line.weight"])
    assert json.loads((outcome.final / "facts.json").read_text())["steps"] == 60
    assert len(list((tmp_path / "run/pictures").glob("*.png"))) == 3


def test_first_updates_by_hand() -> None:
    settings = toy_settings(lr=0.5, warmup=2, weight_decay=0.1, max_grad_norm=1e9, ema=0.9)
    task = ToyTask()
    weight = task.phases["line"].weight.detach().clone()
    phase = Phase("line", task, create_accelerator(settings), settings)
    batch: Batch = {"x": torch.ones(4, 1)}
    found = phase.update(0, [batch], [torch.Generator().manual_seed(0)])
    # Adam's first step is the learning rate against the gradient's sign, after decoupled weight decay.
    expected = weight * (1 - 0.25 * 0.1) + 0.25
    moved = task.phases["line"].weight.detach()
    assert moved.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found["lr"] == 0.25
    first = moved.clone()
    phase.update(1, [batch], [torch.Generator().manual_seed(0)])
    second = task.phases["line"].weight.detach()
    # The average's decay after n updates is (1 + n) / (10 + n), at most 0.9; it begins with the first.
    average = first + (1 - 2 / 11) * (second - first)
    assert phase.tensors()["average"]["line.weight"].item() == pytest.approx(average.item(), rel=1e-5)


def test_accumulation_is_the_mean_over_batches() -> None:
    settings = toy_settings(max_grad_norm=1e9)
    gradients = []
    for many in (1, 2):
        task = ToyTask()
        phase = Phase("line", task, create_accelerator(toy_settings(accumulate=many)), settings)
        batches: list[Batch] = [{"x": torch.full((4 // many, 1), 0.5)} for _ in range(many)]
        values = phase.update(0, batches, [torch.Generator().manual_seed(k) for k in range(many)])
        gradients.append(values["grad_norm"])
    assert gradients[1] == pytest.approx(gradients[0], rel=0.02)  # the noise differs a little


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_cut_short_ends_like_one_that_was_not(tmp_path: Path, stop_after: int, accumulate: int) -> None:
    go(tmp_path / "whole", accumulate=accumulate)
    with pytest.raises(InterruptedError):
        go(tmp_path / "cut", accumulate=accumulate, stop_after=stop_after)
    outcome = go(tmp_path / "cut", accumulate=accumulate)
    assert outcome.begun_at == stop_after // 2 * 2
    assert_same(tensors(tmp_path / "cut", 6), tensors(tmp_path / "whole", 6))
    for name in ("final", "best"):
        assert_same(
            load_file(tmp_path / "cut" / name / "line.safetensors"),
            load_file(tmp_path / "whole" / name / "line.safetensors"),
        )
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    go(tmp_path / "one")
    go(tmp_path / "other", seed=1)
    one, other = (tensors(tmp_path / run, 6)["weights.line.weight"] for run in ("one", "other"))
    assert not torch.equal(one, other)


def test_the_finished_run_says_so_and_does_nothing(tmp_path: Path) -> None:
    first = go(tmp_path / "run")
    stamp = (first.final / "facts.json").stat().st_mtime_ns
    again = go(tmp_path / "run", stop_after=1)
    assert (first.begun_at, again.begun_at) == (0, 6)
    assert (again.final / "facts.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.1}, r"begun with settings.lr=0.05, not 0.1"),
        ({"batch": 8}, r"begun with settings.batch=4, not 8"),
        ({"steps": 9}, r"steps=6, not 9: with decay=cosine"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    go(tmp_path / "run")
    with pytest.raises(TrainingError, match=message):
        go(tmp_path / "run", **changes)


def test_a_constant_rate_can_be_extended_and_ends_as_if_it_had_been_longer(tmp_path: Path) -> None:
    go(tmp_path / "long", steps=8, decay="constant")
    go(tmp_path / "run", decay="constant")
    outcome = go(tmp_path / "run", steps=8, decay="constant", keep=5, save_every=1)
    assert outcome.begun_at == 6
    assert_same(tensors(tmp_path / "run", 8), tensors(tmp_path / "long", 8))
    with pytest.raises(TrainingError, match="not cut to 6"):
        go(tmp_path / "run", decay="constant")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(TrainingError, match="other files than a run's"):
        go(tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").lock(), pytest.raises(OutputError, match="another run is writing"):
        go(tmp_path / "run")


def test_other_circumstances_are_told(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=3)
    path = tmp_path / "run/run.json"
    path.write_text(path.read_text().replace('"threads": 1,\n    "torch"', '"threads": 9,\n    "torch"'))
    with pytest.warns(TrainingWarning, match="begun with threads 9, goes on with 1: not bit for bit"):
        go(tmp_path / "run")


def test_a_signal_on_the_last_step_stops_what_follows(tmp_path: Path) -> None:
    settings = toy_settings()
    accelerator = create_accelerator(settings)

    def interrupt(counts: Any) -> None:
        if counts["steps"] == settings.steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_loop(
            ToyTask(),
            accelerator,
            settings=settings,
            batches=toy_batches(1),
            validation=toy_validation,
            out=tmp_path / "run",
            identity=describe_run(settings, accelerator, data="points"),
            progress=interrupt,
        )
    assert (tmp_path / "run/final").is_dir()  # nothing of it is lost
    assert go(tmp_path / "run").begun_at == settings.steps


def test_a_read_that_fails_loses_no_step(tmp_path: Path) -> None:
    go(tmp_path / "whole", save_every=0)
    settings, whole = toy_settings(save_every=0), toy_batches(1)

    def failing(start: int, stop: int) -> Iterator[Batch]:
        yield from whole(start, stop)
        raise PairsError("chip.tif: cannot be read (stale file handle)")

    def train(out: Path, steps: int) -> Outcome:
        accelerator = create_accelerator(settings)
        return run_loop(
            ToyTask(),
            accelerator,
            settings=settings,
            batches=lambda start, stop: failing(start, steps),
            validation=None,
            out=out,
            identity=describe_run(settings, accelerator, data="points"),
        )

    with pytest.raises(PairsError, match="stale"):
        train(tmp_path / "cut", 5)
    assert go(tmp_path / "cut", save_every=0).begun_at == 5
    assert_same(tensors(tmp_path / "cut", 6), tensors(tmp_path / "whole", 6))
    with pytest.raises(PairsError):
        train(tmp_path / "none", 0)  # no step was done, so there is nothing to keep
    assert not list((tmp_path / "none/states").glob("*"))


@pytest.mark.parametrize("broken", ["weights.safetensors", "state.json", "missing"])
def test_a_broken_newest_state_is_passed_over(tmp_path: Path, broken: str) -> None:
    go(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        go(tmp_path / "cut", stop_after=5)
    newest = tmp_path / "cut/states/step-000004"
    if broken == "missing":
        (newest / "optimiser.safetensors").unlink()
    else:
        content = bytearray((newest / broken).read_bytes())
        content[-3] ^= 1
        (newest / broken).write_bytes(content if broken != "state.json" else content[:-20])
    with pytest.warns(TrainingWarning, match="step-000004 is skipped"):
        outcome = go(tmp_path / "cut")
    assert outcome.begun_at == 2
    assert_same(tensors(tmp_path / "cut", 6), tensors(tmp_path / "whole", 6))


def test_nothing_but_broken_states_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=3)
    (tmp_path / "run/states/step-000002/state.json").unlink()
    with pytest.warns(TrainingWarning), pytest.raises(TrainingError, match="none of its 1 states"):
        go(tmp_path / "run")


def test_the_last_few_states_are_kept(tmp_path: Path) -> None:
    go(tmp_path / "run", save_every=1, keep=3)
    names = sorted(path.name for path in (tmp_path / "run/states").iterdir())
    assert names == ["step-000004", "step-000005", "step-000006"]


def test_a_state_after_a_broken_one_does_not_count_it_as_kept(tmp_path: Path) -> None:
    states = States(tmp_path, keep=1)
    for step in (2, 4):
        states.save(State(step=step, tensors={"weights": {"w": torch.ones(2)}}, facts={}))
    (tmp_path / "step-000009").mkdir()  # a future that never was
    states.save(State(step=5, tensors={"weights": {"w": torch.ones(2)}}, facts={}))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    states = States(tmp_path / "states", keep=2)
    states.save(State(step=1, tensors={"weights": {"w": torch.arange(4.0)}}, facts={"a": 1}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the system then says EFBIG
    try:
        with pytest.raises(OutputError, match="states"):
            states.save(State(step=2, tensors={"weights": {"w": torch.zeros(100_000)}}, facts={}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-000001"]
    latest = states.latest()
    assert latest is not None
    assert (latest.step, latest.facts) == (1, {"a": 1})
    assert torch.equal(latest.tensors["weights"]["w"], torch.arange(4.0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_state_first(tmp_path: Path, number: signal.Signals) -> None:
    class Stopped(ToyTask):
        def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> Any:
            if step == 2 and phase == "line":
                os.kill(os.getpid(), number)
            return super().loss(phase, batch, step, generator)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", task=Stopped(), save_every=0)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in (tmp_path / "cut/states").iterdir()] == ["step-000003"]
    assert go(tmp_path / "cut", save_every=0).begun_at == 3
    go(tmp_path / "whole")
    assert_same(tensors(tmp_path / "cut", 6), tensors(tmp_path / "whole", 6))


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    found: list[Any] = []

    class Stopped(ToyTask):
        def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> Any:
            if step == 2 and phase == "line":
                os.kill(os.getpid(), signal.SIGTERM)
                found.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)))
            return super().loss(phase, batch, step, generator)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", task=Stopped(), save_every=0)
    assert found == [signal.default_int_handler, signal.SIG_DFL]


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_state(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 4: the loss of line is nan"):
        go(tmp_path / "run", task=ToyTask(spoil_at=3))
    assert [path.name for path in (tmp_path / "run/states").iterdir()] == ["step-000002"]
    assert go(tmp_path / "run").begun_at == 2


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    class Steep(ToyTask):
        def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> Any:
            loss, facts = super().loss(phase, batch, step, generator)
            weight = self.phases[phase].weight
            return loss + (weight - weight.detach()).abs().sqrt().sum(), facts  # of infinite slope

    settings = toy_settings()
    task = Steep()
    before = task.phases["line"].weight.detach().clone()
    phase = Phase("line", task, create_accelerator(settings), settings)
    with pytest.raises(TrainingError, match="step 1: the gradient's norm of line is nan"):
        phase.update(0, [{"x": torch.ones(4, 1)}], [torch.Generator().manual_seed(0)])
    assert torch.equal(task.phases["line"].weight, before)


def test_a_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Telling(ToyTask):
        def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> Any:
            loss, facts = super().loss(phase, batch, step, generator)
            return loss, facts | {"half": loss.detach() / 2}

    settings = toy_settings(accumulate=2)
    phase = Phase("line", Telling(), create_accelerator(settings), settings)
    waits: list[str] = []
    originals = {name: getattr(torch.Tensor, name) for name in ("__float__", "__bool__", "item", "tolist")}
    for name, original in originals.items():

        def counted(self: torch.Tensor, name: str = name, original: Any = original) -> Any:
            if sys._getframe(1).f_code.co_filename.endswith("phase.py"):
                waits.append(name)
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    batch: Batch = {"x": torch.ones(4, 1)}
    found = phase.update(0, [batch, batch], [torch.Generator().manual_seed(k) for k in range(2)])
    assert waits == ["tolist"]
    assert found["half"] == pytest.approx(found["loss"] / 2)
    assert all(isinstance(value, float) for value in found.values())


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    class Spoilt(ToyTask):
        seen = 0

        def validate(self, batches: Any) -> dict[str, float]:
            self.seen += 1
            found = super().validate(batches)
            return {"score": math.nan} if self.seen == 1 else found

    go(tmp_path / "run", task=Spoilt())
    facts = json.loads((tmp_path / "run/best/facts.json").read_text())
    assert facts["steps"] > 2
    assert math.isfinite(facts["metrics"]["score"])


def test_moments_lie_in_memory_like_their_weights_after_a_resume() -> None:
    """Otherwise the fused updates of a GPU fall back to slow ones."""

    class Pictures(ToyTask):
        def __init__(self) -> None:
            super().__init__()
            self.phases = {"line": nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)}

        def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> Any:
            return self.phases[phase](batch["x"]).square().mean(), {}

    settings = toy_settings()

    def phase_of(task: ToyTask) -> Phase:
        return Phase("line", task, create_accelerator(settings), settings)

    first, second = phase_of(Pictures()), phase_of(Pictures())
    first.update(0, [{"x": torch.ones(2, 2, 5, 5)}], [torch.Generator()])
    stored = {
        file: {key: t.contiguous() for key, t in group.items()} for file, group in first.tensors().items()
    }
    second.restore(stored, first.facts())
    moments = second.tensors()["optimiser"]
    weight = second.tensors()["weights"]["line.weight"]
    assert moments["line.weight.exp_avg"].stride() == weight.stride() != weight.contiguous().stride()
    assert torch.equal(moments["line.weight.exp_avg"], first.tensors()["optimiser"]["line.weight.exp_avg"])


def test_a_run_goes_on_with_a_scaler_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    settings = toy_settings()
    run = _Run(ToyTask(), create_accelerator(settings), settings, RunFolder(tmp_path / "run"))
    run._accelerator.scaler = scaler  # another GPU computes in float16, where the first took bfloat16
    assert run.resume() == 2
    assert scaler.get_scale() == 8.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_before_the_first_step_can_be_stopped_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Encoding a cache may take hours, keeps what it finished, and has no step to wait for."""
    settings = toy_settings()
    accelerator = create_accelerator(settings)
    seen: list[Any] = []

    def cached(start: int, stop: int) -> Any:
        seen.append(signal.getsignal(number))
        return toy_batches()(start, stop)

    before = signal.getsignal(number)
    identity = describe_run(settings, accelerator)
    run_loop(
        ToyTask(), accelerator, settings=settings, batches=cached, validation=None,
        out=tmp_path / "run", identity=identity,
    )  # fmt: skip
    assert seen == [before]


def test_a_full_disk_leaves_the_result_before_and_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def export(path: Path, text: str = "old") -> Path:
        path.mkdir()
        (path / "weights").write_text(text)
        return path

    def fails(path: Path) -> Path:
        export(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    def fails_otherwise(path: Path) -> Path:
        export(path)
        raise SafetensorError("I/O error: No space left on device")

    folder.publish("best", export)
    for failing, told in ((fails, "no space"), (fails_otherwise, "cannot be written: I/O error")):
        with pytest.raises(OutputError, match=told):
            folder.publish("best", failing)
        assert [path.name for path in tmp_path.iterdir()] == ["best"]
        assert (tmp_path / "best/weights").read_text() == "old"


def test_a_full_disk_is_told_in_a_line_by_records_too(tmp_path: Path) -> None:
    def fill_up() -> None:
        with record(tmp_path, 0, writing=True) as recorder:
            assert recorder is not None
            recorder._lines.close()
            recorder._lines = Path("/dev/full").open("a")  # noqa: SIM115  (closing it fails, too)
            recorder.scalars(1, "train", {"loss": 1.0})

    with pytest.raises(OutputError, match="no space"):
        fill_up()


def test_results_are_on_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("sar2eo.store.atomic.sync_file", lambda path: synced.append(path.name))

    def export(path: Path) -> Path:
        (path / "vae").mkdir(parents=True)
        (path / "vae/weights").write_text("a")
        (path / "notes").write_text("b")
        return path

    RunFolder(tmp_path).publish("final", export)
    assert sorted(synced) == ["notes", "weights"]


def test_where_a_run_computes_may_change(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=3)
    assert go(tmp_path / "run", device="auto", gradient_checkpointing=True).begun_at == 2


def test_the_environment_does_not_overrule_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert create_accelerator(toy_settings(accumulate=2)).gradient_accumulation_steps == 2


def test_processes_wait_for_a_cache_as_long_as_it_takes() -> None:
    accelerator = create_accelerator(toy_settings())
    assert accelerator.init_handler is not None
    assert accelerator.init_handler.timeout >= timedelta(hours=24)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(SettingsError, match="a CPU trains in float32 or bfloat16"):
        create_accelerator(toy_settings(dtype="float16"))


def test_weights_stay_float32_in_half_precision(tmp_path: Path) -> None:
    go(tmp_path / "run", dtype="bfloat16")
    assert {t.dtype for t in tensors(tmp_path / "run", 6).values()} == {torch.float32, torch.int64}


def validated(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["part"] == "validation"]


def test_a_validation_that_a_stop_left_no_time_for_is_made_up_for(tmp_path: Path) -> None:
    whole, cut = go(tmp_path / "whole"), tmp_path / "cut"

    class Stopped(ToyTask):
        def loss(self, phase: str, batch: Batch, step: int, generator: torch.Generator) -> Any:
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(phase, batch, step, generator)

    with pytest.raises(KeyboardInterrupt):
        go(cut, task=Stopped())
    assert (cut / "states" / "step-000002").is_dir()
    outcome = go(cut)
    assert validated(cut) == validated(tmp_path / "whole") == [2, 4, 6]
    assert outcome.metrics == whole.metrics
    best = [load_file(run / "best" / "line.safetensors") for run in (cut, tmp_path / "whole")]
    assert_same(*best)


def test_steps_are_not_lost_with_a_validation_that_fails(tmp_path: Path) -> None:
    class Failing(ToyTask):
        def validate(self, batches: Any) -> dict[str, float]:
            raise OSError("a chip is missing")

    with pytest.raises(OSError, match="chip"):
        go(tmp_path / "cut", task=Failing(), validate_every=4, save_every=5)
    assert (tmp_path / "cut" / "states" / "step-000004").is_dir()
    outcome = go(tmp_path / "cut", validate_every=4, save_every=5)
    assert outcome.begun_at == 4
    assert validated(tmp_path / "cut") == [4, 6]
    go(tmp_path / "whole", validate_every=4, save_every=5)
    assert_same(tensors(tmp_path / "cut", 6), tensors(tmp_path / "whole", 6))


def test_a_run_whose_adversary_joined_after_a_share_of_its_steps_is_not_extended(tmp_path: Path) -> None:
    identity = {"settings.decay": "constant", "settings.steps": 100, "settings.adversarial": 0.1}
    for start, refused in ((0.67, True), (0.0, False), (1.0, False)):
        begun = {**identity, "settings.adversarial_from": start}
        folder = RunFolder(tmp_path / f"run-{start}")
        folder.path.mkdir()
        folder.begin(begun, {})
        if refused:
            with pytest.raises(TrainingError, match="adversary"):
                folder.check({**begun, "settings.steps": 200})
        else:
            folder.check({**begun, "settings.steps": 200})


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "run" / ".final.new.partial-4711"
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=1)
    left.mkdir()
    (left / "weights").write_bytes(b"gigabytes")
    go(tmp_path / "run")
    assert not left.exists()


def test_no_threads_are_refused() -> None:
    with pytest.raises(SettingsError, match="threads=-1"):
        toy_settings(threads=-1)
