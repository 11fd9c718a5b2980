"""Charts as SVG that stands in a page: colours are the page's CSS variables, letters stay letters, nothing is fetched.

Equal numbers give equal bytes. A role has its colour, dash and marker: it can be read without colour.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import MissingPackageError
from llm_forget.core.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib wants colours that it can parse; each stands for a CSS variable of page.html.jinja.
COLOURS = {
    "before": "#0b0001", "unlearned": "#0b0002", "oracle": "#0b0003", "ink": "#0b0004", "line": "#0b0005",
    "paper": "#0b0006",
}  # fmt: skip
DASHES: dict[str, Any] = {"before": (0, (5, 2)), "unlearned": "solid", "oracle": (0, (1.2, 1.4))}
MARKERS = {"before": "s", "unlearned": "o", "oracle": "D"}
LEGEND: dict[str, Any] = {"handlelength": 1.9, "columnspacing": 0.9, "handletextpad": 0.5, "borderpad": 0}
WIDTH = 4.6  # inches; the page scales it
MOST_BARS = 100  # rows that can be told apart in a chart


@dataclass(frozen=True)
class Series:
    """One line of a chart: ``x`` and ``y`` are ``[n]``; the role decides how it looks."""

    label: str
    role: str  # before | unlearned | oracle
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One model of the plane; ``y_interval`` is absolute."""

    label: str
    role: str
    x: float
    y: float
    y_interval: Sequence[float] | None = None


@dataclass(frozen=True)
class Recovery:
    """One line before and after an attack; None where it was not measured."""

    label: str
    before: float | None
    unlearned: float | None
    unlearned_attacked: float | None
    oracle: float | None
    oracle_attacked: float | None


def lines(
    name: str,
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    whole_x: bool = False,
    steps: bool = False,
    chance: bool = False,
    mark_x: float | None = None,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> str:
    """Lines or steps over one axis. ``chance`` draws y = x, ``mark_x`` a vertical line; ``whole_x``: no fractions."""

    def paint(axes: Axes) -> None:
        if chance:
            ends = [max(limits[0][0], limits[1][0]) if limits else 0, 1]
            axes.plot(ends, ends, color=COLOURS["line"], linewidth=1)
        if mark_x is not None:
            axes.axvline(mark_x, color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (2, 2)))
        for one in series:
            style = {"color": COLOURS[one.role], "linestyle": DASHES[one.role], "linewidth": 1.8, "label": one.label}
            axes.plot(one.x, one.y, drawstyle="steps-post" if steps else "default", **style)
        axes.set(xlabel=x_label, ylabel=y_label)
        for axis, logarithmic in (("x", log_x), ("y", log_y)):
            if logarithmic:
                _logarithmic(axes, axis)
        if whole_x:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if limits:
            axes.set(xlim=limits[0], ylim=limits[1])

    return _svg(name, title, description, paint, legend=True)


def _logarithmic(axes: Axes, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if name == "x" else axes.yaxis
    axes.set(**{f"{name}scale": "log"})
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the default one writes math
    axis.set_minor_formatter(NullFormatter())


def plane(
    name: str, title: str, description: str, points: Sequence[Point], *, x_label: str, y_label: str
) -> str:  # fmt: skip
    """Points with their names beside them, and the 95 % interval of y."""

    def paint(axes: Axes) -> None:
        for point in points:
            if point.y_interval is not None:
                axes.vlines(point.x, *point.y_interval, color=COLOURS[point.role], linewidth=1.2)
            axes.plot(
                point.x, point.y, MARKERS[point.role], color=COLOURS[point.role], markersize=8,
                markeredgecolor=COLOURS["paper"], clip_on=False, zorder=3,
            )  # fmt: skip
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.12, y=0.12)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]), top=max(1.0, axes.get_ylim()[1]))
        _name_points(axes, points)

    return _svg(name, title, description, paint, height=3.4)


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Each name beside its point, where it covers neither another point nor another name."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    wide, tall = (right - left) * 0.024, (high - low) * 0.032  # a letter, half a line
    taken = [(p.x - wide, p.x + wide, p.y) for p in points]  # left end, right end, height
    for place, point in enumerate(points):
        reach = wide * (len(point.label) + 1.5)
        slots = [
            (side, ends, point.y + step * tall)
            for step in (0, 1.5, -1.5, 3, -3, 4.5, 6, 7.5)
            for side, ends in (
                ("left", (point.x + wide, point.x + reach)),
                ("right", (point.x - reach, point.x - wide)),
            )
            if left <= ends[0] and ends[1] <= right
        ]
        others = [box for i, box in enumerate(taken) if i != place]
        free = [slot for slot in slots if not any(_covers(slot[1], slot[2], box, tall) for box in others)]
        side, ends, height = (free or slots or [("left", (point.x + wide, point.x + reach), point.y)])[0]
        taken.append((*ends, height))
        start = ends[0] if side == "left" else ends[1]
        axes.text(start, height, plain(point.label), ha=side, va="center", color=COLOURS[point.role])


