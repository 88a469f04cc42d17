"""With each plant, the check that its row names objects; without it, nothing does.

The pipeline is the one that users run: the fixtures below replace the one that a plant breaks. `-m faults`, `library_bugs`,
`controls`, `equivalent` and `stock` choose the tables.
"""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks.proof.plants.controls import CONTROLS
from benchmarks.proof.plants.equal import EQUAL
from benchmarks.proof.plants.invariants import INVARIANTS
from benchmarks.proof.plants.libraries import LIBRARIES
from benchmarks.proof.plants.plant import Planting, unchanged
from benchmarks.proof.plants.stock import STOCK
from benchmarks.proof.plants.study import STUDY
from benchmarks.proof.stock.stages import Pair as Sides
from benchmarks.proof.stock.stages import first_difference
from benchmarks.proof.test_equivalent import ROWS, bench, unequal  # noqa: F401 # a fixture among them
from fixtures.pipeline import keep_rows
from fixtures.session import get_session
from tunegrid import ROOT
from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate, read_run
from tunegrid.gate.judgements import DEFAULT_KINDS, Verdict, find_worse
from tunegrid.gate.modules import Moved, parse_modules
from tunegrid.gate.numerics import FINE, Change, Pair, first_change
from tunegrid.gate.thresholds import cell_tolerance, load_tolerances
from tunegrid.grid.backbones import is_part
from tunegrid.grid.methods import TOKEN_ROWS
from tunegrid.record.checks import below_bounds
from tunegrid.report.verdict import run_verdict
from tunegrid.run.before_training import before_training
from tunegrid.run.metrics import Metrics
from tunegrid.runs.files import read_list
from tunegrid.runs.status import cross_cell_audits
from tunegrid.tests.small import cell_trainer, silent

TABLES = {"faults": STUDY, "library_bugs": LIBRARIES, "controls": CONTROLS, "equivalent": EQUAL, "stock": STOCK}
MARKERS = {plant: [marker] for marker, table in TABLES.items() for plant in table}
MARKERS |= {plant: ["controls", plant.profile] for plant in CONTROLS if plant.profile != "quick"}
PLANTS = [*MARKERS]
EQUAL_ROWS = {row.id: row for row in ROWS}
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
TEST_ROWS = 96  # for a cell with settings of its own
FIRST_ROWS = 256  # of training, to name a module


def cases(plants):
    """Plants as parameters, with the markers of their table."""
    return [
        pytest.param(
            plant,
            id="-".join(filter(None, (plant.profile, plant.id, plant.cell, f"{plant.ranks}ranks" * (plant.ranks > 1)))),
            marks=[getattr(pytest.mark, name) for name in MARKERS[plant]],
        )
        for plant in plants
    ]


def in_a_cell(plant):
    """A cell trains with it and is recorded."""
    return plant.breaks != "records" and plant not in STOCK and plant.caught_by not in ("refused", *INVARIANTS, *EQUAL_ROWS)


def twins():
    """A plant for every cell that the grid does not run as it is: the same cell without the plant must pass."""
    others = [plant for plant in PLANTS if in_a_cell(plant) and plant.caught_by and MARKERS[plant] != ["controls"]]
    keyed = {(p.profile, p.cell, str(p.settings), p.ranks, p.cell_as): p for p in others if differs_from_grid(p)}
    return list(keyed.values())


def differs_from_grid(plant):
    return plant.settings or plant.ranks > 1 or plant.cell_as is not unchanged


@pytest.fixture
def planted(request):
    return "twin" not in request.node.originalname


@pytest.fixture
def planting(monkeypatch, plant, planted):
    planting = Planting(monkeypatch)
    yield planting
    has_acted = planting.acts or not planted or plant.breaks != "libraries"
    assert has_acted, f"{plant.id} never acted, so nothing is proven: {plant.what}"


@pytest.fixture
def broken(plant, planted, tmp_path):
    """Replaces the value of the fixture that the plant breaks."""

    def replaced(noun, value, material=tmp_path):
        return plant.broken_by(value, material) if planted and plant.breaks == noun else value

    return replaced


