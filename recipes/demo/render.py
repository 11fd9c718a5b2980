"""Render the demo's results.json as a table in README.md and as a picture.

``python recipes/demo/render.py`` writes them again without running anything; `seeds.py` calls it after its runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llm_forget.core.files import read_json, write_atomic
from llm_forget.core.text import shown

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
WANTED = {"lower": "low", "higher": "high", "keep": "as target", "match_oracle": "as oracle"}
# Tones between black and white, so that the same file reads on a light and on a dark page.
GREY = "#76808a"
TONES = {
    "before": "#8a6fd1", "oracle": "#2f9e63", "stranger": "#2f81d6", "npo": "#00838f", "grad_diff": "#c77b18",
    "grad_ascent": "#d1495b",
}  # fmt: skip
MARKERS = {"before": "s", "oracle": "D"}


def table(results: dict[str, Any]) -> str:
    """Format a Markdown table: one row per line of the suite; for every model the median over seeds, and the range."""
    methods = results["methods"]
    titles = ["metric", "wanted", "target", *(f"`{name}`" for name in methods), "oracle"]
    rows = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for name, line in next(iter(methods.values())).items():
        after = [cell(methods[method][name]["unlearned"]) for method in methods]
        rows.append([name, WANTED[line["goal"]], cell(line["before"]), *after, cell(line["oracle"])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(spread: dict[str, Any]) -> str:
    """``0.025 (0.018–0.025)``; one number if all seeds agree to the digits shown."""
    median, low, high = (shown(spread[key]) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low}–{high})"


def caption(results: dict[str, Any]) -> str:
    """Describe the machine and data of the measurement, and the bounds that do not hold."""
    seeds, rows, hardware = results["seeds"], results["rows"], results["hardware"]
    checks = [(seed, check) for seed, seed_checks in results["checks"].items() for check in seed_checks]
    broken = [f"seed {seed}, {check['bound']}" for seed, check in checks if not check["holds"]]
    held = f"`{results['judged']}` meets {len(checks) - len(broken)} of its {len(checks)} bounds"
    missed = f" (not: {'; '.join(broken)})" if broken else ""
    return (
        f"Median (minimum–maximum) over seeds {', '.join(map(str, seeds))}; {rows['forget']} rows to forget, "
        f"{rows['retain']} to keep. {held}{missed}. "
        f"{results['date']}, {hardware['device']}, {hardware['cores']} cores, {hardware['threads']} in use; "
        f"peak memory {results['peak_memory_gib']:.1f} GiB."
    )


def insert(text: str, marker: str, section: str) -> str:
    """Return ``text`` with ``section`` between ``<!-- results:marker -->`` and ``<!-- /results:marker -->``.

    Raises ValueError if the text lacks these lines.
    """
    begin, end = f"<!-- results:{marker} -->", f"<!-- /results:{marker} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no lines '{begin}' and '{end}' to put the results between")
    return pattern.sub(lambda _: f"{begin}\n{section}\n{end}", text)


def section(results: dict[str, Any]) -> str:
    """Format the demo's part of README.md: table and caption."""
    return f"{table(results)}\n\n{caption(results)}"


def points(results: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return forget and retain probability by seed for each model of the picture."""
    methods = results["methods"]
    first = next(iter(methods.values()))
    chosen = {"before": (first, "before"), "oracle": (first, "oracle")}
    chosen |= {name: (lines, "unlearned") for name, lines in methods.items()}
    return {
        name: list(zip(*(lines[f"{split}_probability"][role]["values"] for split in ("forget", "retain")), strict=True))
        for name, (lines, role) in chosen.items()
    }


def description(results: dict[str, Any]) -> str:
    """Describe the picture in words, for screen readers."""
    models = []
    for name, seed_points in points(results).items():
        ranges = [f"{shown(min(axis))} to {shown(max(axis))}" for axis in zip(*seed_points, strict=True)]
        models.append(f"{name}: forget {ranges[0]}, retain {ranges[1]}")
    return f"Probability of the right answer over {len(results['seeds'])} seeds. {'; '.join(models)}."


def picture(results: dict[str, Any]) -> str:
    """Draw an SVG: a row per model, a dot per seed; probability on forget on the left, on retain on the right."""
    import io

    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    found = points(results)
    names = ["before", *(name for name in found if name not in MARKERS), "oracle"]
    # Text stays text, and no date is written: the same results give the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "demo", "font.family": "sans-serif", "font.size": 11}
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), GREY)
    with plt.rc_context({**style, **colours}):
        figure, panels = plt.subplots(1, 2, figsize=(7.6, 2.6), sharey=True, layout="constrained")
        for axis, (panel, split) in enumerate(zip(panels, ("forget", "retain"), strict=True)):
            model = {"forget": "oracle", "retain": "before"}[split]
            wanted = sorted(point[axis] for point in found[model])
            panel.axvline(wanted[len(wanted) // 2], color=TONES[model], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            for row, name in enumerate(names):
                values = [point[axis] for point in found[name]]
                panel.scatter(
                    values, [row] * len(values), s=52, color=TONES[name], marker=MARKERS.get(name, "o"),
                    alpha=0.75, linewidths=0, zorder=3, clip_on=False,
                )  # fmt: skip
            goal = {"forget": "wanted: as the oracle", "retain": "wanted: as before"}[split]
            panel.set_title(f"{split} rows ({goal})", loc="left", fontsize=11)
            panel.set(
                xlim=(-0.03, 1.03),
                xticks=[0, 0.5, 1],
                xticklabels=["0", "0.5", "1"],
                xlabel="probability of the right answer",
            )
            panel.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
        panels[0].set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)
        figure.get_layout_engine().set(w_pad=0.12, wspace=0.04)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return accessible(stream.getvalue(), description(results))


def accessible(svg: str, text: str) -> str:
    """Add a title and a description for screen readers to the picture, and remove matplotlib's preamble."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, _, body = svg.partition(">")
    named = (
        f'{head} role="img" aria-labelledby="title desc">\n <title id="title">The demo, before and after</title>\n'
        f' <desc id="desc">{text}</desc>{body}'
    )
    return re.sub(r"[ \t]+$", "", named, flags=re.MULTILINE)


def render_all() -> None:
    """Write the picture and the README's section."""
    results = read_json(HERE / "results.json")
    write_atomic(HERE / "results.svg", picture(results))
    write_atomic(README, insert(README.read_text(encoding="utf-8"), "demo", section(results)))


if __name__ == "__main__":
    render_all()
