"""One scene for all drills, and the undisturbed run that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import tiny
from tests.drills.drill import STAGES, Drill, Driver, results
from tests.drills.driver import TILES
from tests.drills.scene import Row, Scene, set_up

TABLE = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="package")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Cluster, servers, tile store, and the run that nothing disturbed."""
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    with set_up(tmp_path_factory.mktemp("drills")) as made:
        made.table = request.config.stash.setdefault(TABLE, [])
        run_undisturbed(made)
        yield made


def run_undisturbed(scene: Scene) -> None:
    """Run the plain command, as a person types it; it compacts nothing, so files are as the workers wrote them."""
    drill = Drill(scene, "undisturbed", workers=1)  # who is not disturbed needs nobody to do the work of another
    driver = Driver(drill, ["surveybridge"], [], {})
    assert driver.wait() == 0, driver.output[-8000:]
    run = drill.run_folder()
    scene.reference = results(run)
    scene.tiles = sorted(scene.reference)
    assert len(scene.tiles) == TILES
    assert sum(tile.ledger["n_candidates"] for tile in scene.reference.values()) == len(tiny.BLOBS)
    for tile, result in scene.reference.items():
        assert run.folder.read("candidates", f"{tile}.parquet") == result.candidates
    scene.table.append(Row("undisturbed", tuple(drill.exits), drill.seconds, {}, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many tiles each drill did again."""
    rows = config.stash.get(TABLE, [])
    if not rows:
        return
    terminalreporter.section("drills: tiles that a stage began more than once (allowed)")
    terminalreporter.write_line("| drill | exit codes | seconds | " + " | ".join(STAGES) + " |")
    terminalreporter.write_line("|---|---|---|---|---|---|")
    for row in rows:
        again = " | ".join(f"{row.again.get(stage, 0)} ({row.bound.get(stage, 0)})" for stage in STAGES)
        exits = ", ".join(map(str, row.exits))
        terminalreporter.write_line(f"| {row.drill} | {exits} | {row.seconds:.0f} | {again} |")