@pytest.fixture
def cell(request, plant, planted, planting, broken, monkeypatch, tmp_path):
    """The cell; a library is broken before all else, and no rows are shared with cells over another one."""
    if plant.breaks == "libraries" and planted and plant.caught_by not in EQUAL_ROWS:
        monkeypatch.setattr("tunegrid.codecs.features._by_codec", {})
        plant.broken_by(planting)
    return broken("cell", cell_without(plant, get_session(request.config), tmp_path))


def cell_without(plant, session, folder):
    """The plant's cell, sound."""
    profile = replace(session.profile(plant.profile), ranks=plant.ranks)
    cell = session.get_grid(profile).cell(plant.cell, profile)
    return plant.cell_as(replace(cell, recipe=replace(cell.recipe, **plant.settings)), folder)


@pytest.fixture
def built_cell(cell, broken):
    return broken("built_cell", cell)


@pytest.fixture
def splits(splits, plant, broken):
    if plant.settings:
        splits = replace(splits, validation=splits.validation[:TEST_ROWS], test=splits.test[:TEST_ROWS])
    return broken("splits", splits)


@pytest.fixture
def validation_rows(splits, broken):
    return broken("validation_rows", splits.validation, splits)


def breakable(noun):
    """The pipeline's fixture of this name, whose value a plant may replace."""

    @pytest.fixture(name=noun)
    def fixture(request, broken):
        return broken(noun, request.getfixturevalue(noun))

    return fixture


codec, model, trainer, score, serving = map(breakable, ("codec", "model", "trainer", "score", "serving"))


@pytest.fixture
def bounds(bounds, plant):
    return {} if plant.settings else bounds


@pytest.fixture
def train(train, model, trainer, cell, broken):
    """Trains, and breaks what was trained. A plant gets the adapter as it started: what trains, but the head and new tokens."""
    head_parts = (*cell.head.new_modules, TOKEN_ROWS)
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad and not is_part(name, head_parts)}
    start = {name: p.detach().clone() for name, p in trained.items()}

    def train_and_break(findings):
        training = train(findings)
        broken("trained", model, start)
        return training

    return train_and_break


@pytest.fixture
def objections(cell, audit, train, trainer, splits, score, record, benchmark, bounds, plant, planted):
    """What objects to the run, or to its first updates: the sentence by audit, stage of numerics, "bound" and "gate"."""
    benchmark.group = f"plants {plant.id}"
    findings = audit()
    training = benchmark.pedantic(train, args=(findings,), rounds=1)
    evaluation = None if training.stopped or trainer.paused else score(splits.test)
    if not training.stopped:
        findings = audit(findings, evaluation)
    row = record(training, evaluation, audits=findings, examples=keep_rows(cell, evaluation))
    misses = below_bounds(row.scores, bounds) if row.evaluation else []
    failed = {finding.name: finding.detail for finding in findings if not finding.passed}
    is_judged = planted and not differs_from_grid(plant) and (plant.breaks == "libraries" or not plant.caught_by)
    judgements, refusal = against_baseline(row) if is_judged else ([], "")
    answer = run_verdict([row], judgements, other_failures=[refusal] if refusal else [])
    facts = {"plant": plant.id, "of": plant.cell, "exit_code": answer.exit_code, "answer": answer.answer}
    benchmark.extra_info.update(facts, scores=row.scores, bounds=dict(bounds), missed=misses)
    bound = {"bound": "; ".join(misses)} if misses else {}
    return failed | bound | ({"gate": refusal} if refusal else gate_objections(judgements))


def against_baseline(record):
    """The gate's judgements against the committed baseline's first seed, or why there are none."""
    run, baseline = Run.make([record]), read_run(BASELINE)
    if not run.records:
        return [], f"the run did not finish: {record.status}"
    if record.cell not in baseline.records:
        return [], ""
    try:
        return gate(baseline.select(run.records), run), ""
    except InputError as error:
        return [], str(error)


