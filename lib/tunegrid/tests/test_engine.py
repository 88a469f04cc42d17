"""`--engine ray` without Ray: what goes together, how nodes are shared, what travels. Ray itself is in test_cluster.py."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest

import fixtures.engine as engine
import fixtures.session as session_module
from fixtures.cluster import FORWARDED
from fixtures.errand import FRESH_SECONDS, Board, Errand, environment_of
from fixtures.luggage import pack, without
from fixtures.process import Ended
from fixtures.session import Session, attach, attached
from fixtures.shares import Share, fits, places, share_of
from tunegrid import ROOT
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE
from tunegrid.machine import thread_share
from tunegrid.record import new_record, to_json
from tunegrid.results import run_table
from tunegrid.tests.test_record import MEASURED, complete
from tunegrid.tests.test_suite import run

# What goes together


@pytest.mark.parametrize(
    ("options", "installed", "sentence"),
    [
        ({"--engine": "ray"}, False, "--engine ray needs Ray, which is not installed here: pip install '.[cluster]'"),
        ({"--engine": "ray", "numprocesses": 2}, True, "-n among workers here: give one of the two"),
        ({"--engine": "ray", "--isolate": "yes"}, True, "leave out --isolate"),
        ({"--engine": "ray", "--isolate": "no"}, True, "leave out --isolate"),
        ({"--engine": "ray", "usepdb": True}, True, "--pdb needs the cells in this process"),
        ({"--engine": "ray", "--device": "cuda:1"}, True, "Ray chooses the machine: give --device cuda"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_a_sentence(monkeypatch, options, installed, sentence):
    monkeypatch.setattr(engine, "find_spec", lambda name: object() if installed else None)
    given = {"--isolate": "auto"} | options
    with pytest.raises(pytest.UsageError, match=sentence.replace("[", r"\[")):
        engine.check(SimpleNamespace(getoption=lambda name, default=None: given.get(name, default)))


def test_the_refusal_stands_alone_on_the_terminal(tmp_path):
    code, output, _ = run(tmp_path, "-m", "quick", "--engine", "ray", "--isolate=yes", PYTHONPATH=str(with_ray(tmp_path)))
    lines = [line for line in output.splitlines() if line]
    assert code == pytest.ExitCode.USAGE_ERROR
    assert lines == ["ERROR: --engine ray runs each cell in a process of its own: leave out --isolate"]


def with_ray(folder):
    """A folder that makes Ray seem installed."""
    (folder / "ray").mkdir()
    (folder / "ray" / "__init__.py").touch()
    return folder


@pytest.mark.parametrize(
    ("variable", "address"), [(None, None), ("", None), ("local", None), ("auto", "auto"), ("h:6379", "h:6379")]
)
def test_ray_starts_here_unless_a_cluster_is_named(monkeypatch, variable, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert engine.address() == address


# Sharing nodes out

GPU_NODES = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}]


def share(profile, gpu=False, needed_gib=None, gpu_gib=None, nodes=GPU_NODES):
    return share_of(profile, nodes, gpu=gpu, needed_gib=needed_gib, gpu_gib=gpu_gib)


def test_a_quick_cell_takes_the_one_thread_of_its_profile():
    assert share(QUICK_PROFILE) == Share(num_cpus=1, num_gpus=0.0)
    assert places(share(QUICK_PROFILE), GPU_NODES) == 16 + 64 + 4


def test_a_cell_on_a_gpu_takes_it_whole_with_as_many_processors_as_every_gpu_has():
    assert share(FULL_PROFILE, gpu=True) == Share(num_cpus=8, num_gpus=1.0)  # 16 / 2 and 64 / 8
    assert share(FULL_PROFILE, gpu=True, nodes=[{"CPU": 6.0, "GPU": 4.0}]).num_cpus == 1  # 1.5
    assert places(Share(num_cpus=8, num_gpus=1.0), GPU_NODES) == 10


def test_cells_that_may_share_a_gpu_take_what_they_were_measured_to_need_and_a_quarter_more():
    assert share(FULL_PROFILE, gpu=True, needed_gib=16.0, gpu_gib=80.0).num_gpus == 0.25
    assert share(FULL_PROFILE, gpu=True, needed_gib=70.0, gpu_gib=80.0).num_gpus == 1.0
    assert share(FULL_PROFILE, gpu=True, needed_gib=None, gpu_gib=80.0).num_gpus == 1.0
    assert places(Share(num_cpus=1, num_gpus=0.25), [{"CPU": 64.0, "GPU": 1.0}]) == 4


def test_a_full_cell_without_a_gpu_takes_the_processors_of_the_smallest_node():
    assert share(FULL_PROFILE) == Share(num_cpus=4, num_gpus=0.0)
    assert share(FULL_PROFILE, nodes=[{"CPU": 0.0}, {"CPU": 32.0}]).num_cpus == 32  # a head that runs nothing


def test_a_cluster_whose_nodes_have_not_come_yet_has_a_place():
    assert share(FULL_PROFILE, gpu=True, nodes=[]) == Share(num_cpus=1, num_gpus=1.0)
    assert places(Share(num_gpus=1.0), []) == 1


def test_whether_cells_must_wait_for_a_node_is_known():
    assert fits(Share(num_cpus=8, num_gpus=1.0), GPU_NODES)
    assert not fits(Share(num_cpus=8, num_gpus=1.0), [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}])
    assert Share(num_cpus=8, num_gpus=1.0).words == "1 GPU and 8 processors"
    assert Share().words == "1 processor"


def test_threads_are_those_that_the_scheduler_gave(monkeypatch):
    monkeypatch.setenv("TUNEGRID_CORES", "3")
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    assert thread_share(FULL_PROFILE.threads) == 3
    assert thread_share(QUICK_PROFILE.threads) == 1


# What travels


def test_a_forwarded_cuda_visible_devices_would_undo_rays_choice(monkeypatch):
    assert "CUDA_VISIBLE_DEVICES" not in FORWARDED
    worker = {"CUDA_VISIBLE_DEVICES": "3", "PYTEST_XDIST_WORKER": "gw1", "PYTEST_ADDOPTS": "-v", "PYTHONPATH": "/there"}
    there = environment_of(worker, Errand(nodeid="n", arguments=(), import_from=("grids/0",), cores=4))
    assert there == {
        "CUDA_VISIBLE_DEVICES": "3",
        "PYTEST_ADDOPTS": "-v",
        "TUNEGRID_CORES": "4",
        "OMP_NUM_THREADS": "4",
        "RAYON_NUM_THREADS": "4",
        "PYTHONPATH": f"{ROOT}/grids/0{os.pathsep}/there",
    }


def test_the_luggage_is_the_code_and_what_a_users_file_imports_from_its_folder(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "dora.py").write_text("import helper\n")
    (mine / "helper.py").touch()
    (mine / "other.py").touch()
    packed = tmp_path / "packed"
    pack(packed, [mine / "dora.py"])
    assert {path.name for path in packed.iterdir()} == {
        *("lib", "fixtures", "benchmarks", "grids"),
        *("conftest.py", "pyproject.toml"),
    }
    assert {path.name for path in (packed / "grids" / "0").iterdir()} == {"dora.py", "helper.py"}
    assert (packed / "fixtures" / "backbones" / "bert-micro" / "model.safetensors").is_file()
    assert not list(packed.rglob("test_engine.py"))
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "--grid=grids/0/dora.py", "--cells", "bert_sa_lora"],
        cwd=packed, env=os.environ | {"PYTHONPATH": "grids/0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "has no function pytest_tunegrid_grid" in listed.stderr  # it is read there, with what it imports


def test_arguments_leave_places_and_grids_behind():
    given = [
        "-m",
        "full",
        "--grid",
        "a.py",
        "--child=/tmp/here.json",
        "benchmarks",
        "-k",
        "sa",
        "--grid=b.py",
        "benchmarks/test_finetune.py::x",
    ]
    kept = ["-m", "full", "-k", "sa"]
    assert without(given, ["benchmarks", "benchmarks/test_finetune.py::x"]) == kept
    assert without(["-k", "benchmarks", "benchmarks"], ["benchmarks"]) == ["-k", "benchmarks"]


def test_what_a_worker_told_is_shown_until_it_is_stale(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    board = Board()
    board.start("a")
    board.tell({"a.json": "1"})
    now[0] += FRESH_SECONDS - 1
    board.tell({"b.json": "2"})
    assert board.standings() == {"a.json": "1", "b.json": "2"}
    now[0] += 2
    board.start("a")
    assert (board.standings(), board.starts()) == ({"b.json": "2"}, {"a": 2})


# Coming home


class FakeCluster:
    """Cells end in this order, whatever pytest asks for."""

    def __init__(self, order):
        self.order = order

    def ended(self, sent, seconds):
        return next((name for name in self.order if name in sent), None)

    def bring(self, name):
        return f"lost: {name}"


class Item(SimpleNamespace):
    """As much of a test as the engine needs."""

    __hash__ = object.__hash__


def test_cells_are_reported_in_the_order_in_which_they_end_each_once(request, monkeypatch):
    reported = []
    monkeypatch.setattr(engine, "report", lambda item, reports: reported.append(item.nodeid))
    driver = engine.RayEngine(Session(request.config))
    monkeypatch.setattr(driver, "_show", lambda cluster: None)
    items = [Item(nodeid=name, session=SimpleNamespace(_setupstate=SimpleNamespace(teardown_exact=id))) for name in "abcd"]
    driver._cluster = FakeCluster(["c", "a", "b"])
    driver._sent = {item.nodeid: item for item in items[:3]}
    driver._session.elsewhere = {"a", "b", "c"}
    assert [driver.pytest_runtest_protocol(item, None) for item in items] == [True, True, True, None]
    assert reported == ["c", "a", "b"]


def test_half_a_report_is_of_a_test_that_did_not_end():
    assert not Ended(returncode=-9, reports=('{"when": "setup"}', '{"when": "tear')).whole
    assert not Ended(returncode=0, reports=()).whole
    assert Ended(returncode=0, reports=('{"when": "setup"}', '{"when": "teardown"}')).whole


def test_a_row_is_kept_under_this_sessions_key_of_the_cell_and_by_its_clock(request, monkeypatch):
    driver = engine.RayEngine(Session(request.config))
    far = SimpleNamespace(start=1e12, stop=1e12 + 5, duration=5.0)
    attach(far, "the node's key", {"extra_info": to_json(new_record(STUDY.cell("bert_sa_lora", QUICK_PROFILE)))})
    monkeypatch.setattr(engine, "reports_of", lambda item, ended: [far])
    monkeypatch.setattr(driver._session, "run_of", lambda item: SimpleNamespace(key="ours"))
    monkeypatch.setattr(engine.examples, "keep_contents", lambda files: None)
    [report] = driver._reports(None, SimpleNamespace(files={}, ended=None))
    assert attached(report)[0] == "ours"
    assert report.stop == pytest.approx(time.time(), abs=60)
    assert report.stop - report.start == pytest.approx(5.0)


def test_on_ray_a_cells_key_is_of_no_device_and_of_no_local_run(request, monkeypatch):
    local, remote = Session(request.config), Session(request.config)
    remote.on_ray = True
    monkeypatch.setattr(session_module, "_devices", lambda wish, threads: pytest.fail("this machine's devices are asked"))
    full = STUDY.cell("bert_sa_lora", replace(FULL_PROFILE, data_root=ROOT, checkpoint_root=ROOT))
    assert remote.key_of(full) == remote.key_of(full)
    quick = STUDY.cell("bert_sa_lora", QUICK_PROFILE)
    assert remote.key_of(quick) != local.key_of(quick)


ORPHAN = """
import os, subprocess, sys
child = "import os, sys; from fixtures.isolation import end_with; end_with(int(sys.argv[1]))"
print(subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.DEVNULL).pid, flush=True)
"""


def test_a_cells_process_ends_with_the_one_that_wants_it():
    parent = subprocess.run([sys.executable, "-c", ORPHAN], cwd=ROOT, capture_output=True, text=True, check=True)
    orphan, patience = int(parent.stdout), time.monotonic() + 9
    with suppress(ProcessLookupError):
        while time.monotonic() < patience:
            os.kill(orphan, 0)
            time.sleep(0.1)
        pytest.fail("it still runs")


# Nodes that differ


def test_a_mixed_run_says_so():
    like = [complete(), complete("bert_sa_sft")]
    assert run_table.mixture(like) == ""
    other = complete("t5_sa_sft", device=MEASURED["device"] | {"name": "H100"}, versions=like[0].versions | {"torch": "9"})
    assert run_table.mixture([*like, other]) == (
        f"a mixed run: 2 on a CPU, 1 on H100; torch {' and '.join(sorted(['9', like[0].versions['torch']]))}; "
        "compare speed and memory only between like cells, as the gate does"
    )
    assert run_table.footer([*like, other], 1.0).splitlines()[1] == run_table.mixture([*like, other])
