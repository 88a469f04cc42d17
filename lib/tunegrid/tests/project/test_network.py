"""No profile but `full` touches a network, and none computes with code from the hub.

The hub's address is that of a listener on this machine, which writes each question down. Sockets to
other machines raise. HF_HUB_OFFLINE is not set.
"""

import shlex
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from packaging.version import Version
from transformers import __version__ as transformers_version

from tunegrid import ROOT
from tunegrid.instruments import LISTED
from tunegrid.tests.sessions import SMALL, SOURCES, environment

# A library may swallow what a socket raises, and try again: each attempt is written down, too.
NO_NETWORK = """
import os, socket, traceback

HERE = ("127.0.0.1", "::1", "localhost", None)
CONNECT, RESOLVE = socket.socket.connect, socket.getaddrinfo


def refuse(host):
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{host}\\n{''.join(traceback.format_stack(limit=30))}\\n")
    raise OSError(101, "Network is unreachable")


def connect(self, address):
    if isinstance(address, tuple) and address[0] not in HERE:
        refuse(address[0])
    return CONNECT(self, address)


def resolve(host, *more, **how):
    if host not in HERE:
        refuse(host)
    return RESOLVE(host, *more, **how)


socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = resolve
"""
TWO_UPDATES = f"--set max_steps=2 {' '.join(SMALL)}"
EVERY_INSTRUMENT = f"--ask={','.join(LISTED)}"
SESSIONS = {
    "quick": f"--cells=bert_sa_lora,t5_sum_lora {EVERY_INSTRUMENT} {TWO_UPDATES}",
    "zoo": f"--cells=gpt2_sa_dora {TWO_UPDATES}",
    "tasks": f"--cells=bert_nli_qlora {TWO_UPDATES}",
    "footprint": "--cells=bert_sa_lora --device=cpu",
    "equivalent": "-k 'gradient-checkpointing and gpt2_sa_qlora'",
    "stock": "-k 'bert_sa_lora or segments_served'",
    "gpu": "",
}


CELL_OF_4_BITS = f"--cells=bert_sa_qlora {TWO_UPDATES}"


class Listener(BaseHTTPRequestHandler):
    """Has nothing to offer."""

    def do_GET(self):
        self.server.questions.append(self.path)
        self.send_error(404)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def listener():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    server.questions = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run_session(tmp_path, listener):
    """Runs a session without a network; returns its end and what it tried to reach."""

    def run(profile, options, **more):
        (tmp_path / "no_network.py").write_text(NO_NETWORK)
        attempts = tmp_path / "attempts"
        variables = environment(
            PYTHONPATH=f"{SOURCES}:{tmp_path}",
            ATTEMPTS=str(attempts),
            HF_HOME=str(tmp_path / "hub"),
            HF_ENDPOINT=f"http://127.0.0.1:{listener.server_port}",
        )
        own = ("USE_HUB_KERNELS", "LOCAL_KERNELS")  # which this session has set
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", *own):
            variables.pop(name, None)
        command = [sys.executable, "-m", "pytest", "-m", profile, *shlex.split(options)]
        command += [f"--benchmark-json={tmp_path / 'run.json'}", "-pno_network", "-n0"]
        session = subprocess.run(
            command, cwd=ROOT, env=variables | more, capture_output=True, text=True, check=False
        )
        hosts = attempts.read_text() if attempts.exists() else ""
        return session, hosts, listener.questions

    return run


@pytest.mark.parametrize(
    ("profile", "options"),
    [*SESSIONS.items(), ("quick", CELL_OF_4_BITS), ("quick", f"--first-updates {CELL_OF_4_BITS}")],
    ids=[*SESSIONS, "4 bits", "first updates"],
)
def test_no_profile_but_full_touches_a_network(run_session, profile, options):
    if profile == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    session, hosts, questions = run_session(profile, options)
    assert not hosts
    assert not questions
    assert session.returncode in (0, 6), session.stdout  # 6: too short to judge
    assert " passed" in session.stdout


def test_a_library_asks_the_hub_once_the_user_allows_it(run_session):
    by_default = Version(transformers_version) >= Version("5.25")
    if not find_spec("kernels") or not (by_default or has_avx512bf16()):
        pytest.skip("no installed library takes code from the hub on this CPU")
    _, _, questions = run_session("quick", CELL_OF_4_BITS, USE_HUB_KERNELS="yes")
    assert any("kernels-community" in question for question in questions)
