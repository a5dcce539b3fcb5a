"use strict";
// Charts: a figure says in data-chart what it shows; its table, behind it, says the same in words.
//   {x: {label, time, whole, values}, y: {label, max}, series: [{label, values, kind}], marks: [{at, label}]}
// kind: "line", "step", "dashed", or "band" (filled down to the series before it, or to zero).
// A live figure grows by window.charts.add(figure, x, [y of each series]).
window.charts = (() => {
  const drawn = new Map();
  const MOST_POINTS = 2000;
  const WHOLE = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = () => ["--accent", "--held", "--warn", "--bad"].map(colour);

  const stepped = () => uPlot.paths.stepped({ align: 1 });
  const series = (spec) => spec.series.map((one, index) => {
    const stroke = palette()[index % 4];
    return {
      label: one.label,
      stroke,
      width: 2,
      dash: one.kind === "dashed" ? [6, 5] : undefined,
      fill: one.kind === "band" ? `${stroke}55` : undefined,
      paths: one.kind === "step" || one.kind === "band" ? stepped() : undefined,
      points: { show: false },
      value: (_, value) => (value == null ? "" : number(value)),
    };
  });
  const number = (value) => new Intl.NumberFormat(undefined, { maximumSignificantDigits: 4 }).format(value);
  // Times of an axis as the reader's language has them: the day, or the time where all is within few days.
  const moment = (options) => {
    const format = new Intl.DateTimeFormat(undefined, options);
    return (seconds) => format.format(new Date(seconds * 1000));
  };
  const clock = (plot) => {
    const span = plot.scales.x.max - plot.scales.x.min;
    if (span > 4 * 86400) return moment({ day: "numeric", month: "short" });
    return moment({ hour: "2-digit", minute: "2-digit", second: span < 600 ? "2-digit" : undefined });
  };
  const axis = (spec, label) => ({
    label, labelSize: 22, size: spec.values ? 36 : 54, stroke: colour("--muted"), font: "12px system-ui", labelFont: "12px system-ui",
    grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 },
    ...(spec.time && { space: 90 }), ...(spec.whole && { incrs: WHOLE }),
    values: (plot, values) => values.map((value) => (value == null ? "" : spec.time ? clock(plot)(value) : number(value))),
  });
  const marks = (spec) => ({
    hooks: {
      draw: (plot) => {
        for (const mark of spec.marks ?? []) {
          const left = plot.valToPos(mark.at, "x", true);
          if (left < plot.bbox.left || left > plot.bbox.left + plot.bbox.width) continue;
          plot.ctx.save();
          plot.ctx.strokeStyle = plot.ctx.fillStyle = colour("--warn");
          plot.ctx.setLineDash([4, 4]);
          plot.ctx.beginPath();
          plot.ctx.moveTo(left, plot.bbox.top);
          plot.ctx.lineTo(left, plot.bbox.top + plot.bbox.height);
          plot.ctx.stroke();
          plot.ctx.fillText(mark.label, left + 6, plot.bbox.top + 14);
          plot.ctx.restore();
        }
      },
    },
  });

  const draw = (figure) => {
    drawn.get(figure)?.plot.destroy();
    const spec = drawn.get(figure)?.spec ?? JSON.parse(figure.dataset.chart);
    const width = figure.clientWidth;
    if (!width) return;
    const plot = new uPlot({
      width,
      height: Number(figure.dataset.height ?? 240),
      scales: {
        x: { time: Boolean(spec.x.time) },
        y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(spec.y.max ?? 0, high ?? 0) * 1.05 || 1] },
      },
      series: [{ label: spec.x.label, value: (_, v) => (v == null ? "" : spec.x.time ? moment({ dateStyle: "medium", timeStyle: "short" })(v) : number(v)) }, ...series(spec)],
      axes: [axis(spec.x, spec.x.label), axis({}, spec.y.label)],
      plugins: [marks(spec)],
      cursor: { drag: { setScale: false } },
      legend: { live: true },
    }, [spec.x.values, ...spec.series.map((one) => one.values)], figure);
    drawn.set(figure, { plot, spec });
  };
  const drawAll = () => {
    for (const figure of drawn.keys()) if (!figure.isConnected) drawn.delete(figure);
    for (const figure of document.querySelectorAll("[data-chart]")) if (!drawn.has(figure)) draw(figure);
  };
  const redraw = () => { for (const figure of [...drawn.keys()]) if (figure.isConnected) draw(figure); };

  // Of a long run, every other point goes once there are too many to see; all stay in the table.
  const thin = (spec) => {
    const keep = (_, index, all) => index % 2 === 0 || index === all.length - 1;
    spec.x.values = spec.x.values.filter(keep);
    for (const one of spec.series) one.values = one.values.filter(keep);
  };
  let waiting = false;
  const add = (figure, x, ys) => {
    const found = drawn.get(figure);
    if (!found) return;
    const { spec, plot } = found;
    spec.x.values.push(x);
    spec.series.forEach((one, index) => one.values.push(ys[index]));
    if (spec.x.values.length > MOST_POINTS) thin(spec);
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      plot.setData([spec.x.values, ...spec.series.map((one) => one.values)]);
    });
  };

  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("htmx:after:swap", drawAll);
  document.addEventListener("theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redraw, 150); });
  return { add };
})();
