"""Translate a tile store: mosaics, uncertainty maps and anomaly candidates, streamed over Ray; resumes by itself."""

from __future__ import annotations

from surveybridge.jobs.running.drain import drain_on_sigterm
from surveybridge.jobs.translating.config import Config

__all__ = ["EXAMPLES", "Config", "run"]

EXAMPLES = """\
surveybridge translate --store field.zarr --run runs/field
surveybridge translate --store field.zarr --run runs/back --direction 'euclid->lsst' --samples 16 --workers 2
surveybridge translate --store s3://bucket/field.zarr --run s3://bucket/runs/field --executor serial
surveybridge translate --store field.zarr --run runs/sharp --checkpoint runs/seeing/seeing-v1 --to sharp
surveybridge translate --store field.zarr --run runs/field --profile profiles/field"""


def run(config: Config) -> int:
    """Translate all tiles that the ledger does not have; 0 all ok, 3 some failed."""
    from surveybridge.jobs.translating.engine import translate
    from surveybridge.jobs.translating.request import check
    from surveybridge.jobs.translating.tally import summary

    with drain_on_sigterm():  # from the first second to the last line
        request = check(config)
        if config.profile is None:
            tally = translate(request)
            print(summary(config.run, tally), flush=True)
        else:
            from surveybridge.jobs.profiling.profile import translate_profiled

            tally, profile = translate_profiled(request, config.profile)
            print(summary(config.run, tally))
            print(profile, flush=True)
        return tally.exit_code
