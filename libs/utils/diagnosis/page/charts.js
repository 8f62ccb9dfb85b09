// Charts as SVG elements. Text always goes into text nodes, never into markup.
const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito, "Color Universal Design" (2008); grey for background
const KIND_COLOURS = ["#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#D55E00", "#9AA3AE"];
const SUBJECT_COLOURS = ["#0072B2", "#333333"]; // none of the kinds' colours
const LINE_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const percent = (value, digits = 1) => value === null ? "–" : (100 * value).toFixed(digits);

// Round numbers at equal distances, as in libs/utils/plotting.py
function ticks(low, high, about = 5) {
  const raw = (high - low || Math.abs(high) || 1) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * (1 - 1e-9));
  const out = [];
  for (let i = Math.floor(low / step + 1e-9); i <= Math.ceil(high / step - 1e-9); i++) out.push(Number((i * step).toPrecision(12)));
  return out;
}

function figure(title, svg, legend) {
  const out = make("figure", {style: `max-width: ${svg.getAttribute("width")}px`}, make("figcaption", {}, title), svg);
  if (legend) out.append(legend);
  return out;
}

function legendOf(entries) {
  return make("div", {class: "legend"}, ...entries.map(([name, colour, dashed]) => make("span", {},
    make("i", {style: dashed ? `background: repeating-linear-gradient(90deg, ${colour} 0 4px, #fff 4px 6px)` : `background: ${colour}`}), name)));
}

// A frame with y ticks in percent; returns the SVG, its plotting group and the scales
function frame(width, height, yTicks, {left = 46, right = 12, top = 8, bottom = 40, yLabel = ""} = {}) {
  const w = width - left - right, h = height - top - bottom, low = yTicks[0], high = yTicks[yTicks.length - 1];
  const y = (value) => h * (high - value) / (high - low || 1);
  const group = draw("g", {transform: `translate(${left} ${top})`});
  for (const tick of yTicks) {
    group.append(draw("path", {d: `M0 ${y(tick)}H${w}`, stroke: tick === 0 ? "#5a6472" : "#e3e7ec"}),
      draw("text", {x: -6, y: y(tick) + 4, "text-anchor": "end"}, String(Number((100 * tick).toFixed(6)))));
  }
  if (yLabel) group.append(draw("text", {x: -34, y: h / 2, "text-anchor": "middle", transform: `rotate(-90 -34 ${h / 2})`, class: "small"}, yLabel));
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img"}, group);
  return {svg, group, w, h, y};
}

// series: [{name, x, y, colour, dashed}], x in 0..1 or given by xRange; y are fractions
function lineChart(title, series, {xTicks, xName, yName, xFormat = String, width = 420, height = 270, dots = false}) {
  const values = series.flatMap((s) => s.y).filter((v) => v !== null);
  const {svg, group, w, h, y} = frame(width, height, ticks(0, Math.max(...values, 0.01)), {yLabel: yName});
  const low = xTicks[0], span = xTicks[xTicks.length - 1] - low || 1, x = (value) => xTicks.length === 1 ? w / 2 : w * (value - low) / span;
  const sparse = Math.ceil(xTicks.length / 10);
  xTicks.forEach((tick, i) => {
    if (i % sparse === 0) group.append(draw("text", {x: x(tick), y: h + 17, "text-anchor": "middle"}, xFormat(tick)));
  });
  group.append(draw("text", {x: w / 2, y: h + 33, "text-anchor": "middle", class: "small"}, xName));
  for (const line of series) {
    const points = line.x.map((value, i) => [value, line.y[i]]).filter(([, value]) => value !== null);
    group.append(draw("polyline", {points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "), fill: "none",
      stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dashed ? "6 4" : "none"}, draw("title", {}, line.name)));
    if (dots) for (const [a, b] of points) group.append(draw("circle", {cx: x(a), cy: y(b), r: 3, fill: line.colour}, draw("title", {}, `${line.name}: ${percent(b, 2)}`)));
  }
  return figure(title, svg, series.length > 1 ? legendOf(series.map((s) => [s.name, s.colour, s.dashed])) : null);
}

