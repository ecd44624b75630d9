// Axes: round ticks and how they are written; the Pareto front; marks.

function roundTicks(low, high, most) {
  const raw = (high - low) / Math.max(most, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((times) => times * power >= raw - 1e-12) * power;
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) out.push(i * step);
  return out;
}

const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function tickText(value, kind) {
  if (kind === "flops") {
    const [unit, prefix] = PREFIXES.find(([size]) => value >= size) ?? [1, ""];
    return `${+(value / unit).toPrecision(3)}${prefix && `\u00a0${prefix}`}`;
  }
  return String(+value.toPrecision(4));
}

// Which points nothing beats: as good for less, or better for as much.
function paretoFront(points) {
  const out = [];
  let best = -Infinity;
  for (const cost of [...new Set(points.map((point) => point.cost))].sort((a, b) => a - b)) {
    const here = points.filter((point) => point.cost === cost);
    const top = Math.max(...here.map((point) => point.score));
    if (top > best) {
      out.push(...here.filter((point) => point.score === top));
      best = top;
    }
  }
  return out;
}

// Marks in a circle of radius 1, named as the figures on file have them.
const corners = (angles, radii = [1]) =>
  `${angles.map((angle, i) => {
    const [turn, radius] = [(angle * Math.PI) / 180, radii[i % radii.length]];
    return `${i ? "L" : "M"}${(radius * Math.cos(turn)).toFixed(3)} ${(radius * Math.sin(turn)).toFixed(3)}`;
  }).join("")}z`;
const MARKS = {
  o: "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0z",
  s: corners([45, 135, 225, 315], [1.2]),
  D: corners([0, 90, 180, 270], [1.25]),
  d: corners([0, 90, 180, 270], [0.8, 1.3]),
  "^": corners([-90, 30, 150], [1.25]),
  v: corners([90, 210, 330], [1.25]),
  "<": corners([180, 300, 60], [1.25]),
  ">": corners([0, 120, 240], [1.25]),
  p: corners([-90, -18, 54, 126, 198], [1.15]),
  P: "M-.4 -1.1h.8v.7h.7v.8h-.7v.7h-.8v-.7h-.7v-.8h.7z",
  X: "M-.6 -1.1L0 -.5L.6 -1.1L1.1 -.6L.5 0L1.1 .6L.6 1.1L0 .5L-.6 1.1L-1.1 .6L-.5 0L-1.1 -.6z",
  "*": corners([-90, -54, -18, 18, 54, 90, 126, 162, 198, 234], [1.35, 0.6]),
};

function mark(series, x, y, size) {
  const hollow = series.role === "control";
  return svg("path", {
    d: MARKS[series.marker] ?? MARKS.o,
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`,
    class: `point ${hollow ? "hollow" : ""}`,
    style: `--hue: var(--arm-${series.look})`,
  });
}
