"""Take a node away hard in the middle of a stream; a process of its own, since it starts a cluster of several nodes.

What is left has no room for the model that the lost node held, which keeps waiting with the items it was given.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))


def main(folder: Path) -> None:
    """Write report.json into `folder`."""
    import ray
    from ray.cluster_utils import Cluster

    from surveybridge.cluster.stream import Stream
    from tests.cluster.scripted import Script

    os.environ.update(RAY_health_check_period_ms="500")  # a head asks 5 times before it gives a node up
    common: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100_000_000}
    head = {"num_cpus": 1, "temp_dir": tempfile.mkdtemp(prefix="sb", dir="/tmp"), **common}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, **common)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    script = Script(folder, seconds={"model": 1.0, "read": 0.1}, size=200_000)
    stream = Stream([f"t{k:04d}" for k in range(24)], script.stages(), workers=(2, 2))
    rows, removed_while_busy = [], False
    for row in stream:
        rows.append(row)
        if not removed_while_busy and len(rows) >= 4:
            # hard, and while a model is at work there
            busy = {running["node"] for running in stream.in_flight() if running["stage"] == "model"}
            if second.node_id in busy:
                cluster.remove_node(second, allow_graceful=False)
                removed_while_busy = True
    report = {
        "removed_while_busy": removed_while_busy,
        "items": sorted(row["tile_id"] for row in rows),
        "statuses": Counter(row["status"] for row in rows),
        "repeated": Counter(stage for stage, _ in script.repeated()),
    }
    (folder / "report.json").write_text(json.dumps(report))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
