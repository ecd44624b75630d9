"""Planned and executed stages of each arm, from the schedule and the trace."""

from typing import Any

from btp.results.reader import RunFolder


def fired(run: RunFolder) -> list[dict[str, Any]]:
    """Each arm's stages in order, planned and run, with what they did.

    Returns:
        Per stage: arm, title, site, keep (as planned, None where unknown), planned (False where the plan does
        not name it, None where there is no plan), ran (samples), hits (samples that lost tokens, or slots), fired,
        before and after (mean visual tokens, None where it never ran).
    """
    out = []
    for arm in run.arms:
        trace = run.trace[run.trace["arm"] == arm.arm]
        plan = {str(s["site"]): s.get("keep") for s in arm.schedule or ()}
        sites = dict.fromkeys([*trace.sort_values("order")["site"].map(str), *plan])
        for site in sites:
            rows = trace[trace["site"] == site]
            hits, ran = int((rows["after"] < rows["before"]).sum()), len(rows)
            if site.startswith("llm.cache") and "evicted" in run.samples:
                evicted = run.rows(arm.arm)["evicted"]  # of all its stages in the cache
                hits, ran = int((evicted > 0).sum()), len(evicted)
            out.append(
                {
                    "arm": arm.arm,
                    "title": arm.title,
                    "site": site,
                    "keep": plan.get(site),
                    "planned": None if arm.schedule is None else site in plan,
                    "ran": ran,
                    "hits": hits,
                    "fired": hits > 0,
                    "before": float(rows["before"].mean()) if len(rows) else None,
                    "after": float(rows["after"].mean()) if len(rows) else None,
                }
            )
    return out
