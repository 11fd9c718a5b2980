"""Draw charts as SVG for the HTML page. Colours are CSS variables of the page. Equal data give equal bytes."""

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

# Matplotlib needs colours that it can parse; each is replaced by a CSS variable of page.html.jinja.
COLOURS = {
    "before": "#0b0001", "unlearned": "#0b0002", "oracle": "#0b0003", "ink": "#0b0004", "line": "#0b0005",
    "paper": "#0b0006",
}  # fmt: skip
DASHES: dict[str, Any] = {"before": (0, (5, 2)), "unlearned": "solid", "oracle": (0, (1.2, 1.4))}
MARKERS = {"before": "s", "unlearned": "o", "oracle": "D"}
LEGEND: dict[str, Any] = {"handlelength": 1.9, "columnspacing": 0.9, "handletextpad": 0.5, "borderpad": 0}
WIDTH = 4.6  # inches; the page scales it
MOST_BARS = 100  # rows that a chart can show as one bar each


@dataclass(frozen=True)
class Series:
    """One line of a chart: points ``x`` and ``y``, each ``[n]``. The role sets colour and dashes."""

    label: str
    role: str  # before | unlearned | oracle
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One model in the chart of distance and utility. ``y_interval`` is the lower and the upper end of an interval."""

    label: str
    role: str
    x: float
    y: float
    y_interval: Sequence[float] | None = None


@dataclass(frozen=True)
class Recovery:
    """Values of one metric for all models, before and after an attack; None if not measured."""

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
    """Draw lines, or steps if ``steps``, as SVG. ``chance`` adds the line y = x, and ``mark_x`` a vertical line.
    ``whole_x`` allows only integer ticks. ``limits`` are the ranges of x and of y.
    """

    def paint(axes: Axes) -> None:
        if chance:
            ends = [max(limits[0][0], limits[1][0]) if limits else 0, 1]
            axes.plot(ends, ends, color=COLOURS["line"], linewidth=1)
        if mark_x is not None:
            axes.axvline(mark_x, color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (2, 2)))
        for line in series:
            style = {"color": COLOURS[line.role], "linestyle": DASHES[line.role], "linewidth": 1.8, "label": line.label}
            axes.plot(line.x, line.y, drawstyle="steps-post" if steps else "default", **style)
        axes.set(xlabel=x_label, ylabel=y_label)
        for axis, logarithmic in (("x", log_x), ("y", log_y)):
            if logarithmic:
                _logarithmic(axes, axis)
        if whole_x:
            axes.locator_params("x", integer=True)
        if limits:
            axes.set(xlim=limits[0], ylim=limits[1])

    return _svg(name, title, description, paint, legend=True)


def _logarithmic(axes: Axes, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if name == "x" else axes.yaxis
    axes.set(**{f"{name}scale": "log"})
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the default formatter writes mathtext
    axis.set_minor_formatter(NullFormatter())


def plane(
    name: str, title: str, description: str, points: Sequence[Point], *, x_label: str, y_label: str
) -> str:  # fmt: skip
    """Draw labelled points as SVG. A vertical line at each point shows the 95 % interval of y."""

    def paint(axes: Axes) -> None:
        for point in points:
            if point.y_interval is not None:
                axes.vlines(point.x, point.y_interval[0], point.y_interval[1], color=COLOURS[point.role], linewidth=1.2)
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
    """Write each label beside its point, at a place where it covers no other point or label, if there is one."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    letter_width, half_line = (right - left) * 0.024, (high - low) * 0.032  # of a label, in data units
    boxes = [(p.x - letter_width, p.x + letter_width, p.y) for p in points]  # left end, right end, height
    for index, point in enumerate(points):
        label_width = letter_width * (len(point.label) + 1.5)
        slots = [
            (side, ends, point.y + step * half_line)
            for step in (0, 1.5, -1.5, 3, -3, 4.5, 6, 7.5)
            for side, ends in (
                ("left", (point.x + letter_width, point.x + label_width)),
                ("right", (point.x - label_width, point.x - letter_width)),
            )
            if left <= ends[0] and ends[1] <= right
        ]
        others = [box for i, box in enumerate(boxes) if i != index]
        free = [slot for slot in slots if not any(_covers(slot[1], slot[2], box, half_line) for box in others)]
        side, ends, height = (free or slots or [("left", (point.x + letter_width, point.x + label_width), point.y)])[0]
        boxes.append((*ends, height))
        start = ends[0] if side == "left" else ends[1]
        axes.text(start, height, plain(point.label), ha=side, va="center", color=COLOURS[point.role])


