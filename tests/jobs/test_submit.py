"""Submit: what is refused here, what travels, and a real head that runs jobs and gives their exit codes back."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from zipfile import ZipFile

import pytest
from ray._private.runtime_env import packaging

from surveybridge.cluster import submission
from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.submission import JobServer, LostContact, check_package, travelling_files
from surveybridge.jobs.config import RequestError, parse_config
from surveybridge.jobs.submit import Config, check_paths, environment, inner_config, submission_id_of, weights_of
from tests import warm
from tests.environments import bare_environment, outside
from tests.tiny import damage_tile, write_checkpoint, write_store

ROOT = Path(__file__).resolve().parents[2]
S3 = ["--store", "s3://b/tiles", "--run", "s3://b/run"]
LITTLE = ["samples=2", "steps=2", "score_samples=2", "score_steps=2", "precision=float32"]


def parse(*argv: str) -> Config:
    return parse_config(Config, argv, prog="surveybridge submit")


# -- what is refused before anything is sent --


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--wait"], "-- COMMAND ... is required"),
        (["--"], "at least 1 item"),
        (["--", "trnslate"], "-- trnslate: unknown job 'trnslate'; did you mean translate?"),
        (["--", "translate", "--stroe", "x"], "-- translate: unknown setting '--stroe'; did you mean --store?"),
        (["--", "translate", *S3, "--samples", "1"], "--samples 1 has no standard deviation"),
        (["--", "submit", "--", "query"], "submit cannot submit itself"),
        (["--pipeline", "Nightly", "--", "translate", *S3], "--pipeline Nightly: "),
        (["--date", "yesterday", "--", "translate", *S3], "--date yesterday: "),
        (["--samples", "2", "--", "translate", *S3], "unknown setting '--samples'"),
    ],
)
def test_a_wrong_request_is_refused_before_it_is_sent(argv, said):
    with pytest.raises(RequestError) as caught:
        parse(*argv)
    assert said in str(caught.value)


def test_the_command_is_taken_word_for_word():
    config = parse("--attempt", "2", "--", "translate", *S3, "samples=4", "--direction", "lsst->euclid")
    assert config.command == ("translate", *S3, "samples=4", "--direction", "lsst->euclid")
    assert config.attempt == 2


def test_the_id_is_pipeline_date_and_attempt():
    config = parse("--pipeline", "nightly", "--date", "2026-11-22", "--attempt", "3", "--", "translate", *S3)
    assert submission_id_of(config) == "nightly-2026-11-22-3"
    assert submission_id_of(parse("--", "translate", *S3)).startswith("translate-2")


def test_only_what_is_asked_for_goes_to_the_job():
    here = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "AWS_PROFILE": "p"}
    assert environment([], here) == {"RAY_AUTH_MODE": "token"}
    asked = environment(["AWS_PROFILE,AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS=1", "A=b,c"], here)
    assert asked == {
        "RAY_AUTH_MODE": "token",
        "AWS_PROFILE": "p",
        "AWS_SECRET_ACCESS_KEY": "s",
        "OMP_NUM_THREADS": "1",
        "A": "b,c",
    }
    with pytest.raises(RequestError, match="--env AWS_REGION is not set here"):
        environment(["AWS_REGION"], here)
    with pytest.raises(RequestError, match="not secret"):
        environment(["RAY_AUTH_TOKEN"], here)


def paths_of(working_dir: Path | None, *command: str) -> list[str]:
    return check_paths(command, inner_config(command), working_dir)


def test_a_file_of_storage_options_is_not_uploaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "storage.toml").write_text("[s3]\nsecret = 'hush'\n")
    command = ["translate", *S3, "--storage-options"]
    with pytest.raises(
        RequestError, match=r"storage\.toml is relative, and would be uploaded with its secrets"
    ) as caught:
        paths_of(tmp_path, *command, "storage.toml")
    assert "hush" not in str(caught.value)
    assert paths_of(tmp_path, *command, "/etc/surveybridge/storage.toml") == []


def test_relative_results_are_refused_and_relative_inputs_must_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"--run runs/a is relative, .* s3:// URL"):
        paths_of(None, "translate", "--store", "s3://b/t", "--run", "runs/a")
    write_checkpoint(tmp_path)
    with_checkpoint = ["translate", *S3, "--checkpoint", "tiny"]
    with pytest.raises(RequestError, match=r"tiny\.json is here but will not be on the cluster \(no --working-dir"):
        paths_of(None, *with_checkpoint)
    (tmp_path / "code").mkdir()
    with pytest.raises(RequestError, match="it is not in --working-dir code"):
        paths_of(Path("code"), *with_checkpoint)
    assert paths_of(Path(), *with_checkpoint) == ["tiny.json", "tiny.safetensors"]
    (tmp_path / "run.toml").write_text('store = "s3://b/t"\nrun = "s3://b/r"\n')
    assert paths_of(Path(), "translate", "--config", "run.toml") == ["run.toml"]
    assert paths_of(None, "translate", *S3, "--checkpoint", "/models/m") == []


# -- what travels --


@pytest.fixture
def code(tmp_path) -> Path:
    for name in ("jobs/a.py", "data/big.bin", "data/keep.bin", ".git/objects/x", ".venv/bin/python", "m/w.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    (tmp_path / ".gitignore").write_text("data/*\n!data/keep.bin\n")
    (tmp_path / "m" / ".rayignore").write_text("*.tmp\n")
    (tmp_path / "m" / "x.tmp").write_bytes(b"x")
    return tmp_path


def test_the_projected_package_is_the_one_that_ray_makes(code):
    archive = code.parent / f"{code.name}.zip"
    packaging._zip_files(str(code), [".git", ".venv", "venv", "__pycache__"], str(archive), True)
    with ZipFile(archive) as package:
        packed = {name for name in package.namelist() if not name.endswith("/")}
    assert set(travelling_files(code)) == packed
    assert packed == {".gitignore", "jobs/a.py", "data/keep.bin", "m/.rayignore", "m/w.safetensors"}
    real = archive.stat().st_size
    assert real <= check_package(code) <= real + 256 * len(packed)


def test_weights_that_would_stay_behind_are_refused(code):
    assert check_package(code, ["m/w.safetensors", "m/absent"])
    (code / ".gitignore").write_text("*.safetensors\n")
    with pytest.raises(ClusterError, match=r"m/w\.safetensors would not be uploaded .* \.gitignore"):
        check_package(code, ["m/w.safetensors"])


def test_a_package_over_the_limit_is_refused_with_both_numbers(code):
    with (code / "jobs" / "large.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(ClusterError) as caught:
        check_package(code)
    for words in ("101.0 MiB", "takes 100 MiB", ".rayignore", "jobs/large.bin 101.0 MiB"):
        assert words in str(caught.value)


def test_this_repository_travels_with_its_weights():
    files = travelling_files(ROOT)
    for checkpoint in (ROOT / "bridge_core" / "checkpoints").glob("*.safetensors"):
        assert f"surveybridge/{checkpoint.relative_to(ROOT)}" in files
    # The folders that surveybridge/ links to do not travel a second time.
    assert {name.split("/")[0] for name in files if "/" in name} <= {"surveybridge", "examples", ".ci"}
    code = check_package(ROOT, weights_of(ROOT)) - sum((ROOT / name).stat().st_size for name in weights_of(ROOT))
    assert code < 5 * 2**20


def test_weights_that_rayignore_leaves_out_are_refused(tmp_path):
    for name in ("storage", "bridge_core/checkpoints", "surveybridge"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "surveybridge" / "bridge_core").symlink_to("../bridge_core")
    (tmp_path / "bridge_core" / "checkpoints" / "m.safetensors").write_bytes(b"m")
    assert weights_of(tmp_path) == ["surveybridge/bridge_core/checkpoints/m.safetensors"]
    (tmp_path / ".rayignore").write_text("/bridge_core\n")
    assert check_package(tmp_path, weights_of(tmp_path))
    (tmp_path / ".rayignore").write_text("bridge_core\n")
    with pytest.raises(ClusterError, match=r"m\.safetensors would not be uploaded"):
        check_package(tmp_path, weights_of(tmp_path))


# -- following a job --


class Server(JobServer):
    """A job server whose connection breaks as scripted: pieces of the log, or an error."""

    def __init__(self, *tails: list[str | Exception], states: list[str]) -> None:
        self.address = "http://h:8265"
        self.tails, self.states = list(tails), states
        self._client: Any = SimpleNamespace(tail_job_logs=self.tail, get_job_info=self.info)

    async def tail(self, submission_id):
        for piece in self.tails.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def info(self, submission_id):
        state = self.states.pop(0)
        code = {"SUCCEEDED": 0, "FAILED": -9}.get(state)
        return SimpleNamespace(status=state, entrypoint="x", message="", start_time=0, driver_exit_code=code)


def test_a_broken_connection_is_taken_up_where_it_broke(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server = Server(["one\ntw", RuntimeError("closed")], ["one\n", "two\nthr", "ee\n"], states=["FAILED"])
    pieces: list[str] = []
    ended = server.follow("n-2026-11-22-1", pieces.append)
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert (ended.state, ended.exit_code, ended.ran) == ("FAILED", 137, True)


def test_a_server_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(submission, "LOST_AFTER", 0.0)
    server = Server(["one\n", RuntimeError("closed")], [RuntimeError("closed")], states=[])
    with pytest.raises(LostContact, match="has not answered for 0 s: closed"):
        server.follow("n-2026-11-22-1", lambda text: None)


NO_AGENT = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again later.."
)


def test_a_head_that_is_still_starting_is_waited_for(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server, answers, asked = Server(states=[]), [NO_AGENT, NO_AGENT, None], []

    def submit_job(**job):
        asked.append(job["submission_id"])
        if (answer := answers.pop(0)) is not None:
            raise answer

    server._client.submit_job = submit_job
    server.submit("n-2026-11-22-1", ["true"])
    assert asked == 3 * ["n-2026-11-22-1"]
    monkeypatch.setattr(submission, "AGENT_SECONDS", 0.0)
    answers[:] = [NO_AGENT]
    with pytest.raises(ClusterError, match=r"h:8265: no node of the cluster has taken job n-2026-11-22-1 for 0 s"):
        server.submit("n-2026-11-22-1", ["true"])


def test_other_variables_do_not_override_the_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:3")
    with pytest.raises(ClusterError, match=r"no job server answers at http://127\.0\.0\.1:1 "):
        JobServer("http://127.0.0.1:1")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:3"
    with pytest.raises(ClusterError, match="10001 is not the address of a job server"):
        JobServer("ray://head:10001")


# -- a real head --


@dataclass(frozen=True)
class Head:
    address: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        assert self.process.poll() is None, (
            f"the head ended with {self.process.returncode}: {self.log.read_text()[-3000:]}"
        )

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        self.check()
        return subprocess.run(
            command, cwd=ROOT, env=self.env | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )

    def submit(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            warm.python(),
            "-m",
            "surveybridge",
            "submit",
            "--address",
            self.address,
            "--date",
            "2026-11-22",
            *argv,
            **env,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head as the README starts one: dashboard, token; its own ports, folder and process group."""
    folder = tempfile.mkdtemp(prefix="sbh", dir="/tmp")
    log = Path(folder) / "head.log"
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    env = os.environ | {
        "PATH": warm.path(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(24),
        "RAY_TMPDIR": folder,
    }
    env.pop("RAY_ADDRESS", None)
    output = log.open("wb")
    started = subprocess.Popen(
        [
            *f"ray start --head --block --num-cpus=3 --object-store-memory=150000000 --temp-dir={folder}".split(),
            *(f"--{name}={port}" for name, port in ports.items()),
        ],
        env=env,
        cwd=folder,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        started_head = Head(address, env, started, log)
        wait_for(started_head)
        yield started_head
    finally:
        end(started, folder)
        output.close()


PORTS = (
    "port", "dashboard-port", "ray-client-server-port", "metrics-export-port", "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port",
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that neither Ray gives to its workers nor the system to anybody, until the head takes them."""
    start = random.SystemRandom().randrange(20000, 30000)
    found = []
    for port in range(start, start + 2000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"no {count} free ports from {start} on")


def wait_for(head: Head, seconds: float = 120.0) -> None:
    request = urllib.request.Request(
        f"{head.address}/api/version", headers={"Authorization": f"Bearer {head.env['RAY_AUTH_TOKEN']}"}
    )
    end_of_patience = time.monotonic() + seconds
    while time.monotonic() < end_of_patience:
        head.check()
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        time.sleep(0.5)
    raise AssertionError(f"{head.address} did not answer within {seconds} s")


def end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End this head and nothing else: its processes name its folder, or are of its session."""
    process.send_signal(signal.SIGTERM)
    end_of_patience = time.monotonic() + 20
    while (left := processes_of(process.pid, folder)) and time.monotonic() < end_of_patience:
        process.poll()
        time.sleep(0.2)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(session: int, folder: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.encode() in (entry / "cmdline").read_bytes() or os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("tiny")
    store, checkpoint = write_store(folder / "tiles"), write_checkpoint(folder)
    broken = write_store(folder / "broken")
    damage_tile(broken, "t0000")
    return SimpleNamespace(folder=folder, store=store, broken=broken, checkpoint=checkpoint)


def translate(tiny: SimpleNamespace, store: str, run: str) -> list[str]:
    return [
        "translate",
        "--store",
        store,
        "--run",
        str(tiny.folder / f"run-{run}"),
        "--checkpoint",
        tiny.checkpoint,
        *LITTLE,
    ]


@pytest.mark.slow  # starts a head, and runs a translation there
def test_a_job_runs_once_and_its_exit_code_comes_back(head, tiny):
    # `test_operations` has a job of a head run on Ray
    job = [*translate(tiny, tiny.store, "ok"), "executor=serial"]
    command = ["--working-dir", ".", "--pipeline", "nightly", "--", *job]
    done = head.submit(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 tiles ok" in done.stdout
    assert "submitted nightly-2026-11-22-1" in done.stderr

    again = head.submit(*command)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith(
        "surveybridge submit: error: job nightly-2026-11-22-1 is already at"
    )
    assert "SUCCEEDED (exit code 0)" in again.stderr and "--attempt 2" in again.stderr

    attached = head.submit("--attach", *command)
    assert (attached.returncode, "4 of 4 tiles ok" in attached.stdout) == (0, True)
    other = head.submit("--attach", "--pipeline", "nightly", "--", "translate", *S3)
    assert other.returncode == 2 and "not 'python -m surveybridge translate --store s3://b/tiles" in other.stderr


@pytest.mark.slow
def test_exit_code_3_comes_back_where_ray_job_submit_returns_1(head, tiny):
    command = [*translate(tiny, tiny.broken, "broken"), "executor=serial"]
    done = head.submit("--pipeline", "broken", "--", *command)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "3 of 4 tiles ok" in done.stdout
    plain = head.run(
        *f"ray job submit --address {head.address} --working-dir . -- python -m surveybridge".split(), *command
    )
    assert plain.returncode == 1, plain.stdout + plain.stderr
    assert "failed with exit code 3" in plain.stdout + plain.stderr


@pytest.mark.slow
def test_exit_code_2_comes_back_from_the_cluster(head, tiny):
    done = head.submit("--pipeline", "absent", "--", *translate(tiny, str(tiny.folder / "absent"), "none"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "surveybridge translate: error: " in done.stdout
    assert not (tiny.folder / "run-none").exists()


@pytest.mark.slow
def test_no_wait_prints_the_id(head):
    done = head.submit("--no-wait", "--pipeline", "later", "--", "simulate", "--out", "/nonexistent/sky")
    assert (done.returncode, done.stdout) == (0, "later-2026-11-22-1\n")


@pytest.mark.slow
def test_a_wrong_token_is_refused_in_one_line(head):
    done = head.submit("--", "translate", *S3, RAY_AUTH_TOKEN="0" * 48)
    assert done.returncode == 2
    assert "refused the token (RAY_AUTH_MODE is token here)" in done.stderr


WHERE = """
from pathlib import Path
import ray

def where():
    import surveybridge
    from surveybridge.bridge_core.checkpoint import check_shipped
    check_shipped("mosaic-v2")
    return Path(surveybridge.__file__).parent.parent

ray.init()
print("driver", where() == Path.cwd())
print("worker", ray.get(ray.remote(where).remote()) == Path.cwd())
"""


UPLOADING = """
import sys
from pathlib import Path
from surveybridge.cluster.submission import JobServer
server = JobServer(sys.argv[1])
server.submit("where-1", [sys.argv[2], "-c", sys.argv[3]], working_dir=Path())
ended = server.follow("where-1", lambda text: print(text, end="", flush=True))
print(ended.state, ended.exit_code)
"""


@pytest.mark.slow
def test_an_uploaded_working_dir_needs_no_installation(head, tmp_path):
    bare = bare_environment(tmp_path / "env") / "python"
    installed = subprocess.run([bare, "-c", "import surveybridge"], cwd=tmp_path, env=outside(), capture_output=True)
    assert b"No module named 'surveybridge'" in installed.stderr
    done = head.run(warm.python(), "-c", UPLOADING, head.address, str(bare), WHERE)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("driver True", "worker True", "SUCCEEDED 0"):
        assert line in done.stdout.splitlines(), done.stdout


DRAINING = """
import os, sys, time
from surveybridge.jobs.running.drain import DRAINED, drain_on_sigterm
print("variables", os.environ.get("RAY_AUTH_MODE"), os.environ.get("WORD"), flush=True)
with drain_on_sigterm() as drain:
    # in two pieces, because the log begins with the text of this program
    print("now", "draining is possible", flush=True)
    drain.wait(60)
    time.sleep(4)  # longer than the three seconds that Ray leaves by default
    print("finished", "what had begun", flush=True)
sys.exit(DRAINED)
"""


SUBMITTING = """
import sys
from pathlib import Path
from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.submission import JobServer
server = JobServer(sys.argv[1])
command = ["python", "-c", sys.argv[2]]
server.submit("drain-1", command, working_dir=Path(), env={"WORD": "a b"}, stop_seconds=30)
try:
    server.submit("drain-1", command)
except ClusterError as error:
    print(error)
ended = server.follow("drain-1", lambda text: print(text, end="", flush=True))
print(ended.state, ended.exit_code)
"""


@pytest.mark.slow
def test_ray_job_stop_leaves_time_to_drain(head):
    with subprocess.Popen(
        [warm.python(), "-c", SUBMITTING, head.address, DRAINING],
        env=head.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as following:  # fmt: skip
        assert following.stdout is not None
        said = until("now draining is possible", following.stdout)
        stopped = head.run(*f"ray job stop --address {head.address} drain-1".split())
        said += following.stdout.read()
    assert stopped.returncode == 0, stopped.stderr
    assert f"job drain-1 is already at {head.address}" in said
    assert "variables token a b" in said
    assert "finished what had begun" in said
    assert said.splitlines()[-1] == "STOPPED 143"


@pytest.mark.slow
def test_ctrl_c_stops_following_and_says_how_to_stop_the_job(head):
    with subprocess.Popen(
        [
            "env", "--default-signal=INT",  # tests that a script runs in the background are deaf to it
            warm.python(), "-m", "surveybridge", "submit", "--address", head.address, "--pipeline", "long", "--date",
            "2026-11-22", "--", "simulate", "--out", str(Path(head.env["RAY_TMPDIR"]) / "sky"),
        ],
        env=head.env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as following:  # fmt: skip
        assert following.stderr is not None
        until("submitted long-2026-11-22-1", following.stderr)
        time.sleep(1)
        following.send_signal(signal.SIGINT)
        said = following.stderr.read()
    assert following.returncode == 130
    assert f"ray job stop --address {head.address} long-2026-11-22-1" in said


def until(words: str, stream: IO[str]) -> str:
    """Read lines up to the one that holds these words."""
    said = ""
    while words not in said:
        line = stream.readline()
        assert line, f"'{words}' is not in: {said}"
        said += line
    return said
