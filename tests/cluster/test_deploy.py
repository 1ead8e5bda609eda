"""Deployment files: they parse, agree with one another and with the code, and what they run would be accepted."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from surveybridge import __version__
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.cluster.preflight import _fit
from surveybridge.cluster.stream import IO_CPUS, IO_PER_MODEL
from surveybridge.jobs.registry import parse_job
from surveybridge.jobs.running.drain import DRAINED
from surveybridge.jobs.translating.config import Config, TranslationConfig
from surveybridge.jobs.translating.memory import GPU_PROCESS_BYTES, stage_memory

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
RAY = next(
    line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:5] == "ray=="
)
IMAGE = f"registry.example.org/surveybridge:{__version__}-ray{RAY}"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def rayjobs() -> dict[str, dict[str, Any]]:
    """Spec of every RayJob, by file."""
    return {
        "rayjob.yaml": load("rayjob.yaml")[0]["spec"],
        "rayjob-kueue.yaml": load("rayjob-kueue.yaml")[0]["spec"],
        "raycronjob.yaml": load("raycronjob.yaml")[0]["spec"]["jobTemplate"],
    }


def clusters() -> dict[str, dict[str, Any]]:
    """Spec of every RayCluster, by file."""
    specs = {name: spec["rayClusterSpec"] for name, spec in rayjobs().items()}
    return specs | {"raycluster.dev.yaml": load("raycluster.dev.yaml")[0]["spec"]}


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def number(quantity: str) -> float:
    unit = quantity[-2:]
    return float(quantity[:-2]) * UNITS[unit] if unit in UNITS else float(quantity)


def parsed(command: str) -> TranslationConfig:
    """What the job's own parser makes of a command line that starts a job."""
    match = re.fullmatch(r"(?:python -m surveybridge|surveybridge) (.*)", " ".join(command.split()))
    assert match, command
    job, *arguments = shlex.split(match[1], comments=True)
    config = parse_job(job, arguments, job)[1]
    assert isinstance(config, TranslationConfig)
    return config


# -- versions --


def test_every_image_has_the_pinned_ray_and_this_version():
    for name, cluster in clusters().items():
        assert cluster["rayVersion"] == RAY, name
        device = "cpu" if "dev" in name else "gpu"
        assert {container(group)["image"] for group in groups(cluster)} == {f"{IMAGE}-{device}"}, name
    assert load("ray-up-gpu.yaml")[0]["docker"]["image"] == f"{IMAGE}-gpu"
    assert f"ARG RAY_VERSION={RAY}\n" in (DEPLOY / "Dockerfile").read_text()
    pinned = re.search(r'"ray\[.*\]==([\d.]+)\.\*"', (ROOT / "pyproject.toml").read_text())
    assert pinned and Version(pinned[1]).release == Version(RAY).release[:2]


def test_the_image_runs_as_an_ordinary_user_and_copies_what_is_installed():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
    assert packages <= copied
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for name in {word for line in copied for word in line.split()}:
        assert f"!{name}" in ignored and (ROOT / name).exists(), name
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    assert re.search(r"^ARG DEVICE=(cpu|gpu)$", text, re.MULTILINE)
    assert "ENTRYPOINT [" not in text


# -- the variants agree --


def test_the_schedule_runs_the_same_job():
    assert rayjobs()["raycronjob.yaml"] == rayjobs()["rayjob.yaml"]


