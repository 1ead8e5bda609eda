"""An S3 server and three Ray nodes on this machine, in a process of their own: python -m tests.drills.servers.

Commands come on stdin, each answered by a line of JSON: ``start URL`` starts the nodes, which find S3 at the URL;
``remove ID`` ends one as a power cut does; ``add`` adds one. All ends with stdin, so with the tests, however they end.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

NODE: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 80_000_000, "num_gpus": 0}


def main() -> None:
    """Serve until stdin ends."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    answer(endpoint=f"http://{host}:{port}")
    cluster = Cluster()
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "start":
            os.environ["AWS_ENDPOINT_URL"] = arguments[0]
            os.environ.update(RAY_health_check_period_ms="500")  # a head asks 5 times before it gives a node up
            add_node(cluster, 0)  # where drivers live, as on a cluster with a head of its own
            for _ in range(2):
                add_node(cluster, 1)  # where one is lost, the other has no room for its model
        elif command == "remove":
            (node,) = (node for node in cluster.worker_nodes if node.node_id == arguments[0])
            cluster.remove_node(node, allow_graceful=False)
        elif command == "add":
            add_node(cluster, 1)
            cluster.wait_for_nodes()
        answer(address=cluster.address, nodes=len(cluster.list_all_nodes()))
    cluster.shutdown()
    moto.stop()


def add_node(cluster: Cluster, cpus: int, tries: int = 3) -> None:
    """Add a node, which a machine that does much else may not start in the 30 s that Ray gives it."""
    for left in reversed(range(tries)):
        try:
            cluster.add_node(num_cpus=cpus, **NODE)
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
        else:
            return


def answer(**values: Any) -> None:
    """One line of JSON."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
