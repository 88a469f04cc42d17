"""`pytest -m peers`: our loop beside other people's, on the same rows, batches, precision and updates, for each of 27 cells.

A peer that is faster is a finding, which the table shows; no test fails by it.
"""

from dataclasses import replace

import pytest

from fixtures.session import session_of
from lib.grid.cells import STUDY_IDS
from lib.machine import cpu_name, gpus, hides_gpus
from lib.results.peers import CellPeers, Stage, Timed, held

pytestmark = pytest.mark.peers

TEST_ROWS = {True: 64, False: 256}  # by whether they are generated, which takes long


@pytest.fixture
def profile(request):
    """The full profile on the device that there is, or the micro one."""
    session = session_of(request.config)
    if session.option("--peers-micro"):
        return session.profile("quick")
    if not (session.option("--checkpoint-root") and session.option("--data-root")):
        pytest.skip("peers train from local folders: give --checkpoint-root=DIR and --data-root=DIR, or --peers-micro")
    cuda = not hides_gpus() and bool(gpus())
    return replace(session.profile("full"), device=session.option("--device") or ("cuda" if cuda else "cpu"))


@pytest.fixture
def cell(request, profile, cell_id):
    """The cell over as many updates as are timed, its rate the recipe's from the first one on, so that each update moves."""
    from lib.run.peers import WARMUP_UPDATES

    grid, updates = session_of(request.config).grid, request.config.getoption("--peer-updates") + WARMUP_UPDATES
    recipe = grid.cell(cell_id, profile).recipe
    rows = updates * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    profile = replace(
        profile,
        train_rows=profile.train_rows or rows,
        eval_rows=profile.eval_rows or TEST_ROWS[bool(recipe.generation)],
    )
    cell = grid.cell(cell_id, profile)
    shorter = {"max_steps": updates, "num_train_epochs": 1, "warmup_steps": 0, "warmup_ratio": 0.0}
    return replace(cell, recipe=replace(cell.recipe, **shorter))


@pytest.fixture
def race(cell, model, codec, features, device, progress):
    from lib.run.peers import race_of

    return race_of(cell, model, codec, features, device, progress)


@pytest.fixture
def scored(codec, splits):
    from lib.codecs.cache import features_of

    return features_of(codec, splits.test, training=False)


@pytest.fixture
def theirs(cell, device):
    """Who runs other people's loops: a process of their own; on a GPU this one, whose memory one model has for itself."""
    from lib.run.peers_apart import apart

    if device.type == "cuda":
        yield None
    else:
        with apart(cell, device) as ask:
            yield ask


def stage_of(heats, samples, kind):
    """What was measured; a contender that computes another thing than ours does not count."""
    return held(Stage(samples=samples, contenders={name: Timed(**vars(heat)) for name, heat in heats.items()}), kind)


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_peers(cell, race, scored, theirs, peers, request):
    import torch

    from lib.run import peers_rounds

    rounds, recipe = request.config.getoption("--peer-rounds"), cell.recipe
    updates = request.config.getoption("--peer-updates")
    batch = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    arithmetic = "nf4" if cell.quantization else race.precision
    row = CellPeers(
        cell=cell.id,
        precision=race.precision,
        batch=batch,
        updates=updates,
        train=stage_of(peers_rounds.train(race, rounds, theirs), updates * batch[0] * batch[1], arithmetic),
    )
    if race.codec.generates:
        row.generate = stage_of(peers_rounds.generate(race, scored, rounds, theirs), len(scored), "texts")
    else:
        row.evaluate = stage_of(peers_rounds.evaluate(race, scored, rounds, theirs), len(scored), "evaluation")
    peers.add(row, torch.cuda.get_device_name(race.device) if race.device.type == "cuda" else cpu_name())
