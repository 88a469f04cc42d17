"""Tests that each plant is caught by the checks that it names, and a harmless plant by none.

Cells run in the pipeline that users run; the fixtures below break it and shorten some cells. `-m`
selects tables of plants: `faults`, `library_bugs`, `controls`, `equivalent` or `stock`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks.proof.plants.controls import CONTROLS
from benchmarks.proof.plants.equal import EQUAL
from benchmarks.proof.plants.invariants import INVARIANTS
from benchmarks.proof.plants.libraries import LIBRARIES
from benchmarks.proof.plants.plant import Plant, Planting, unchanged
from benchmarks.proof.plants.stock import STOCK
from benchmarks.proof.plants.study import STUDY
from benchmarks.proof.stock.stages import Pair as Sides
from benchmarks.proof.stock.stages import first_difference
from benchmarks.proof.test_equivalent import ROWS, bench, unequal  # noqa: F401 # bench: a fixture
from fixtures.pipeline import keep_rows
from fixtures.session import Session, get_session
from tunegrid import ROOT
from tunegrid.data.splits import Splits, load_splits
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate, read_run
from tunegrid.gate.judgements import DEFAULT_KINDS, Judgement, Verdict, find_worse
from tunegrid.gate.modules import Moved, parse_modules
from tunegrid.gate.numerics import FINE_TYPE, Change, Pair, first_change
from tunegrid.gate.thresholds import cell_tolerance, load_tolerances
from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import TOKEN_ROWS
from tunegrid.record.checks import below_bounds
from tunegrid.record.record import Record, TrainingRecord
from tunegrid.report.verdict import run_verdict
from tunegrid.run.before_training import before_training
from tunegrid.run.metrics import Metrics
from tunegrid.runs.files import read_list
from tunegrid.runs.status import cross_cell_audits
from tunegrid.tests.small import cell_trainer, silent

TABLES: Mapping[str, Sequence[Plant]] = {
    "faults": STUDY,
    "library_bugs": LIBRARIES,
    "controls": CONTROLS,
    "equivalent": EQUAL,
    "stock": STOCK,
}
PLANTS = list(chain.from_iterable(TABLES.values()))
EQUAL_ROWS = {row.id: row for row in ROWS}
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
TEST_ROWS = 96  # test or validation rows of a cell with its own settings
FIRST_ROWS = 256  # training rows of a run from which the gate names a module


def marks_of(plant: Plant) -> list[pytest.MarkDecorator]:
    """The marker of the plant's table; controls outside the quick grid also get their grid's."""
    names = [marker for marker, table in TABLES.items() if plant in table]
    if plant in CONTROLS and plant.profile != "quick":
        names.append(plant.profile)
    return [getattr(pytest.mark, name) for name in names]


def cases(plants: Iterable[Plant]) -> list[Any]:
    """The plants as parameters of a test, with ids and markers."""
    return [pytest.param(plant, id=plant.test_id, marks=marks_of(plant)) for plant in plants]


def is_in_a_cell(plant: Plant) -> bool:
    """Checks whether the plant is tested by running a whole cell."""
    if plant.breaks == "records" or plant in STOCK:
        return False
    return plant.caught_by not in ("refused", *INVARIANTS, *EQUAL_ROWS)


def differs_from_grid(plant: Plant) -> bool:
    """Checks whether the plant's cell differs from the grid's even without the plant."""
    return bool(plant.settings) or plant.ranks > 1 or plant.cell_as is not unchanged


def find_twins() -> list[Plant]:
    """One plant for each cell that differs from the grid's; without the plant, it must pass."""
    twins = {}
    for plant in PLANTS:
        if not (is_in_a_cell(plant) and plant.caught_by and differs_from_grid(plant)):
            continue
        if plant in CONTROLS and plant.profile == "quick":
            continue
        key = (plant.profile, plant.cell, str(plant.settings), plant.ranks, plant.cell_as)
        twins[key] = plant
    return list(twins.values())


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> bool:
    """Whether the test injects its plant; false for healthy twins."""
    return "twin" not in request.node.originalname


@pytest.fixture
def planting(monkeypatch: pytest.MonkeyPatch, plant: Plant, planted: bool) -> Iterator[Planting]:
    """The test's `Planting`; the test fails in teardown if a plant in a library never acted."""
    planting = Planting(monkeypatch)
    yield planting
    has_acted = planting.acts or not planted or plant.breaks != "libraries"
    assert has_acted, f"{plant.id} never acted, so nothing is proven: {plant.what}"


@pytest.fixture
def broken(plant: Plant, planted: bool, tmp_path: Path) -> Callable[..., Any]:
    """A function that returns a fixture's value, broken if the plant breaks that fixture."""

    def replaced(noun: str, value: Any, material: Any = tmp_path) -> Any:
        if planted and plant.breaks == noun:
            return plant.broken_by(value, material)
        return value

    return replaced


