#!/usr/bin/env python3
"""Starts a Slurm cluster of two nodes on this machine, and compares a run of the profile `smoke` on it with a local run.

It checks that every stage has the digest of the local run, although a node is killed in the middle of an array and one slice fails
at first; that `status` and `cancel` do what they say; and that a second submission is refused while jobs are left, and finds
everything up to date afterwards. The cluster lies in a temporary folder and is removed in any case. It needs root, for munged and
slurmd.

usage: slurm_test.py PROGRAM    (the kvcsr command; `just slurm-test` builds and names it)
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODES = ["node1", "node2"]
TOOLS = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel"]
# The Debian packages of these programs.
PACKAGES = ["munge", "slurmctld", "slurmd", "slurm-client"]
# The test fails if an expected state does not come within this many seconds.
PATIENCE = 1800
# Added to the overrides of the tests, which make every stage take seconds: training takes longer, so that it can be killed.
LONGER = "train.epochs=30"

CONF = """\
ClusterName=kvcsr
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
KillWait=2
ReturnToService=2
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""


def say(text):
    print(f"slurm-test {time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def install():
    """Installs Slurm's programs from Debian's packages, if some are missing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"slurm-test: {', '.join(missing)} not found: install {' '.join(PACKAGES)} (Debian's names)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # The packages would start services; the test starts its own.
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    finally:
        if made:
            policy.unlink()


def free_ports(count):
    """Ports that nothing listens on now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def processes(wanted):
    """The ids of the processes whose command line `wanted` accepts."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if wanted(command):
                found.append(int(entry.name))
    return found


def descendants(pid):
    """A process, the processes that it started, and so on."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        left += children.get(one, [])
    return found


class Cluster:
    """munged, slurmctld and a slurmd for each node, all in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    def start(self):
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (self.folder / "state").mkdir()
        key = munge / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(CONF.format(folder=self.folder, host=host, ports=free_ports(3)))
        subprocess.run(
            ["munged", "--force", f"--socket={munge}/socket", f"--key-file={key}", f"--pid-file={munge}/pid",
             f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
            check=True,
        )
        self.call(["slurmctld", "-c"])
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.call(["sinfo", "-N", "-h", "-o", "%T"]).split() == ["idle"] * len(NODES), "idle nodes")

    def start_node(self, node):
        # A node that comes back registers by itself: ReturnToService.
        self.call(["slurmd", "-N", node])

    def call(self, words):
        out = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        if out.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {out.stdout}{out.stderr}")
        return out.stdout

    def wait(self, state, what, patience=PATIENCE):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if state():
                return
            time.sleep(0.5)
        raise RuntimeError(f"no {what} after {patience} s\n{self.call(['squeue', '--array'])}")

    def queue(self):
        """Job, task, state, node, name and id of every task that is queued or running."""
        lines = self.call(["squeue", "-h", "--array", "--format=%F|%K|%T|%N|%j|%A"]).split("\n")
        return [line.strip().split("|") for line in lines if line.strip()]

    def kill_node(self, node):
        """Kills slurmd, what it started for jobs, and the jobs, as if the power of the node failed."""
        victims = []
        for script in processes(lambda command: f"{self.folder}/spool-{node}/job" in command):
            parent = int(Path(f"/proc/{script}/stat").read_text().rsplit(")", 1)[1].split()[1])
            victims += [parent, *descendants(script)]
        victims.append(int((self.folder / f"slurmd-{node}.pid").read_text()))
        for victim in victims:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return len(victims)

    def stop(self):
        """Ends everything that belongs to the folder."""
        try:
            ids = {line[0] for line in self.queue()}
            if ids:
                self.call(["scancel", *ids])
                time.sleep(3)
        except (RuntimeError, OSError):
            pass
        for name in [f"slurmd-{node}.pid" for node in NODES] + ["slurmctld.pid", "munge/pid"]:
            try:
                os.kill(int((self.folder / name).read_text()), signal.SIGTERM)
            except (OSError, ValueError):
                pass
        end = time.monotonic() + 10
        def left():
            return [pid for pid in processes(lambda command: str(self.folder) in command) if pid != os.getpid()]
        while left() and time.monotonic() < end:
            time.sleep(0.2)
        for pid in left():
            os.kill(pid, signal.SIGKILL)


def overrides(file, name):
    """The overrides that a test of the project runs with."""
    text = (ROOT / "pipeline/tests" / file).read_text()
    found = re.search(rf'const {name}: &str = "(.*?)";', text, re.S).group(1)
    return re.sub(r"\\\n\s*", "", found).replace('\\"', '"')


class Runs:
    """The program on one data folder or the other."""

    def __init__(self, program, home, cluster):
        self.program, self.home, self.cluster = program, home, cluster
        self.overrides = [overrides("common/mod.rs", "SMALL"), overrides("slices.rs", "MORE"), LONGER]

    def call(self, data, words, expect=0):
        environment = {**self.cluster.environment, "KVCSR_DATA": str(self.home / data)}
        command = [self.program, words[0], "profile=smoke", f"set={' '.join(self.overrides)}", *words[1:]]
        out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        said = out.stdout + out.stderr
        if (out.returncode == 0) != (expect == 0):
            raise RuntimeError(f"{words}: status {out.returncode}\n{said}")
        return said

    def run_folder(self, data):
        return self.home / data / "runs/smoke"

    def digests(self, data):
        found = {}
        for manifest in sorted(self.run_folder(data).glob("*/manifest.json")):
            record = json.loads(manifest.read_text())
            found[manifest.parent.name] = record["digest"]
        return found


GOALS = ["reproduce", "--to", "evaluate", "--to", "compare", "--to", "suite", "--to", "train-plus"]
ON_CLUSTER = ["executor=slurm", "executor.slices=3", "executor.cpus=1", "executor.memory_gb=1.5"]


def check(condition, what):
    if not condition:
        raise RuntimeError(f"wrong: {what}")


def main(program, home):
    cluster = Cluster(home / "cluster")
    cluster.folder.mkdir()
    runs = Runs(program, home, cluster)
    try:
        runs.call("local", GOALS)
        say("the local run is done")
        cluster.start()
        say("munged, slurmctld and two nodes are up")
        cancelled(runs, cluster)
        jobs, killed = disturbed(runs, cluster)
        local, slurm = runs.digests("local"), runs.digests("slurm")
        check(local == slurm, f"digests differ: {[stage for stage in local if local[stage] != slurm.get(stage)]}")
        again = runs.call("slurm", [*GOALS, *ON_CLUSTER])
        check("nothing was submitted" in again, again)
        say(f"{len(local)} stages in {jobs} tasks of jobs and {killed} killed node: all digests equal")
        swept(runs, cluster)
    except BaseException:
        for log in sorted(home.glob("cluster/*.log")) + sorted(home.glob("slurm/runs/smoke/slurm/logs/*.log")):
            lines = log.read_text(errors="replace").splitlines()[-8:]
            print(f"--- {log.name}", *lines, sep="\n", file=sys.stderr)
        raise
    finally:
        cluster.stop()
        say("the cluster is torn down")


def cancelled(runs, cluster):
    """Submits, refuses a second submission, cancels, and finds nothing left."""
    said = runs.call("slurm", [*GOALS, *ON_CLUSTER])
    check("train-merge" in said, said)
    refused = runs.call("slurm", [*GOALS, *ON_CLUSTER], expect=1)
    check("queued or running" in refused and "just cancel profile=smoke" in refused, refused)
    said = runs.call("slurm", ["cancel"])
    check("cancelled train" in said, said)
    cluster.wait(lambda: not cluster.queue(), "empty queue after cancel", 60)
    said = runs.call("slurm", ["status"])
    check("did not end well" in said and "CANCELLED" in said, said)
    say("a second submission was refused; cancel left nothing queued")


def disturbed(runs, cluster):
    """Submits again; a slice fails at first, and a node dies in the middle of training."""
    folder = runs.run_folder("slurm")
    folder.mkdir(parents=True, exist_ok=True)
    # The first attempt of this slice finds its folder in use.
    held = (folder / ".train-2-of-3.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    runs.call("slurm", [*GOALS, *ON_CLUSTER])
    log = folder / "slurm/logs/train-2.log"
    cluster.wait(lambda: log.exists() and "attempt 1 of 3" in log.read_text(), "failed attempt")
    held.close()
    say("slice 2 of train failed once, as was arranged")

    def at_work():
        """Node, task and job id of a slice that has begun to train; None if there is none."""
        for _, task, state, node, name, number in cluster.queue():
            begun = list(folder.glob(f"train-{task}-of-3.partial/groups/*/epochs.jsonl"))
            if state == "RUNNING" and name.endswith(":train") and begun:
                return node, task, number
        return None
    cluster.wait(lambda: at_work() is not None, "slice at work")
    node, task, number = at_work()
    made = len(list(folder.glob(f"train-{task}-of-3.partial/groups/*/epochs.jsonl")))
    killed = cluster.kill_node(node)
    say(f"{node} was killed ({killed} processes) while it trained slice {task} of 3, {made} groups of 20 done")
    check("train" in runs.call("slurm", ["status"]), "status while a node is dead")

    def requeued():
        return any(line[5] == number and line[2] == "PENDING" for line in cluster.queue())
    cluster.wait(requeued, f"requeued slice {task}")
    say(f"Slurm noticed, and queued slice {task} again")
    # Slurm waits two minutes before it starts a requeued job; the test does not.
    cluster.call(["scontrol", "update", f"JobId={number}", "StartTime=now"])
    cluster.wait(lambda: not cluster.queue(), "end of all jobs")
    status = runs.call("slurm", ["status"])
    check("all jobs are done" in status, status)
    said = (folder / f"slurm/logs/train-{task}.log").read_text()
    check("going on where an unfinished run stopped" in said, said)
    said = (folder / "slurm/logs/train-2.log").read_text()
    check("another process is making" in said, said)
    say("all jobs are done: the killed slice went on where it stopped, the failed one was retried")
    record = json.loads((folder / "slurm/jobs.json").read_text())
    return sum(job["tasks"] for job in record["jobs"]), 1


SWEEP = ["sweep", 'set=sweep={"train.atoms"=[32,48]}', 'set=evaluate.schemes=["dense","csr-8"]', "set=evaluate.documents=1"]


def swept(runs, cluster):
    """A sweep of two points on the one node that is left, compared with the same sweep run locally."""
    runs.call("local", SWEEP)
    runs.call("slurm", [*SWEEP, *ON_CLUSTER])
    cluster.wait(lambda: not cluster.queue(), "end of the sweep")
    status = runs.call("slurm", ["status"])
    check("all jobs are done" in status, status)
    here, there = [(runs.run_folder(data) / "sweep/sweep.csv").read_bytes() for data in ("local", "slurm")]
    check(here == there, "the sweep's tables differ")
    say("a sweep of two points in jobs: the table is the local one")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("slurm-test: munged and slurmd need root: run it as root, for example in a container")
    STARTED = time.monotonic()
    install()
    # Processes of the cluster are recognised by this folder.
    with tempfile.TemporaryDirectory(prefix="kvcsr-slurm-") as temporary:
        main(str(Path(sys.argv[1]).resolve()), Path(temporary))
