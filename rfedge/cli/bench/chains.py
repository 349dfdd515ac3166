"""`rfedge bench chains`: CALVIN's chains of five tasks."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from rfedge.cli.options import AsJson


def chains(
    num: Annotated[
        int,
        typer.Option(
            min=1, help="Number of evaluation chains, from the first of CALVIN's 1000; above that a larger set is sampled."
        ),
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    from collections import Counter

    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json, print_table, say
    from rfedge.envs.chains import NUM_OFFICIAL, OFFICIAL_SHA256, chains_sha256, make_chains

    with stage_progress() as progress:
        sampled = make_chains(num, on_progress=partial(progress, "sampling chains"))
    counts = Counter(task for chain in sampled for task in chain.tasks)
    sha256 = chains_sha256(sampled)
    is_official = sha256 == OFFICIAL_SHA256 if len(sampled) == NUM_OFFICIAL else None
    print_table(f"{len(sampled)} chains", ("task", "times"), counts.most_common())
    verdict = {True: ": CALVIN's 1000 chains", False: ": NOT CALVIN's 1000 chains", None: ""}[is_official]
    say(f"sha256 {sha256}{verdict}")
    print_json({"num_chains": len(sampled), "sha256": sha256, "official": is_official, "task_counts": dict(counts)})
