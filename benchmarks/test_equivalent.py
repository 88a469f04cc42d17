"""The table of what must be equal: each row holds, and its plant breaks it; what a library does not hold is known."""

from dataclasses import replace

import pytest

from benchmarks.equivalences import KNOWN, ROWS
from benchmarks.equivalent.bench import Bench
from benchmarks.equivalent.compare import differences, gaps
from fixtures.session import session_of

DIFFERING, REFUSED = ([row for row in KNOWN if bool(row.refused) is refused] for refused in (False, True))

pytestmark = [
    pytest.mark.equivalent,
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),  # on what a row does to adapters on purpose
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # torch's compiler loads what torch deprecates
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # which it looks at in a layer's inputs
]


def cases(rows, cells_of):
    """A row's cells as parameters; as many processes share the test as the row has ranks."""
    return [pytest.param(row, cell, id=f"{row.id}-{cell}") for row in rows for cell in cells_of(row)]


@pytest.fixture
def cell(request, row, cell_id):
    """A quick cell of the study, or else of the zoo; what is not here is said."""
    if reason := row.missing():
        pytest.skip(f"{row.id} cannot be expressed here: {reason}")
    session = session_of(request.config)
    if row.ranks > 1 and session.child.ranks == 1:
        pytest.skip(f"{row.id} needs {row.ranks} processes, which --isolate starts")
    name = "quick" if cell_id in session.grid.recipes else "zoo"
    profile = session.profile(name)
    return session.grid_of(profile).cell(cell_id, replace(profile, ranks=row.ranks))


@pytest.fixture
def bench(cell, tokenizer, splits, device, ranks, tmp_path):
    return Bench(cell=cell, tokenizer=tokenizer, splits=splits, device=device, ranks=ranks, folder=tmp_path)


@pytest.fixture
def unequal(row, bench, benchmark):
    """Says where the two settings differ; keeps how far they are apart, for `--benchmark-json`."""

    def compare():
        one, other = row.one(bench), row.other(bench)
        found = differences(one, other, row.equal)
        facts = {"row": row.id, "of": bench.cell.id, "planted": bool(bench.plant), "seconds": other.get("seconds")}
        benchmark.extra_info.update(facts, apart=gaps(one, other, row.equal), differences=found)
        return found

    def ask():
        benchmark.group = "equivalent"
        return benchmark.pedantic(compare, rounds=1)

    return ask


@pytest.mark.parametrize(("row", "cell_id"), cases(ROWS, lambda row: row.cells))
def test_a_row_holds(unequal):
    assert unequal() == []


@pytest.mark.parametrize(("row", "cell_id"), cases(ROWS, lambda row: row.cells[:1]))
def test_its_plant_breaks_it(row, bench, unequal, monkeypatch):
    bench.plant = row.plant
    row.plant(monkeypatch)
    assert unequal(), f"{row.plant.__name__} passes: {row.plant.__doc__}"


@pytest.mark.parametrize(("row", "cell_id"), cases(DIFFERING, lambda row: row.cells))
def test_what_a_library_does_not_hold_is_still_so(row, bench, unequal):
    mended = f"{row.library} holds {row.id} now: make it a row of the table, with a plant ({row.what})"
    assert unequal(), mended


@pytest.mark.parametrize(("row", "cell_id"), cases(REFUSED, lambda row: row.cells))
def test_what_a_library_refuses_it_still_refuses(row, bench):
    with pytest.raises(Exception) as refusal:  # noqa: PT011 # the words tell
        row.other(bench)
    assert row.refused in f"{refusal.type.__name__}: {refusal.value}"