// groups: [{label, below, values: [one per series]}]; lines: [{value, colour}] across
function barChart(title, groups, series, {lines = [], width = 420, height = 250, yName, digits = 1}) {
  const values = [...groups.flatMap((g) => g.values), ...lines.map((l) => l.value)].filter((v) => v !== null);
  const yTicks = ticks(Math.min(0, ...values), Math.max(...values, 0.01) * 1.04, 4);
  const {svg, group, w, y} = frame(width, height, yTicks, {bottom: 46, yLabel: yName});
  const slot = w / groups.length, bar = Math.min(40, slot * 0.82 / series.length), texts = [];
  groups.forEach((one, i) => {
    const centre = slot * (i + 0.5);
    one.values.forEach((value, j) => {
      const left = centre + (j - series.length / 2) * bar;
      if (value === null) return;
      const top = Math.min(y(value), y(0));
      group.append(draw("rect", {x: left + 1, y: top, width: bar - 2, height: Math.abs(y(value) - y(0)), fill: one.colour || series[j].colour},
        draw("title", {}, `${series[j].name}, ${one.label}: ${percent(value, 2)}`)));
      if (bar >= 22) texts.push(draw("text", {x: left + bar / 2, y: value < 0 ? y(value) + 13 : top - 4, "text-anchor": "middle", class: "small halo"}, percent(value, digits)));
    });
    const h = height - 8 - 46;
    group.append(draw("text", {x: centre, y: h + 17, "text-anchor": "middle"}, one.label));
    if (one.below) group.append(draw("text", {x: centre, y: h + 33, "text-anchor": "middle", class: "small"}, one.below));
  });
  for (const line of lines) group.append(draw("path", {d: `M0 ${y(line.value)}H${w}`, stroke: line.colour, "stroke-width": 1.6, "stroke-dasharray": "6 4"}));
  group.append(...texts); // over bars and lines
  return figure(title, svg, series.length > 1 ? legendOf(series.map((s) => [s.name, s.colour])) : null);
}

// bars: [{label, parts: [counts]}], drawn as shares of 1
function stackedChart(title, bars, names, colours, {width = 460, height = 270, xName}) {
  const {svg, group, w, h, y} = frame(width, height, [0, 0.2, 0.4, 0.6, 0.8, 1], {yLabel: "share of predictions (%)"});
  const slot = w / bars.length;
  bars.forEach((bar, i) => {
    const total = bar.parts.reduce((a, b) => a + b, 0);
    let below = 0;
    bar.parts.forEach((count, k) => {
      const share = total ? count / total : 0;
      group.append(draw("rect", {x: slot * i + 2, width: Math.max(slot - 4, 1), y: y(below + share), height: h * share, fill: colours[k]},
        draw("title", {}, `${names[k]}: ${Math.round(count)} of ${Math.round(total)} (${percent(share)} %)`)));
      below += share;
    });
    group.append(draw("text", {x: slot * (i + 0.5), y: h + 17, "text-anchor": "middle"}, bar.label));
  });
  group.append(draw("text", {x: w / 2, y: h + 33, "text-anchor": "middle", class: "small"}, xName));
  return figure(title, svg, legendOf(names.map((name, k) => [name, colours[k]])));
}

// head: texts; over: [[text, columns]] above them; rows: [{cells: [{text, sort, style, className}]}]; a click on a head sorts
function sortableTable(head, rows, over = []) {
  const body = make("tbody"), titles = make("tr");
  let last = -1, rising = false;
  const fill = (list) => body.replaceChildren(...list.map((row) => make("tr", {}, ...row.map((cell) => {
    const td = make("td", {title: cell.text}, cell.text);
    if (cell.style) td.setAttribute("style", cell.style);
    if (cell.className) td.className = cell.className;
    return td;
  }))));
  head.forEach((text, i) => {
    const button = make("button", {type: "button"}, text);
    button.addEventListener("click", () => {
      rising = last === i ? !rising : i === 0;
      last = i;
      const sign = rising ? 1 : -1;
      fill([...rows].sort((a, b) => sign * (a[i].sort < b[i].sort ? -1 : a[i].sort > b[i].sort ? 1 : 0)));
    });
    titles.append(make("th", {scope: "col"}, button));
  });
  fill(rows);
  const above = over.length ? [make("tr", {}, ...over.map(([text, columns]) => make("th", {scope: "colgroup", colspan: columns}, text)))] : [];
  return make("table", {}, make("thead", {}, ...above, titles), body);
}
