"""A translation that has been checked, before anything is written."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from surveybridge.bridge_core.settings import windows_of
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.threads import threads
from surveybridge.jobs.translating.config import PATCHES, Config, TranslationConfig, steps_of
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.jobs.translating.light import relation_for, relation_of
from surveybridge.jobs.translating.scene import check_tile
from surveybridge.jobs.translating.stages import Settings
from surveybridge.jobs.translating.windows import check_halo, check_network, default_patch, halo_of_store
from surveybridge.jobs.translating.wishes import Wishes
from surveybridge.storage.problems import is_default

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.light_relation import LightRelation
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.problem import Direction
    from surveybridge.bridge_core.settings import Sampling, Scoring
    from surveybridge.storage.runs import RunFolder
    from surveybridge.storage.star_lists import StarList
    from surveybridge.storage.tiles import TileStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A translation that has been checked; nothing is written yet."""

    config: Config
    model: Model
    store: TileStore
    manifest: pa.Table
    """The tiles that have the observed end; the others of the store are no work of this run."""
    others: int
    """Number of these others."""
    fingerprint: dict[str, Any]
    begun_as: str | None = None
    """Id of the run that is resumed."""
    stars: StarList | None = None
    """Known stars in and around the tiles."""

    @property
    def direction(self) -> Direction:
        """Return the direction of the translation."""
        return self.model.card.problem.direction(str(self.config.direction))

    @property
    def sampling(self) -> Sampling:
        """Return how its posteriors are sampled: as the settings say, in windows that the network can take."""
        windows = windows_of(self.config.patch or PATCHES[0], self.model.card.network.window_multiple)
        shared = self.fingerprint.get("shared_start", False)
        return replace(self.config.sampling, patches=windows, shared_start=shared)

    @property
    def document(self) -> dict[str, Any]:
        """Return what run.json states: the fingerprint, a problem that is not the default, and the recalibration."""
        card = self.model.card
        problem = {} if is_default(card.problem.table) else {"problem": card.problem.table}
        recalibration = {"recalibration": card.recalibration_of(self.direction)} if self.config.calibrated else {}
        return self.fingerprint | problem | recalibration

    @property
    def run_id(self) -> str:
        """Short name of everything that decides the result; before version 4 the place of the store was part of it."""
        known_by = "store_id" if self.version >= 4 else "store"
        decides = {key: value for key, value in self.fingerprint.items() if key not in ("store", "store_id")}
        named = decides | {"store": self.fingerprint[known_by]}
        return self.begun_as or hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()[:12]

    @property
    def version(self) -> int:
        """Schema version of the run."""
        return int(self.fingerprint["code_schema_version"])

    def of_version(self, version: int) -> Request:
        """Return the same translation as a run of some schema version, which another version of this code started."""
        return replace(self, fingerprint=self.fingerprint | {"code_schema_version": version})

    def of_light_alone(self) -> Request:
        """Return the same translation with light as the network has it, as those that state nothing else began."""
        return replace(self, fingerprint=_without(self.fingerprint, "consistency"))

    def of_own_starts(self) -> Request:
        """Return the same translation with a start for each sample, as those that state nothing else began."""
        return replace(self, fingerprint=_without(self.fingerprint, "shared_start", "consistency"))

    def of_patches(self) -> Request:
        """Return the same translation in patches of the first size, as those that state nothing else began."""
        config = self.config.model_copy(update={"patch": PATCHES[0]})
        without = _without(self.fingerprint, "patch", "shared_start", "consistency")
        return replace(self, config=config, fingerprint=without)

    def of_all_sources(self) -> Request:
        """Return the same translation with every source reconstructed, as those that state nothing else began."""
        config = self.config.model_copy(update={"score_reconstruct": 1.0})
        return replace(self, config=config, fingerprint=_without(self.fingerprint, "score_reconstruct"))


def _without(fingerprint: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fingerprint.items() if key not in keys}