def test_kueue_differs_only_where_it_must():
    plain, queued = rayjobs()["rayjob.yaml"], rayjobs()["rayjob-kueue.yaml"]
    assert queued.pop("suspend") is True
    assert load("rayjob-kueue.yaml")[0]["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "surveybridge"}
    cluster = plain["rayClusterSpec"]
    assert cluster.pop("enableInTreeAutoscaling") and cluster.pop("autoscalerOptions")
    assert plain.pop("entrypoint") != queued.pop("entrypoint")
    for spec in (plain, queued):
        (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        sizes = [workers.pop(name) for name in ("minReplicas", "replicas", "maxReplicas")]
    assert sizes == [4, 4, 4]
    assert queued == plain


# -- what runs --


@pytest.mark.parametrize("name", rayjobs())
def test_entrypoint_is_accepted_by_the_job_and_fits_the_workers(name):
    spec = rayjobs()[name]
    config = parsed(spec["entrypoint"])
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert config.workers == workers["maxReplicas"] * number(
        container(workers)["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert config.min_workers <= workers["minReplicas"]
    where = config.run if isinstance(config, Config) else config.model_dump()["runs"]
    assert config.store.startswith("s3://") and where.startswith("s3://")
    assert spec["shutdownAfterJobFinishes"] is True


def documented() -> list[str]:
    texts = [
        "\n".join(re.findall(r"^```bash\n(.*?)^```", (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL)),
        *(
            "\n".join(line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#"))
            for path in sorted(DEPLOY.iterdir())
            if path.name != "README.md"
        ),
    ]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip().startswith("surveybridge ")]


def test_every_documented_command_is_accepted():
    commands = documented()
    assert len(commands) >= 6
    for line in commands:
        _, job, *arguments = shlex.split(line, comments=True)
        parse_job(job, arguments, f"surveybridge {job}")


def test_every_cluster_wants_a_token():
    for name, cluster in clusters().items():
        assert cluster["authOptions"] == {"mode": "token"}, name
    assert "RAY_AUTH_MODE=token" in (DEPLOY / "Dockerfile").read_text()
    config = load("ray-up-gpu.yaml")[0]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in (DEPLOY / "slurm.sbatch").read_text()


def test_pods_are_ordinary_users_with_bounded_resources():
    for cluster in clusters().values():
        for group in groups(cluster):
            pod, only = group["template"]["spec"], container(group)
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
            assert only["securityContext"]["allowPrivilegeEscalation"] is False
            assert only["resources"]["requests"] == only["resources"]["limits"]
            assert {"name": "SURVEYBRIDGE_LOG", "value": "json"} in only["env"]
            assert all("AWS" not in variable["name"] for variable in only["env"])


@pytest.mark.parametrize("name", rayjobs())
def test_a_head_that_is_ended_drains_within_its_grace(name):
    spec = rayjobs()[name]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    (hook,) = container(head)["lifecycle"]["preStop"]["exec"]["command"][2:]
    assert hook.startswith("ray job stop ") and hook.split()[-3] == spec["jobId"]
    seconds = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert 60 <= seconds < head["template"]["spec"]["terminationGracePeriodSeconds"]
    readme = (DEPLOY / "README.md").read_text()
    assert f"{seconds} s, in a grace period of {head['template']['spec']['terminationGracePeriodSeconds']} s" in readme


# -- what fits --


def logical(group: dict[str, Any]) -> dict[str, float]:
    """What Ray hands out on a node of this group."""
    parameters, limits = group["rayStartParams"], container(group)["resources"]["limits"]
    return {
        "CPU": number(parameters["num-cpus"]),
        "GPU": number(limits.get("nvidia.com/gpu", "0")),
        "memory": number(parameters.get("memory", limits["memory"])),
    }


@functools.cache
def stages(gpu: int) -> dict[str, dict[str, float]]:
    """What a process of each stage reserves, as `check_cluster` counts: tiles of 512 pixels with a halo of 64."""
    side, core = 512 + 2 * 64, 512
    manifest = pa.table(
        {"bytes": [side * side * 4 * 9], "height": [side], "width": [side], "core_height": [core], "core_width": [core]}
    )
    heap = stage_memory(load_checkpoint(None), manifest, Config(store="s", run="r", patch="tile"))
    return {
        "model": {"CPU": 1, "GPU": gpu, "memory": heap["model"] + gpu * GPU_PROCESS_BYTES},
        "reader": {"CPU": IO_CPUS, "memory": heap["read"]},
        "writer": {"CPU": IO_CPUS, "memory": heap["write"]},
    }


@pytest.mark.parametrize("name", clusters())
def test_the_smallest_pipeline_fits_the_smallest_cluster(name):
    cluster = clusters()[name]
    assert logical(cluster["headGroupSpec"])["CPU"] == 0
    (workers,) = cluster["workerGroupSpecs"]
    need = stages(gpu=int(logical(workers)["GPU"]))
    assert _fit(list(need.values()), [logical(workers)])
    smallest = {name: sum(process.get(name, 0) for process in need.values()) for name in ("CPU", "GPU", "memory")}
    assert _fit(list(need.values()), [smallest])
    assert not any(_fit(list(need.values()), [{**smallest, name: smallest[name] - 0.1}]) for name in ("CPU", "memory"))


@pytest.mark.parametrize("name", rayjobs())
def test_a_worker_keeps_its_gpu_busy(name):
    (workers,) = rayjobs()[name]["rayClusterSpec"]["workerGroupSpecs"]
    need, node = stages(gpu=1), logical(workers)
    processes = [need["model"], *IO_PER_MODEL * [need["reader"]], *IO_PER_MODEL * [need["writer"]]]
    assert _fit(processes, [node])
    assert node["CPU"] <= number(container(workers)["resources"]["limits"]["cpu"])


@pytest.mark.parametrize("name", clusters())
def test_heap_and_object_store_fit_the_pod(name):
    for group in clusters()[name]["workerGroupSpecs"]:
        parameters = group["rayStartParams"]
        used = number(parameters["memory"]) + number(parameters["object-store-memory"])
        assert used + 2**30 <= number(container(group)["resources"]["limits"]["memory"])


def test_the_launcher_file_is_valid_and_its_nodes_hold_a_pipeline():
    config = load("ray-up-gpu.yaml")[0]
    validate_config(prepare_config(load("ray-up-gpu.yaml")[0]))
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    need = stages(gpu=1)
    processes = [need["model"], *IO_PER_MODEL * [need["reader"]], *IO_PER_MODEL * [need["writer"]]]
    assert _fit(processes, [kinds["gpu"]["resources"]])


def test_the_readme_has_the_codes_numbers():
    readme = (DEPLOY / "README.md").read_text()
    said = {
        "reader": re.search(rf"\| reader \| {IO_CPUS} \| ([\d.]+) GB \|", readme),
        "writer": re.search(rf"\| writer \| {IO_CPUS} \| ([\d.]+) GB \|", readme),
        "model": re.search(r"\| model \| 1, and 1 GPU where there are any \| ([\d.]+) GB on CPUs", readme),
        "CUDA": re.search(r"GB on CPUs; ([\d.]+) GB with CUDA", readme),
    }
    for name, match in said.items():
        assert match, name
        heap = stages(gpu=1)["model"]["memory"] if name == "CUDA" else stages(gpu=0)[name]["memory"]
        assert heap <= float(match[1]) * 1e9 <= 1.5 * heap, name
    assert f"one of each, {1 + 2 * IO_CPUS:g} CPU beside the driver" in readme
    assert IO_PER_MODEL == 2 and "two readers and two writers for each model" in readme


# -- the schedule --


def test_the_schedule_never_runs_two_and_may_do_what_it_does():
    account, role, binding, cron = load("cronjob.yaml")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    verbs = set(re.findall(r"kubectl (\w+)", pod["containers"][0]["command"][-1]))
    assert verbs == set(role["rules"][0]["verbs"])


KUBECTL = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  "create -f -") cat > "$CREATED" ;;
  *jobDeploymentStatus*) printf %s "$STATE" ;;
  *) test -e "$CREATED" ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "code"), [("Complete/SUCCEEDED", 0), ("Failed/FAILED", 10), ("Complete/STOPPED", 10)]
)
def test_the_schedules_pod_creates_one_rayjob_a_night_and_follows_it(tmp_path, state, code):
    command = load("cronjob.yaml")[3]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    script = command[-1].replace("/template/", f"{DEPLOY}/")
    tool(tmp_path / "bin" / "kubectl", KUBECTL)
    created, log = tmp_path / "created.yaml", tmp_path / "log"
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(log), "CREATED": str(created), "STATE": state}
    for _ in range(2):  # the second pod finds the first one's RayJob
        done = subprocess.run([*command[:2], script], env=env | {"JOB": "surveybridge-nightly-29902680"}, timeout=30)
        assert done.returncode == code
    assert log.read_text().count("create -f -") == 1
    made = yaml.safe_load(created.read_text())
    assert made["metadata"]["name"] == "surveybridge-nightly-2026-11-08"  # minute 29902680 since 1970
    assert made["spec"] == rayjobs()["rayjob.yaml"]
    assert len(made["metadata"]["name"]) <= 47  # KubeRay's limit