@pytest.fixture
def cell(request, plant, planted, planting, broken, monkeypatch, tmp_path) -> Cell:
    """The plant's cell, broken if the plant breaks cells.

    Plants in libraries are injected here, except those that make equal settings differ.
    """
    if plant.breaks == "libraries" and planted and plant.caught_by not in EQUAL_ROWS:
        monkeypatch.setattr("tunegrid.codecs.features._by_codec", {})
        plant.broken_by(planting)
    return broken("cell", cell_without(plant, get_session(request.config), tmp_path))


def cell_without(plant: Plant, session: Session, folder: Path) -> Cell:
    """The plant's cell, without the plant."""
    profile = replace(session.profile(plant.profile), ranks=plant.ranks)
    cell = session.get_grid(profile).cell(plant.cell, profile)
    recipe = replace(cell.recipe, **plant.settings)
    return plant.cell_as(replace(cell, recipe=recipe), folder)


@pytest.fixture
def built_cell(cell, broken) -> Cell:
    return broken("built_cell", cell)


@pytest.fixture
def splits(splits, plant, broken) -> Splits:
    if plant.settings:
        splits = replace(
            splits,
            validation=splits.validation[:TEST_ROWS],
            test=splits.test[:TEST_ROWS],
        )
    return broken("splits", splits)


@pytest.fixture
def validation_rows(splits, broken):
    return broken("validation_rows", splits.validation, splits)


def breakable(noun: str) -> Any:
    """Creates a fixture that overrides the pipeline's fixture `noun` and lets plants break it."""

    @pytest.fixture(name=noun)
    def fixture(request: pytest.FixtureRequest, broken: Callable[..., Any]) -> Any:
        return broken(noun, request.getfixturevalue(noun))

    return fixture


codec = breakable("codec")
model = breakable("model")
trainer = breakable("trainer")
score = breakable("score")
serving = breakable("serving")


@pytest.fixture
def bounds(bounds, plant) -> Mapping[str, float]:
    return {} if plant.settings else bounds


@pytest.fixture
def train(train, model, trainer, cell, broken):
    """A function that trains, then breaks the model if the plant breaks trained models.

    The plant gets the initial values of all trainable weights except the head's and new tokens'.
    """
    head_parts = (*cell.head.new_modules, TOKEN_ROWS)
    start = {}
    for name, p in trainer.parameters.items():
        if p.requires_grad and not is_part(name, head_parts):
            start[name] = p.detach().clone()

    def train_and_break(findings):
        training = train(findings)
        broken("trained", model, start)
        return training

    return train_and_break


@pytest.fixture
def objections(
    cell,
    audit,
    train,
    trainer,
    splits,
    score,
    record,
    benchmark,
    bounds,
    plant,
    planted,
) -> dict[str, str]:
    """The objections to a run of the cell, keyed by audit, stage of numerics, "bound" or "gate"."""
    benchmark.group = f"plants {plant.id}"
    findings = audit()
    training = benchmark.pedantic(train, args=(findings,), rounds=1)
    evaluation = None if training.stopped or trainer.paused else score(splits.test)
    if not training.stopped:
        findings = audit(findings, evaluation)
    row = record(training, evaluation, audits=findings, examples=keep_rows(cell, evaluation))
    misses = below_bounds(row.scores, bounds) if row.evaluation else []
    is_judged = planted and not differs_from_grid(plant)
    if plant.breaks != "libraries" and plant.caught_by:
        is_judged = False
    judgements, refusal = against_baseline(row) if is_judged else ([], "")
    answer = run_verdict([row], judgements, other_failures=[refusal] if refusal else [])
    benchmark.extra_info.update(
        plant=plant.id,
        of=plant.cell,
        exit_code=answer.exit_code,
        answer=answer.answer,
        scores=row.scores,
        bounds=dict(bounds),
        missed=misses,
    )
    sentences = {finding.name: finding.detail for finding in findings if not finding.passed}
    if misses:
        sentences["bound"] = "; ".join(misses)
    if refusal:
        sentences["gate"] = refusal
    return sentences | gate_objections(judgements)


def against_baseline(record: Record) -> tuple[list[Judgement], str]:
    """Judges a record against the committed baseline.

    Returns the judgements, and the reason if the cell did not finish or the gate could not judge.
    Both are empty if the cell finished but is not in the baseline.
    """
    run = Run.make([record])
    baseline = read_run(BASELINE)
    if not run.records:
        return [], f"the run did not finish: {record.status}"
    if record.cell not in baseline.records:
        return [], ""
    try:
        return gate(baseline.select(run.records), run), ""
    except InputError as error:
        return [], str(error)


