"""Doctor: every kind of trouble is found where it is, named with its remedy, and makes the exit code 1."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from surveybridge.__main__ import main
from surveybridge.bridge_core import checkpoint
from surveybridge.bridge_core.checkpoint import shipped_checkpoints
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.jobs.diagnosing.machine import (
    check_disk,
    check_gpu,
    check_memory,
    check_norm,
    check_packages,
    check_processor,
    check_python,
)
from surveybridge.jobs.diagnosing.services import check_checkpoint, check_ray, check_read, check_write
from surveybridge.kernels.pixel_norm import cpp
from surveybridge.storage.objectstore import Folder
from tests import tiny
from tests.storage.faults import moto_server


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    with moto_server() as url:
        yield url


@pytest.fixture
def s3(endpoint, monkeypatch):
    """A bucket, and a patience of a second."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("SURVEYBRIDGE_RETRY_SECONDS", "1")
    folder = Folder.at("s3://doctor")
    if not folder.filesystem.exists("doctor"):
        folder.filesystem.mkdir("doctor")
    folder.put(b"{}", "run.json")
    return folder.url


def only(findings):
    (finding,) = findings
    return finding


def failed(finding, *said):
    assert finding.status == "failed", finding
    for words in said:
        assert words in f"{finding.message}; {finding.remedy}"
    assert finding.remedy
    return True


# -- the machine --


def test_what_is_installed_fits_and_another_version_does_not():
    assert only(check_python()).status == "ok"
    assert failed(only(check_python(">=3.99")), "needs >=3.99")
    assert {finding.status for finding in check_packages()} <= {"ok", "note"}
    wrong, absent, extra = check_packages(
        ["numpy<1", "no-such-package>=2", "another-package; extra == 'hips'", "third; extra == 'dev'"]
    )
    assert failed(wrong, "numpy", "<1 is needed", "pip install -c constraints.txt 'numpy<1'")
    assert failed(absent, "no-such-package is not installed", "pip install")
    assert (extra.status, extra.remedy) == ("note", "pip install -c constraints.txt 'surveybridge[hips]'")


def test_a_processor_without_bfloat16_is_noted(tmp_path):
    amx, old = tmp_path / "amx", tmp_path / "old"
    amx.write_text("model name\t: Xeon\nflags\t\t: fpu amx_bf16 avx512_bf16\n")
    old.write_text("model name\t: Old\nflags\t\t: fpu sse2\n")
    assert "Xeon, bfloat16 by amx_bf16, avx512_bf16" in only(check_processor(amx)).message
    finding = only(check_processor(old))
    assert finding.status == "note" and "--precision float32" in finding.remedy


def test_the_norm_of_the_processor_is_cpp_or_noted(monkeypatch):
    monkeypatch.setattr(cpp, "loaded", lambda: True)
    assert only(check_norm()).status == "ok"
    monkeypatch.setattr(cpp, "loaded", lambda: False)
    finding = only(check_norm())
    assert finding.status == "note" and "the same bits" in finding.message
    assert "surveybridge.kernels.pixel_norm.build" in finding.remedy