# -- Slurm --

TOOLS = {
    "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "$*" >> "$LOG"; fi',
    "squeue": "echo RUNNING",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1",
    "ray": 'echo "$*" >> "$LOG"; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "python": 'echo "$*" >> "$LOG"; echo started; trap "exit 143" TERM; for i in {1..6}; do sleep $NAP; done',
}


def slurm(tmp_path: Path, nap: str) -> subprocess.Popen[str]:
    for name, body in TOOLS.items():
        tool(tmp_path / "bin" / name, f"#!/bin/bash\n{body}\n")
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "NAP": nap,
        "SLURM_NNODES": "2",
        "SLURM_GPUS_PER_NODE": "a100:4",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "4242",
        "TMPDIR": str(tmp_path),
    }
    return subprocess.Popen(
        ["bash", str(DEPLOY / "slurm.sbatch"), "/shared/tiles", "/shared/runs/dr1"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )


def tool(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_slurms_command_is_accepted(tmp_path):
    with slurm(tmp_path, nap="0") as script:
        assert script.stdout is not None and script.stdout.read() == "started\n"
    assert script.returncode == 0
    ray, python = (tmp_path / "log").read_text().splitlines()
    config = parsed(f"python {python}")
    assert isinstance(config, Config)
    assert (config.store, config.run, config.workers) == ("/shared/tiles", "/shared/runs/dr1", 8)
    options = shlex.split(ray)
    assert options[:5] == ["symmetric-run", "--address", "10.0.0.1:24242", "--min-nodes", "2"]
    assert "--num-cpus=15" in options
    assert not list(tmp_path.glob("surveybridge-*"))


def test_slurms_signal_drains_the_driver_and_queues_the_job_again(tmp_path):
    with slurm(tmp_path, nap="0.5") as script:
        assert script.stdout is not None and script.stdout.readline() == "started\n"
        time.sleep(0.2)
        script.send_signal(signal.SIGTERM)
    assert script.returncode == DRAINED
    assert (tmp_path / "log").read_text().splitlines()[-1] == "requeue 4242"


def test_slurm_gives_the_drain_its_time_and_the_node_to_itself():
    text = (DEPLOY / "slurm.sbatch").read_text()
    assert "#SBATCH --signal=B:TERM@600" in text and "#SBATCH --exclusive" in text and "#SBATCH --requeue" in text
    assert f"DRAINED={DRAINED}" in text