def check(config: Config) -> Request:
    """Read the inputs of the run; refuse what cannot work."""
    from surveybridge.storage.manifests import store_id_of, tiles_with
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.runs import LATER_KEYS, RunFolder, version_at
    from surveybridge.storage.tiles import TileStore

    begun = RunFolder.open(config.run) if Folder.at(config.run).exists("run.json") else None
    if config.checkpoint is None and begun is not None:
        config = config.model_copy(update={"checkpoint": checkpoint_of(begun)})
    model = read_model(config.checkpoint)
    store = TileStore.open(config.store)
    listed = store.manifest()
    direction = asked_direction(model, config)
    manifest = tiles_with(listed, direction.observed.name)
    check_request(model, store, listed, direction, config.patch)
    recalibration = {"calibrated": True} if config.calibrated else {}
    if config.calibrated:
        model.card.calibrated(direction)  # refused where it is not
    steps = config.steps or steps_of(model.card.bridge.kind)
    config = config.model_copy(update={"to": None, "direction": str(direction), "steps": steps})
    if begun is not None:
        began_with = LATER_KEYS | begun.run_json
        unsaid = {name: began_with[name] for name in ("score_reconstruct", "patch") if getattr(config, name) is None}
        config = config.model_copy(update=unsaid)
    if config.patch is None:
        config = config.model_copy(update={"patch": default_patch(model.card, halo_of_store(listed))})
    homogenisation = asked_homogenisation(model, config, begun)
    relation = asked_consistency(model.card, direction, config, begun)
    maps_head = head_digest(model, config)
    wishes = Wishes.read(model.card, direction, config.wanted_noise, config.wanted_psf)
    fingerprint = {
        "checkpoint_sha256": model.sha256,
        "direction": str(direction),
        **decisions(config.sampling, config.scoring),
        **recalibration,
        **({"homogenise": homogenisation.document} if homogenisation else {}),
        **({"wanted": wishes.document} if wishes else {}),
        **({"shared_start": True} if asked_to_share(model.card, config, begun) else {}),
        **({"maps_head": maps_head} if maps_head else {}),
        **({"consistency": relation.card} if relation else {}),
        "grid": model.card.grid,
        "code_schema_version": version_at(config.run),
        "store": store.url,
        "store_id": store_id_of(listed),
    }
    stars, known_by = known_stars(config, manifest)
    fingerprint |= known_by
    request = Request(config, model, store, manifest, listed.num_rows - manifest.num_rows, fingerprint, stars=stars)
    if begun is not None:
        left_of(request, begun, begun.ledger())  # refuses what cannot be resumed
        request = replace(request, begun_as=begun.run_json.get("run_id"))
    return request


def known_stars(config: Config, manifest: pa.Table) -> tuple[StarList | None, dict[str, str]]:
    """Read the list of stars that was asked for; those in and around the tiles, and the fingerprint of all.

    Raises
    ------
    StorageError
        If it cannot be read.
    RequestError
        If none of the stars is there.
    """
    if config.stars is None:
        return None, {}
    from surveybridge.storage.star_lists import read_stars

    listed = read_stars(config.stars, config.stars_radius)
    near = listed.near(manifest)
    log.info("%s: %d of %d stars lie in or around the tiles", config.stars, len(near), len(listed))
    if not len(near):
        raise RequestError(
            f"--stars {config.stars}: 0 of {len(listed)} stars lie in or around the {manifest.num_rows} tiles; give a "
            "list of this part of the sky, in ICRS degrees, or leave it out"
        )
    return near, {"stars": listed.digest}


def asked_homogenisation(model: Model, config: TranslationConfig, begun: RunFolder | None) -> Homogenisation | None:
    """Return what is done to the PSFs: as asked for, else as a run has begun, else as the checkpoint calls for."""
    if config.homogenise is None and begun is not None:
        return Homogenisation.of_document(begun.run_json.get("homogenise"))
    if config.homogenise == "off":
        return None
    return Homogenisation.of_card(model.card, config.psf_noise)


def asked_consistency(
    card: Card, direction: Direction, config: TranslationConfig, begun: RunFolder | None
) -> LightRelation | None:
    """Return how light is brought to agree: as asked for, else as a run has begun, else as the card says."""
    if config.consistency is None and begun is not None:
        return relation_of(begun.run_json)
    return (
        None if config.consistency == "off" else relation_for(card, direction, windows_of(config.patch or PATCHES[0]))
    )