def _covers(ends: tuple[float, float], height: float, box: tuple[float, float, float], tall: float) -> bool:
    return ends[0] < box[1] and box[0] < ends[1] and abs(height - box[2]) < 1.4 * tall


def row_bars(
    name: str, title: str, description: str, values: Sequence[float], oracle: Sequence[float] | None, *, y_label: str
) -> str:
    """A bar for each row's value, in the order given, and a marker for the oracle's value of the same row.

    Of more than `MOST_BARS` rows the two are lines, each in its own order.
    """

    def paint(axes: Axes) -> None:
        places = range(len(values))
        if len(values) <= MOST_BARS:
            axes.bar(places, values, 0.8, color=COLOURS["unlearned"], alpha=0.75, linewidth=0, label="unlearned")
            if oracle is not None:
                axes.plot(places, oracle, "D", color=COLOURS["oracle"], markersize=4, linewidth=0, label="oracle")
        else:
            for role, rows in (("unlearned", values), ("oracle", oracle)):
                if rows is not None:
                    known = sorted((value for value in rows if value == value), reverse=True)
                    axes.plot(known, color=COLOURS[role], linestyle=DASHES[role], linewidth=1.8, label=role)
        axes.set(xlabel="rows, highest first", ylabel=y_label, ylim=(0, 1.03), xticks=[])

    return _svg(name, title, description, paint, legend=True)


def recovery_bars(name: str, title: str, description: str, lines: Sequence[Recovery], *, x_label: str) -> str:
    """For each line, unlearned and oracle as they were (outline) and after the attack (filled); a tick for before."""

    def paint(axes: Axes) -> None:
        for place, line in enumerate(lines):
            bars = (
                ("unlearned", line.unlearned, False), ("unlearned", line.unlearned_attacked, True),
                ("oracle", line.oracle, False), ("oracle", line.oracle_attacked, True),
            )  # fmt: skip
            for offset, (role, value, attacked) in zip((-0.3, -0.1, 0.1, 0.3), bars, strict=True):
                label = f"{role}, attacked" if attacked else role
                label = label if place == 0 else None
                axes.barh(
                    place + offset, value if value is not None else 0, 0.16, label=label, linewidth=1,
                    facecolor=COLOURS[role] if attacked else COLOURS["paper"], edgecolor=COLOURS[role],
                )  # fmt: skip
            if line.before is not None:
                label = "before" if place == 0 else None
                axes.plot(
                    [line.before] * 2, [place - 0.4, place + 0.4], color=COLOURS["before"], linewidth=2,
                    linestyle=DASHES["before"], label=label,
                )  # fmt: skip
        axes.set_yticks(range(len(lines)), [plain(line.label) for line in lines])
        axes.set(xlabel=x_label, ylim=(len(lines) - 0.4, -0.6))

    return _svg(name, title, description, paint, height=1.2 + 0.62 * len(lines), legend=True, legend_columns=2)


def _svg(
    name: str,
    title: str,
    description: str,
    paint: Callable[[Axes], None],
    *,
    height: float = 3.0,
    legend: bool = False,
    legend_columns: int = 3,
) -> str:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError('the charts of a report need matplotlib: pip install "llm-forget[report]"') from error
    with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letters that our font lacks
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=COLOURS["line"], linewidth=0.6, alpha=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes)
        if legend:
            figure.legend(loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9.5, **LEGEND)
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    return _embedded(stream.getvalue(), name, title, description)


def _style(name: str) -> dict[str, Any]:
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, COLOURS["ink"]),
        "axes.edgecolor": COLOURS["line"],
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 10.5,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a dollar in a run's name is a dollar
        "axes.formatter.use_mathtext": False,
    }


def _embedded(svg: str, name: str, title: str, description: str) -> str:
    """The element alone, with a name for screen readers, the page's font and colours, and ids that are its own."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]+", r"\1 var(--font)", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    (view,) = re.findall(r'viewBox="[^"]+"', svg[: svg.index(">")])
    body = svg[svg.index(">") + 1 :]
    return (
        f'<svg {view} role="img" aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(plain(title))}</title>\n'
        f'<desc id="{name}-desc">{escape(plain(description))}</desc>{body}'
    ).rstrip()
