"""Preflight: what would wait for ever is refused with both numbers."""

from __future__ import annotations

import pytest

from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.preflight import check_cluster, check_memory

pytestmark = pytest.mark.usefixtures("ray_cluster")  # of 4 CPUs


def test_what_fits_passes():
    check_cluster(workers=4)
    check_cluster(workers=2, memory={"model": 10_000_000, "read": 1_000_000, "write": 1_000_000})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"workers": 5}, r"5 models of 1 CPU, .* need 5 CPU, but the cluster has .* CPU"),
        ({"gpus": 1}, r"1 model of 1 CPU 1 GPU, .* need 1 CPU 1 GPU, but .*; ask for fewer workers"),
        ({"memory": {"model": 10**15}}, r"1 model of 1 CPU 1000000\.0 GB.*nodes: 1 of 4 CPU .* GB"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(request_, message):
    with pytest.raises(ClusterError, match=message):
        check_cluster(**request_, wait=0)


def test_a_training_whose_workers_have_no_room_is_refused_with_both_numbers():
    check_memory(2, 10_000_000)
    message = r"3 workers of this training need 900000\.0 GB each, .* 2700000\.0 GB, but the cluster has .* GB free .*"
    with pytest.raises(ClusterError, match=message + "--limit"):
        check_memory(3, 9 * 10**14, wait=0)