def asked_to_share(card: Card, config: TranslationConfig, begun: RunFolder | None) -> bool:
    """Return whether the samples of a window share a start: as a run has begun, else where they may."""
    from surveybridge.bridge_core.translate import shares_start

    return shares_start(card, config.sampling) if begun is None else bool(begun.run_json.get("shared_start", False))


def head_digest(model: Model, config: TranslationConfig) -> str | None:
    """SHA-256 of the head that makes maps without samples; None where samples are drawn.

    Raises
    ------
    BridgeError
        Where the checkpoint has none that fits it.
    RequestError
        Where it is to be profiled, which looks at samples.
    """
    if config.samples:
        return None
    from surveybridge.bridge_core.checkpoint import head_file
    from surveybridge.bridge_core.maps import check_maps, load_head

    if getattr(config, "profile", None) is not None:
        raise RequestError("--profile looks at a call of the sampler, which --samples 0 does not make; leave one out")
    check_maps(model.card)
    file = head_file(config.checkpoint)
    load_head(model, file)  # refused where it is another's
    return hashlib.sha256(file.read_bytes()).hexdigest()


DECISIONS = ("samples", "steps", "score_samples", "score_steps", "precision", "seed")
"""Settings that every run.json states; others are stated only if they differ from their default."""


def decisions(sampling: Sampling, scoring: Scoring) -> dict[str, Any]:
    """Return the settings that decide the pixels and scores of a run, by the keys of run.json."""
    from surveybridge.bridge_core.settings import Sampling, Scoring

    found, default = _by_key(sampling, scoring), _by_key(Sampling(), Scoring())
    later = {key: value for key, value in found.items() if key not in DECISIONS and value != default[key]}
    return {key: found[key] for key in DECISIONS} | later


def _by_key(sampling: Sampling, scoring: Scoring) -> dict[str, Any]:
    """All settings but the batch, which decides nothing; seed and precision of the score are those of the sampling."""
    of_score = {key: value for key, value in vars(scoring).items() if key not in ("batch", "seed", "precision")}
    of_sampling = {key: value for key, value in vars(sampling).items() if key not in ("batch", "patches")}
    return of_sampling | {f"score_{key}": of_score[key] for key in of_score} | {"patch": sampling.patches.stated}


def sampling_of(run_json: Mapping[str, Any], card: Card) -> Sampling:
    """How the posterior of a run by a checkpoint was sampled; the batch, which decides nothing, is the default one."""
    from surveybridge.bridge_core.settings import Sampling, windows_of
    from surveybridge.storage.runs import LATER_KEYS

    known = LATER_KEYS | dict(run_json)
    stated = {one.name: known[one.name] for one in fields(Sampling) if one.name in known}
    return Sampling(**stated, patches=windows_of(known["patch"], card.network.window_multiple))


def checkpoint_of(run: RunFolder) -> str | None:
    """Path or shipped name of the checkpoint that a run was begun with.

    A run by the default one has no path: that may be another one by now, but the shipped name stays.
    """
    path: str | None = run.run_json.get("config", {}).get("checkpoint") or run.run_json.get("model")
    return path


def read_model(path: str | None) -> Model:
    """Load a checkpoint that translates; AS-Bridge's `.pth` is imported: `check_request` says why it does not fit."""
    from surveybridge.bridge_core.asbridge import import_asbridge
    from surveybridge.bridge_core.checkpoint import load_checkpoint

    model = import_asbridge(path) if path and path.endswith(".pth") else load_checkpoint(path)
    if model.card.generation is not None:
        raise RequestError(
            f"checkpoint {model.card.name} makes images from noise and translates none; use `surveybridge generate "
            f"--checkpoint {path}`, or choose another checkpoint"
        )
    return model