def gate_objections(judgements):
    """What the gate and the first stage of numerics say, by "gate" and stage."""
    changes = [j.detail for j in judgements if j.verdict is Verdict.CHANGED and j.quantity == "numerics"]
    drops = [f"{j.quantity}: {j.detail}" for j in find_worse(judgements, DEFAULT_KINDS)]
    return {detail.partition(":")[0]: detail for detail in changes} | ({"gate": "; ".join(drops)} if drops else {})


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if in_a_cell(p) and p.caught_by))
def test_a_plant_is_caught(plant, objections):
    silent_audits = set(plant.caught_by.split(", ")).difference(objections)
    assert not silent_audits, f"{', '.join(silent_audits)} let it through: {plant.what}; objections: {objections or 'none'}"


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if not p.caught_by))
def test_a_change_without_harm_is_not(plant, objections):
    assert objections == {}


@pytest.mark.parametrize("plant", cases(twins()))
def test_a_healthy_twin_passes(plant, objections):
    assert objections == {}


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.breaks == "records"))
def test_a_plant_of_several_records_is_caught(plant):
    first, second = (next(row for row in read_list(BASELINE) if row.cell == cell) for cell in plant.cell.split(","))
    assert objecting([first, second]) == set()
    assert plant.caught_by in objecting([first, plant.broken_by(first, second)])


def objecting(records):
    return {finding.name for findings in cross_cell_audits(records).values() for finding in findings if not finding.passed}


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
    pair = Pair(old=old, new=new, tolerance=tolerance, fine=kind == FINE, modules=lambda: (before, after))
    change = first_change(pair) or Change("", "nothing changed")
    assert plant.module in named_modules(change, after), change.words


def first_updates(cell):
    """A cell's first three updates: the record's part, and the figures of modules."""
    figures = []
    short_cell = replace(cell, recipe=replace(cell.recipe, max_steps=3))
    rows = load_splits(short_cell.task, short_cell.profile).train[:FIRST_ROWS]
    trainer = cell_trainer(short_cell, rows)
    trainer.start_from(before_training(trainer, Metrics(), [*rows[:1]], figures.append))
    return trainer.run(silent()), parse_modules(*figures)


def named_modules(change, modules):
    """The module that a change names first, and the one around it, each as library and class."""
    module_rows = modules[modules.module == change.modules[0][0]] if change.modules else modules[:0]
    calls = modules[modules.phase.isin(module_rows.phase[:1])]
    parents = [outer for call in module_rows.index[:1] for outer in islice(Moved(calls, calls).parent_calls(call), 1)]
    return [f"{one.library}.{one.kind}" for one in calls.loc[[*module_rows.index[:1], *parents]].itertuples()]


@pytest.mark.library_bugs
@pytest.mark.parametrize("invariant", INVARIANTS.values(), ids=INVARIANTS)
def test_an_invariant_holds(invariant):
    assert invariant(), f"the installed libraries break it: {invariant.__doc__}"


@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.caught_by in INVARIANTS))
def test_a_plant_breaks_its_invariant(plant, planting):
    plant.broken_by(planting)
    assert not INVARIANTS[plant.caught_by](), f"{plant.caught_by} holds all the same: {plant.what}"


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # on what a row does to adapters on purpose
@pytest.mark.parametrize("plant", cases(p for p in PLANTS if p.caught_by in EQUAL_ROWS))
def test_a_plant_makes_equal_settings_differ(plant, bench, planting):  # noqa: F811
    plant.broken_by(planting)
    assert unequal(EQUAL_ROWS[plant.caught_by], bench), f"they are equal all the same: {plant.what}"


@pytest.mark.filterwarnings("default")  # what the libraries' own path warns of is theirs
@pytest.mark.parametrize("plant", cases(STOCK))
def test_a_plant_makes_the_own_path_of_libraries_differ(plant, request, planting, tmp_path):
    cell = cell_without(plant, get_session(request.config), tmp_path)
    splits = load_splits(cell.task, cell.profile)
    torch.set_num_threads(1)
    plant.broken_by(planting)
    sentence = first_difference(Sides(cell, splits.train, splits.test, tmp_path, torch.device("cpu")))
    assert sentence.startswith(plant.caught_by)
