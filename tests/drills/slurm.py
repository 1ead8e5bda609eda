"""A Slurm cluster of two nodes on this machine: Debian's slurm-wlm, each node in namespaces of its own.

A node has its own processes, network address and host name, so that what one of them kills or starts is none of the
other's, nor of this machine's: `ray stop` ends every Ray that it sees.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "unshare", "nsenter", "ip")

NAMESPACES = ("unshare", "--fork", "--pid", "--mount", "--mount-proc", "--net", "--uts")

CONFIGURATION = """\
ClusterName=drill
SlurmctldHost=control(10.77.0.254)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeAddr=10.77.0.1 CPUs=2 RealMemory=8192 Gres=gpu:1
NodeName=node2 NodeAddr=10.77.0.2 CPUs=2 RealMemory=8192 Gres=gpu:1
PartitionName=drill Nodes=ALL Default=YES State=UP
"""

HOSTS = "127.0.0.1 localhost\n10.77.0.254 control\n10.77.0.1 node1\n10.77.0.2 node2\n"

CONTROL = """\
set -eu
mount --bind "$SITE/hosts" /etc/hosts
hostname control
ip link set lo up
ip link add bridge type bridge && ip addr add 10.77.0.254/24 dev bridge && ip link set bridge up
munged --key-file="$SITE/munge.key" --socket="$SITE/munge.socket" --pid-file="$SITE/munge.pid" \\
  --log-file="$SITE/munge.log" --seed-file="$SITE/munge.seed"
for n in 1 2; do
  unshare --fork --pid --mount --mount-proc --net --uts --kill-child bash "$SITE/node.sh" "$n" &
  until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
  ip link add "veth$n" type veth peer name "node$n"
  ip link set "node$n" netns $!
  ip link set "veth$n" master bridge up
done
exec slurmctld -D
"""

NODE = """\
set -eu
hostname "node$1"
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
until ip link show "node$1" >/dev/null 2>&1; do sleep 0.1; done
ip link set lo up && ip addr add "10.77.0.$1/24" dev "node$1" && ip link set "node$1" up
exec slurmd -D -N "node$1"
"""


def why_not() -> str | None:
    """Return why Slurm cannot run here, or None if it can."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge iproute2"
    if os.geteuid():
        return "needs root, for the namespaces of the nodes"
    tried = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    return f"cannot make namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Site:
    """A cluster under way."""

    folder: Path
    pid: int
    """Of the first process in the namespaces of its control node."""

    def ask(self, *command: str, **environment: str) -> str:
        """Run a command of Slurm on the control node; what it prints."""
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--net", "--uts", f"--wd={self.folder}"]
        known = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), **environment}
        done = subprocess.run([*enter, *command], env=known, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """State of a job: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, ..."""
        return self.ask("scontrol", "show", "--oneliner", "job", job).split("JobState=")[1].split()[0]


@contextlib.contextmanager
def slurm_site(folder: Path) -> Iterator[Site]:
    """Start the cluster, and end it with everything that runs on it."""
    for name, text in {
        "slurm.conf": CONFIGURATION.format(folder=folder),
        "gres.conf": "NodeName=node[1-2] Name=gpu File=/dev/null\n",
        "hosts": HOSTS,
        "node.sh": NODE,
    }.items():
        (folder / name).write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    folder.chmod(0o755)
    (folder / "state").mkdir()
    environment = {**os.environ, "SITE": str(folder), "SLURM_CONF": str(folder / "slurm.conf")}
    with (folder / "site.log").open("wb") as log:
        control = subprocess.Popen(
            [*NAMESPACES, "--kill-child", "bash", "-c", CONTROL],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        children = Path(f"/proc/{control.pid}/task/{control.pid}/children")
        site = None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert control.poll() is None, (folder / "site.log").read_text()
            if children.read_text().split():
                site = Site(folder, int(children.read_text().split()[0]))
                with contextlib.suppress(AssertionError):
                    if site.ask("sinfo", "--noheader", "--format=%t %D") == "idle 2":
                        break
            time.sleep(0.5)
        else:
            raise AssertionError(f"no two idle nodes after 60 s\n{(folder / 'site.log').read_text()}")
        assert site is not None
        yield site
    finally:
        control.kill()  # the first process of the namespaces dies with it, and all others with that
        control.wait()