def _covers(ends: tuple[float, float], height: float, box: tuple[float, float, float], half_line: float) -> bool:
    return ends[0] < box[1] and box[0] < ends[1] and abs(height - box[2]) < 1.4 * half_line


def row_bars(
    name: str, title: str, description: str, values: Sequence[float], oracle: Sequence[float] | None, *, y_label: str
) -> str:
    """Draw a bar per row and a marker for the oracle's value. Above `MOST_BARS` rows, draw lines of sorted values."""

    def paint(axes: Axes) -> None:
        positions = range(len(values))
        if len(values) <= MOST_BARS:
            axes.bar(positions, values, 0.8, color=COLOURS["unlearned"], alpha=0.75, linewidth=0, label="unlearned")
            if oracle is not None:
                axes.plot(positions, oracle, "D", color=COLOURS["oracle"], markersize=4, linewidth=0, label="oracle")
        else:
            for role, rows in (("unlearned", values), ("oracle", oracle)):
                if rows is not None:
                    scored_values = sorted((value for value in rows if value == value), reverse=True)
                    axes.plot(scored_values, color=COLOURS[role], linestyle=DASHES[role], linewidth=1.8, label=role)
        axes.set(xlabel="rows, highest first", ylabel=y_label, ylim=(0, 1.03), xticks=[])

    return _svg(name, title, description, paint, legend=True)


def recovery_bars(name: str, title: str, description: str, lines: Sequence[Recovery], *, x_label: str) -> str:
    """Draw bars of each model before (outlined) and after an attack (filled). A line marks the target's value."""

    def paint(axes: Axes) -> None:
        for position, line in enumerate(lines):
            bars = (
                ("unlearned", line.unlearned, False), ("unlearned", line.unlearned_attacked, True),
                ("oracle", line.oracle, False), ("oracle", line.oracle_attacked, True),
            )  # fmt: skip
            for offset, (role, value, attacked) in zip((-0.3, -0.1, 0.1, 0.3), bars, strict=True):
                label = (f"{role}, attacked" if attacked else role) if position == 0 else None
                axes.barh(
                    position + offset, value if value is not None else 0, 0.16, label=label, linewidth=1,
                    facecolor=COLOURS[role] if attacked else COLOURS["paper"], edgecolor=COLOURS[role],
                )  # fmt: skip
            if line.before is not None:
                axes.plot(
                    [line.before] * 2, [position - 0.4, position + 0.4], color=COLOURS["before"], linewidth=2,
                    linestyle=DASHES["before"], label="before" if position == 0 else None,
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
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has glyphs that our font lacks
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


def _style(name: str) -> dict[Any, Any]:
    ink_keys = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(ink_keys, COLOURS["ink"]),
        "axes.edgecolor": COLOURS["line"],
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 10.5,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a dollar sign in a run's name is literal
        "axes.formatter.use_mathtext": False,
    }


def _embedded(svg: str, name: str, title: str, description: str) -> str:
    """Return the SVG element with unique ids, style of the page, and a title and description for screen readers."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]+", r"\1 var(--font)", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    (view_box,) = re.findall(r'viewBox="[^"]+"', svg[: svg.index(">")])
    body = svg[svg.index(">") + 1 :]
    return (
        f'<svg {view_box} role="img" aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(plain(title))}</title>\n'
        f'<desc id="{name}-desc">{escape(plain(description))}</desc>{body}'
    ).rstrip()