def gate_objections(judgements: Sequence[Judgement]) -> dict[str, str]:
    """The gate's objections: changed numerics keyed by stage, and drops under "gate"."""
    sentences = {}
    for judgement in judgements:
        if judgement.verdict is Verdict.CHANGED and judgement.quantity == "numerics":
            stage = judgement.detail.partition(":")[0]
            sentences[stage] = judgement.detail
    drops = [f"{drop.quantity}: {drop.detail}" for drop in find_worse(judgements, DEFAULT_KINDS)]
    if drops:
        sentences["gate"] = "; ".join(drops)
    return sentences


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if is_in_a_cell(p) and p.caught_by))
def test_a_plant_is_caught(plant, objections):
    silent_audits = set(plant.caught_by.split(", ")).difference(objections)
    passed = f"{', '.join(silent_audits)} let it through: {plant.what}"
    assert not silent_audits, f"{passed}; objections: {objections or 'none'}"


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if not p.caught_by))
def test_a_change_without_harm_is_not(plant, objections):
    assert objections == {}


@pytest.mark.parametrize("plant", cases(find_twins()))
def test_a_healthy_twin_passes(plant, objections):
    assert objections == {}


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.breaks == "records"))
def test_a_plant_of_several_records_is_caught(plant):
    first_cell, second_cell = plant.cell.split(",")
    records = read_list(BASELINE)
    first = next(record for record in records if record.cell == first_cell)
    second = next(record for record in records if record.cell == second_cell)
    assert failed_audits([first, second]) == set()
    assert plant.caught_by in failed_audits([first, plant.broken_by(first, second)])


def failed_audits(records: Sequence[Record]) -> set[str]:
    """The names of the cross-cell audits that fail for these records."""
    findings = chain.from_iterable(cross_cell_audits(records).values())
    return {finding.name for finding in findings if not finding.passed}


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.caught_by == "refused"))
def test_a_plant_of_rows_is_refused_before_training(plant, cell):
    with pytest.raises(InputError, match="each is in a scored split, too"):
        load_splits(cell.task, cell.profile)


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.module))
def test_a_plant_names_its_module(plant, request, planting, monkeypatch, tmp_path):
    monkeypatch.setattr("tunegrid.codecs.features._by_codec", {})
    cell = cell_without(plant, get_session(request.config), tmp_path)
    old, before = first_updates(cell)
    plant.broken_by(planting)
    new, after = first_updates(cell)
    kind = f"nf4 {old.precision}" if cell.quantization else old.precision
    tolerance = cell_tolerance(cell.id, kind, load_tolerances())
    pair = Pair(
        old=old,
        new=new,
        tolerance=tolerance,
        fine=kind == FINE_TYPE,
        modules=lambda: (before, after),
    )
    change = first_change(pair) or Change("", "nothing changed")
    assert plant.module in named_modules(change, after), change.words


def first_updates(cell: Cell) -> tuple[TrainingRecord, pd.DataFrame]:
    """Trains a cell for three updates; returns the training record and the modules' figures."""
    figures: list[Any] = []
    short_cell = replace(cell, recipe=replace(cell.recipe, max_steps=3))
    rows = load_splits(short_cell.task, short_cell.profile).train[:FIRST_ROWS]
    trainer = cell_trainer(short_cell, rows)
    trainer.start_from(before_training(trainer, Metrics(), [*rows[:1]], figures.append))
    return trainer.run(silent()), parse_modules(*figures)


def named_modules(change: Change, modules: pd.DataFrame) -> list[str]:
    """Library and class of the module that a change names first, and of its parent module."""
    if not change.modules:
        return []
    module_rows = modules[modules.module == change.modules[0][0]]
    calls = modules[modules.phase.isin(module_rows.phase[:1])]
    named_calls = []
    for call in module_rows.index[:1]:
        named_calls.append(call)
        named_calls += islice(Moved(calls, calls).parent_calls(call), 1)
    return [f"{row.library}.{row.kind}" for row in calls.loc[named_calls].itertuples()]


@pytest.mark.library_bugs
@pytest.mark.parametrize("invariant", INVARIANTS.values(), ids=INVARIANTS)
def test_an_invariant_holds(invariant):
    assert invariant(), f"the installed libraries break it: {invariant.__doc__}"


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.caught_by in INVARIANTS))
def test_a_plant_breaks_its_invariant(plant, planting):
    plant.broken_by(planting)
    assert not INVARIANTS[plant.caught_by](), f"{plant.caught_by} holds all the same: {plant.what}"


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # PEFT warns about what rows do on purpose
@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.caught_by in EQUAL_ROWS))
def test_a_plant_makes_equal_settings_differ(plant, bench, planting):  # noqa: F811
    plant.broken_by(planting)
    assert unequal(EQUAL_ROWS[plant.caught_by], bench), f"they are equal all the same: {plant.what}"


@pytest.mark.filterwarnings("default")  # the libraries' own path may warn
@pytest.mark.parametrize("plant", cases(STOCK))
def test_a_plant_makes_the_own_path_of_libraries_differ(plant, request, planting, tmp_path):
    cell = cell_without(plant, get_session(request.config), tmp_path)
    splits = load_splits(cell.task, cell.profile)
    torch.set_num_threads(1)
    plant.broken_by(planting)
    device = torch.device("cpu")
    sentence = first_difference(Sides(cell, splits.train, splits.test, tmp_path, device))
    assert sentence.startswith(plant.caught_by)
