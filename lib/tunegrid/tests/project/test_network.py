"""No profile but `full` touches a network: sessions in which sockets raise, without
HF_HUB_OFFLINE.
"""

import shlex
import subprocess
import sys

import pytest
import torch

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
    "stock": "-k 'bert_sa_lora or segments_served'",
    "gpu": "",
}


@pytest.mark.parametrize(("profile", "options"), SESSIONS.items(), ids=list(SESSIONS))
def test_no_profile_but_full_touches_a_network(tmp_path, profile, options):
    if profile == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    (tmp_path / "no_network.py").write_text(NO_NETWORK)
    attempts = tmp_path / "attempts"
    variables = environment(
        PYTHONPATH=f"{SOURCES}:{tmp_path}", ATTEMPTS=str(attempts), HF_HOME=str(tmp_path / "hub")
    )
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        variables.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-m", profile, *shlex.split(options)]
    command += [f"--benchmark-json={tmp_path / 'run.json'}", "-pno_network", "-n0"]
    session = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert not attempts.exists(), attempts.read_text()
    assert session.returncode in (0, 6), session.stdout  # 6: too short to judge
    assert " passed" in session.stdout