def asked_direction(model: Model, config: TranslationConfig) -> Direction:
    """Return the direction that was asked for; by default the one in which objects are scored, or the only one."""
    problem = model.card.problem
    if config.direction is not None:
        direction = problem.direction(config.direction)
        if config.to not in (None, direction.wanted.name):
            raise RequestError(f"--to {config.to} and --direction '{direction}' contradict each other; keep one")
        return direction
    if config.to is not None:
        return problem.to(config.to)
    if len(problem.directions) == 1:
        return problem.directions[0]
    if problem.scored is not None:
        return problem.scored
    raise RequestError(
        f"checkpoint {model.card.name} translates both ways; choose one: "
        + " or ".join(f"--to {end.name}" for end in problem.endpoints)
    )


def check_request(
    model: Model, store: TileStore, manifest: pa.Table, direction: Direction, patch: int | str | None = None
) -> None:
    """Refuse, before anything is written, a store that the checkpoint was not made for.

    And windows that do not fit; without `patch` those of `default_patch`, which do.
    """
    from surveybridge.storage.manifests import tiles_with

    card = model.card
    if card.grid != "mosaic":
        raise RequestError(
            f"checkpoint {card.name} is for the {card.grid} grid but {store.url} holds mosaic tiles; "
            "choose a mosaic checkpoint"
        )
    if manifest.num_rows == 0:
        raise RequestError(f"{store.url} has 0 tiles; ingest some first")
    observed = direction.observed.name
    if tiles_with(manifest, observed).num_rows == 0:
        raise RequestError(
            f"{store.url}: none of its {manifest.num_rows} tiles has {observed}, which {direction} needs; ingest it"
        )
    check_network(card, patch)
    for tile_id in tiles_with(manifest, observed)["tile_id"].slice(0, 100).to_pylist():
        try:
            tile = store.read_tile(tile_id)
        except Exception:
            continue  # whatever is wrong with this tile, it becomes a ledger row later
        check_tile(model.card, tile)
        if patch not in (None, PATCHES[0]):  # which stores of any halo are translated with
            check_halo(tile, patch, store.url)
        return


def todo_of(request: Request) -> list[str]:
    """Return the tiles that the ledger lacks; refuse a run folder that `translate` would not resume; write nothing."""
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.runs import RunFolder

    config = request.config
    folder = Folder.at(config.run)
    if folder.exists("run.json"):
        # there is a run, so this writes none: it compares what decides the result
        run = RunFolder.open_or_create(config.run, request.fingerprint)
        return left_of(request, run, run.ledger())
    if folder.exists() and (folder.names() or (folder.is_local and os.path.isfile(folder.path()))):
        raise RequestError(
            f"{folder.url} is {folder.describe()}, neither empty nor a run folder; give another --run URL"
        )
    return [str(tile) for tile in request.manifest["tile_id"].to_pylist()]


def left_of(request: Request, run: RunFolder, ledger: pa.Table) -> list[str]:
    """Return the tiles that a run has not done; StorageError if it cannot go on with this store."""
    from surveybridge.storage.resuming import check_store
    from surveybridge.storage.runs import pending

    check_store(run, request.manifest, request.store.url, ledger)
    return pending(request.manifest, ledger, retry_failed=request.config.retry_failed)


def settings_of(request: Request, attempts: dict[str, int], *, early: bool = False) -> Settings:
    """Return the settings of the stages; `attempts` counts earlier tries by tile, and `early` is that of `Settings`."""
    from surveybridge.storage.objectstore import configured

    config = request.config
    return Settings(
        store=config.store,
        run=config.run,
        checkpoint=config.checkpoint,
        direction=str(request.direction),
        observed=request.direction.observed.name,
        sampling=request.sampling,
        scoring=config.scoring,
        homogenisation=Homogenisation.of_document(request.fingerprint.get("homogenise")),
        wishes=Wishes.of_document(request.fingerprint.get("wanted")),
        relation=relation_of(request.fingerprint),
        batch=config.batch,
        calibrated=config.calibrated,
        run_id=request.run_id,
        version=request.version,
        threads=threads(config.workers),
        early=early,
        attempts=attempts,
        stars=request.stars,
        filesystems=configured(),
    )
