"""Duplicates: texts that occur twice, in both domains, or with two labels."""

from __future__ import annotations

from hf_transfer.diagnostics import Finding, Side


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Count equal texts (letters and digits only, case folded) over all rows."""
    sides = {"source": source.facts, "target": target.facts}
    within = {name: int(rows["key"].duplicated().sum()) for name, rows in sides.items()}
    shared = int(target.facts["key"].isin(source.facts["key"]).sum())
    conflicts = {
        name: int((rows.groupby("key")["label"].nunique() > 1).sum()) if "label" in rows else 0
        for name, rows in sides.items()
    }
    advice = ""
    if shared > 0.5 * len(target.facts):
        advice = "Source and target are the same texts for the most part: there is no domain to transfer to."
    elif shared:
        advice = (f"{shared} target texts are in the source too: training leaves out those that are tested, so that no "
                  "score is flattered.")  # fmt: skip
    elif any(conflicts.values()):
        advice = "Equal texts have different labels: look at how they were labelled."
    return Finding(
        summary=f"{shared} target rows are source rows too; repeats: {within['source']} in the source, "
        f"{within['target']} in the target",
        advice=advice,
        apart=None,
        numbers={"shared": shared, "repeats": within, "conflicting_labels": conflicts},
    )