def test_a_driver_whose_gpu_torch_does_not_see_is_trouble(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that torch sees")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert only(check_gpu(tmp_path / "no-driver")).status == "ok"
    (tmp_path / "nvidiactl").touch()
    assert failed(only(check_gpu(tmp_path / "nvidiactl")), torch.__version__, "sees no GPU", "install a torch")


@pytest.mark.gpu
def test_a_gpu_that_computes_right_is_well():
    assert {finding.status for finding in check_gpu()} == {"ok"}
    assert "to the bit" in [finding.message for finding in check_gpu()][-1]


def test_a_full_disk_is_named_with_both_numbers_and_counted_once(tmp_path):
    free = shutil.disk_usage(tmp_path).free / 2**30
    assert only(check_disk([str(tmp_path), str(tmp_path / "not" / "yet")], free / 2)).status == "ok"
    finding = only(check_disk([str(tmp_path)], 2 * free))
    assert failed(finding, str(tmp_path), "GiB are free, below --min-free-gib", "free some")


def test_shared_memory_that_is_too_small_for_ray_is_noted(tmp_path, monkeypatch):
    assert only(check_memory(tmp_path / "none")).status == "ok"
    small = shutil.disk_usage(tmp_path)._replace(total=64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)  # a disk of 64 MiB cannot be had here
    finding = only(check_memory(tmp_path))
    assert finding.status == "note" and "0.06 GiB, below 2" in finding.message and "--shm-size" in finding.remedy


# -- checkpoints --


def test_shipped_checkpoints_are_those_that_were_shipped():
    for name in shipped_checkpoints():
        assert only(check_checkpoint(name)).message.startswith(f"{name}: as shipped")


def test_a_damaged_shipped_checkpoint_is_found_although_it_loads(tmp_path, monkeypatch):
    package = tmp_path / "bridge_core"
    shutil.copytree(Path(checkpoint.__file__).parent / "checkpoints", package / "checkpoints")
    weights = package / "checkpoints" / f"{checkpoint.DEFAULT_CHECKPOINT}.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1  # one bit of one weight
    weights.write_bytes(data)
    monkeypatch.setattr("surveybridge.bridge_core.checkpoint.resources.files", lambda name: package)
    checkpoint.load_checkpoint()
    assert failed(
        only(check_checkpoint(checkpoint.DEFAULT_CHECKPOINT)), str(weights), "SHA-256", "was shipped", "force-reinstall"
    )


def test_a_checkpoint_that_is_cut_short_absent_or_not_finite_is_found(tmp_path):
    path = tiny.write_checkpoint(tmp_path)
    assert only(check_checkpoint(path)).status == "ok"
    assert failed(only(check_checkpoint(str(tmp_path / "absent"))), "does not exist", "shipped checkpoints")
    weights = Path(f"{path}.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert failed(only(check_checkpoint(path)), "cannot be read", "save it again")
    weights.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")  # the last float32 is NaN
    assert failed(only(check_checkpoint(path)), "1 tensors have NaN", "train again")


def test_sums_are_refused_for_files_without_one():
    with pytest.raises((BridgeError, OSError)):
        checkpoint.check_shipped("no-such-checkpoint")


# -- storage --


def test_storage_that_can_be_read_and_written_is_well_and_left_as_it_was(s3, tmp_path):
    assert "a folder with run.json" in only(check_read(s3)).message
    assert "conditional writes" in only(check_write(f"{s3}/runs/new")).message
    assert Folder.at(s3).filesystem.find("doctor") == ["doctor/run.json"]
    assert only(check_read(str(tmp_path))).status == "ok"
    assert only(check_write(str(tmp_path / "not" / "yet"))).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_url_is_found_and_not_taken_for_an_empty_folder(s3, tmp_path):
    assert failed(only(check_read("s3://no-such-bucket/tiles")), "s3://no-such-bucket", "check the spelling")
    assert failed(only(check_read(f"{s3}/no-such-folder")), "no-such-folder", "check the spelling")
    assert failed(only(check_write("s3://no-such-bucket/runs")), "s3://no-such-bucket", "check the spelling")
    assert failed(only(check_read(str(tmp_path / "absent"))), "absent", "check the spelling")


def test_wrong_credentials_are_found(s3, monkeypatch):
    reply = "<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known.</Message></Error>"
    with refusing_server(403, reply) as url:  # moto takes any key
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for check in (check_read, check_write):
            assert failed(only(check("s3://sky/tiles")), "s3://sky/tiles", "AWS_PROFILE")


def test_absent_credentials_are_found(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert failed(only(check_read(s3)), "credentials", "set AWS_PROFILE")


def test_a_server_that_is_not_there_is_found(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert failed(only(check_read("s3://sky/tiles")), "s3://sky/tiles", "no success", "store is up and reachable")


def test_a_server_that_ignores_conditions_is_found(s3, monkeypatch):
    with refusing_server(200, "") as url:  # it takes everything, and keeps nothing apart
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert failed(only(check_write("s3://sky/runs")), "two drivers could write to one run", "another server")


class refusing_server:
    """An HTTP server that answers everything alike."""

    def __init__(self, status: int, body: str) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("ETag", '"same"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


# -- Ray --


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_ray_that_is_not_there_is_found():
    port = free_port()
    assert failed(only(check_ray(f"127.0.0.1:{port}")), f"127.0.0.1:{port} cannot be reached", "ray start --head")
    assert failed(only(check_ray(f"http://127.0.0.1:{port}")), str(port))
    assert failed(only(check_ray("head")), "'head' is not HOST:PORT", "10.0.0.5:6379")


def test_something_else_at_rays_address_is_found_in_bounded_time():
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        start = time.monotonic()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert failed(only(check_ray(address, seconds=6.0)), address, "has not answered in 6 s", "ray status")
        assert time.monotonic() - start < 30


@pytest.mark.slow  # a cluster of its own
def test_ray_that_starts_here_is_well():
    finding = only(check_ray("local"))
    assert finding.status == "ok"
    assert "nodes 1" in finding.message


# -- the command --


def test_the_command_says_all_and_returns_1_if_something_failed(tmp_path, capsys):
    path = tiny.write_checkpoint(tmp_path)
    common = ["--ray", "none", "--checkpoint", path, "--min-free-gib", "0"]
    assert main(["doctor", *common, "--read", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"all {len(lines) - 1} checks passed"
    assert {line.split()[1] for line in lines[:-1]} >= {"python", "packages", "disk", "gpu", "checkpoint", "read"}
    assert main(["doctor", *common, "--read", str(tmp_path / "absent"), "--format", "json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    bad = [finding for finding in findings if finding["status"] == "failed"]
    assert [finding["check"] for finding in bad] == ["read"]
    assert bad[0]["remedy"]
