"""Three hosts behind one switch, each with a network, processes, a clock and a folder of Ray of its own; for tests, as root.

They are namespaces of this kernel. Nodes see no checkout: what they run has travelled.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tunegrid import ROOT

RAY = str(Path(sys.executable).parent / "ray")
HEAD = "10.77.0.1"
# A host that does not answer is given up after half a minute here; Ray's own patience is of the same order.
IMPATIENT = {"RAY_health_check_failure_threshold": "3"}
TOKENS = Path.home() / ".ray"  # a Ray that started itself on this machine leaves a token there, which is no host's
STORE_BYTES = 80 * 2**20  # of objects on a node
HIDDEN = [ROOT / name for name in ("lib", "fixtures", "benchmarks", "reports", ".cache")]


def why_no_hosts():
    """A sentence where this user or machine cannot make hosts; else empty."""
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return ""
    return "hosts of their own take root, and the programs ip, nsenter and unshare"


def apart(booted_seconds_ago):
    """All that a host has for itself."""
    clocks = (f"--monotonic={booted_seconds_ago}", f"--boottime={booted_seconds_ago}")
    return ("--net", "--mount", "--uts", "--pid", "--mount-proc", "--time", *clocks)


class Host:
    """A network and perhaps more for itself; its processes end with it."""

    def __init__(self, stack, name, namespaces=("--net",)):
        """Started and ended with `stack`."""
        self.name = name
        keeper = subprocess.Popen(["unshare", *namespaces, "--fork", "--kill-child", "sleep", "infinity"])
        stack.callback(keeper.wait)
        stack.callback(keeper.kill)
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
        self.pid = _soon(lambda: children.read_text().split())[0]
        _soon(lambda: Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n")  # its namespaces are made
        self("ip", "link", "set", "lo", "up")

    def __call__(self, *command, **variables):
        """Run a command there to its end; its output."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            self.command(*command), env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, (command, done.stdout)
        return done.stdout

    def command(self, *command):
        """The words that run a command there."""
        return ["nsenter", f"--target={self.pid}", "--all", f"--wd={ROOT}", *command]


def _soon(answer):
    """The first answer that is not empty, within ten seconds."""
    for _ in range(1000):
        if found := answer():
            return found
        time.sleep(0.01)
    raise TimeoutError("a namespace was not made")


def plugged(switch, host, number):
    """The host's cable is in the switch, and its address on all routes."""
    switch("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", host.pid)
    switch("ip", "link", "set", f"port{number}", "master", "switch", "up")
    host("ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
    host("ip", "link", "set", "eth0", "up")
    host("ip", "route", "add", "default", "via", "10.77.0.254")  # Ray takes the address that leads out


@contextmanager
def hosts_of(folder, variables):
    """The switch; the head, which runs no cell and has the checkout; and two nodes that have none."""
    with ExitStack() as stack:
        switch = Host(stack, "switch")
        switch("ip", "link", "add", "switch", "type", "bridge")
        switch("ip", "link", "set", "switch", "up")
        hosts = [Host(stack, f"host{n}", apart(booted_seconds_ago=100_000 * n)) for n in (1, 2, 3)]
        for number, host in enumerate(hosts, 1):
            plugged(switch, host, number)
            host("hostname", host.name)
            own = folder / host.name
            own.mkdir()
            Path("/tmp/ray").mkdir(exist_ok=True)
            host("mount", "--bind", str(own), "/tmp/ray")
            TOKENS.mkdir(exist_ok=True)
            host("mount", "-t", "tmpfs", "tmpfs", str(TOKENS))
            for hidden in HIDDEN if number > 1 else ():
                host("mount", "-t", "tmpfs", "tmpfs", str(hidden))
        variables = {**variables, **IMPATIENT}
        store = f"--object-store-memory={STORE_BYTES}"
        hosts[0](RAY, "start", "--head", "--num-cpus=0", "--include-dashboard=false", store, **variables)
        for host in hosts[1:]:
            host(RAY, "start", f"--address={HEAD}:6379", "--num-cpus=1", store, **variables)
        yield switch, *hosts
