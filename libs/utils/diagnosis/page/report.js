// Fills the page of a diagnosis from its data and ties the controls together.
const compare = subjects.length > 1;
const AVERAGE = -1;
let chosen = AVERAGE; // index of a tIoU, or the mean over them

const mean = (list) => list.includes(null) || !list.length ? null : list.reduce((a, b) => a + b, 0) / list.length;
// a value per tIoU (numbers or nested lists) at the chosen one
function at(perTiou, index = chosen) {
  if (index !== AVERAGE) return perTiou[index];
  return Array.isArray(perTiou[0]) ? perTiou[0].map((_, i) => at(perTiou.map((row) => row[i]), AVERAGE)) : mean(perTiou);
}
const tiouText = (index = chosen) => index === AVERAGE ? "mean over tIoUs" : `tIoU ${data.tiou[index]}`;
const seriesOf = () => subjects.map((one, s) => ({name: one.name, colour: SUBJECT_COLOURS[s]}));
const signed = (value, digits = 2) => `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(digits)}`;
const difference = (a, b) => ({text: signed(b - a), sort: b - a, className: b - a > 5e-5 ? "up" : b - a < -5e-5 ? "down" : ""});
const shade = (value) => `background: rgba(0, 114, 178, ${(0.55 * value).toFixed(3)})`;
const cell = (value, digits = 2) => ({text: percent(value, digits), sort: value ?? -1});

function header() {
  document.title = data.title;
  byId("title").textContent = data.title;
  byId("sources").textContent = `${subjects.map((one) => `${one.name}: ${one.file}`).join("  ·  ")}  ·  ground truth: ${data.annotations}, split ${data.split}`;
  options(byId("tiou"), [[AVERAGE, "mean over all"], ...data.tiou.map((t, i) => [i, String(t)])]);
}

function overview() {
  const range = ([low, high], show) => ` (${show(low)} to ${show(high)})`;
  const sure = (value, limits) => percent(value, 2) + (limits ? range(limits, (x) => percent(x, 2)) : "");
  const rows = [
    ["average mAP (%)", (one) => sure(one.average_mAP, one.confidence?.average_mAP), (one) => one.average_mAP, data.paired?.average],
    ...data.tiou.map((t, i) => [`mAP at tIoU ${t} (%)`, (one) => sure(one.mAP[i], one.confidence?.mAP[i]), (one) => one.mAP[i], data.paired?.tiou[i]]),
    ["normalised mAP, mean over tIoUs (%)", (one) => percent(mean(one.normalised_mAP), 2), (one) => mean(one.normalised_mAP)],
    ["ground truths missed, mean over tIoUs (%)", (one) => percent(mean(one.missed), 2), (one) => mean(one.missed)],
    ["predictions", (one) => String(one.counts.predictions), null],
    ["predictions ignored", (one) => String(one.counts.predictions_ignored), null],
  ];
  const head = ["", ...subjects.map((one) => one.name), ...(compare ? ["difference"] : [])];
  const body = rows.map(([name, show, value, paired]) => make("tr", {}, make("td", {}, name), ...subjects.map((one) => make("td", {}, show(one))),
    ...(compare ? [make("td", {}, value ? signed(value(subjects[1]) - value(subjects[0])) + (paired ? range(paired.interval, signed) : "") : "")] : [])));
  byId("cards").replaceChildren(make("table", {id: "overview-table"}, make("thead", {}, make("tr", {}, ...head.map((text) => make("th", {scope: "col"}, text)))), make("tbody", {}, ...body)),
    make("p", {class: "note"}, `${data.videos} videos, ${data.ground_truth} ground truths, ${data.classes.length} classes`),
    ...(subjects[0].confidence ? [make("p", {class: "note"}, `In brackets: 95 % interval, by resampling ${subjects[0].confidence.videos} videos. ${data.verdict ?? ""}`)] : []));
  byId("overview-charts").replaceChildren(lineChart("mAP by tIoU", subjects.map((one, s) => ({name: one.name, x: data.tiou, y: one.mAP, colour: SUBJECT_COLOURS[s]})),
    {xTicks: data.tiou, xName: "tIoU", yName: "mAP (%)", dots: true, width: 400}));
}

function classTable() {
  const perSubject = [...data.tiou.map((t) => `@${t}`), "mean"];
  const head = ["class", "ground truths", ...subjects.flatMap(() => perSubject), ...(compare ? ["difference"] : [])];
  const over = compare ? [["", 2], ...subjects.map((one) => [one.name, perSubject.length]), ["", 1]] : [];
  const rows = data.classes.map((name, c) => {
    const values = subjects.map((one) => one.AP.map((row) => row[c]));
    const cells = [{text: name, sort: name}, {text: String(data.ground_truth_per_class[c]), sort: data.ground_truth_per_class[c]}];
    for (const list of values) for (const value of [...list, mean(list)]) cells.push({...cell(value), style: shade(value)});
    if (compare) cells.push(difference(mean(values[0]), mean(values[1])));
    return cells;
  });
  byId("class-table").replaceChildren(sortableTable(head, rows, over));
}

function curves() {
  const c = Number(byId("curve-class").value), curve = (one, t) => c < 0 ? at(one.precision_recall[t].map((row) => row), AVERAGE) : one.precision_recall[t][c];
  const shape = {xTicks: [0, 0.2, 0.4, 0.6, 0.8, 1], xName: "recall (%)", yName: "precision (%)", xFormat: (v) => String(Math.round(100 * v)), width: 560, height: 320};
  const x = data.recall_levels, name = c < 0 ? "mean over classes" : data.classes[c];
  const ap = (one, t) => c < 0 ? one.mAP[t] : one.AP[t][c];
  const charts = subjects.map((one) => lineChart(`${compare ? `${one.name}: ` : ""}${name}`, data.tiou.map((t, i) => ({name: `tIoU ${t} (AP ${percent(ap(one, i))})`, x, y: curve(one, i), colour: LINE_COLOURS[i % LINE_COLOURS.length]})), shape));
  if (compare) {
    const t = chosen === AVERAGE ? middle() : chosen;
    charts.push(lineChart(`Both at ${tiouText(t)}: ${name}`, subjects.map((one, s) => ({name: one.name, x, y: curve(one, t), colour: SUBJECT_COLOURS[s], dashed: s > 0})), shape));
  }
  byId("curve-charts").replaceChildren(...charts);
}

function errors() {
  byId("error-note").textContent = `Shown: ${tiouText()}. Profile: kinds among the best k·G predictions of each class, where G is its number of ground truths. Bars: mAP gained if all errors of one kind were put right.`;
  byId("profile-charts").replaceChildren(...subjects.map((one) => stackedChart(`False-positive profile${compare ? `: ${one.name}` : ""}`,
    at(one.profile).map((parts, i) => ({label: `${data.profile_factors[i]}G`, parts})), data.kinds, KIND_COLOURS, {xName: "best predictions per class", width: 560})));
  const kinds = data.kinds.slice(1), short = {"double detection": "double", "wrong label": "label"};
  byId("gain-charts").replaceChildren(...["removed", "repaired"].map((how) => barChart(`mAP gained, errors ${how} (points)`,
    kinds.map((kind, k) => ({label: short[kind] ?? kind, colour: compare ? null : KIND_COLOURS[k + 1], values: subjects.map((one) => at(one.gains[how][kind]))})), seriesOf(), {width: 560, yName: "mAP gained", digits: 2})));
  const head = ["kind"], names = [...data.kinds, "all errors", "missed", "all errors and missed"];
  for (const one of subjects) head.push("predictions", "share", "removed", "repaired");
  const over = compare ? [["", 1], ...subjects.map((one) => [one.name, 4])] : [];
  byId("error-table").replaceChildren(sortableTable(head, names.map((kind, k) => {
    const cells = [{text: kind, sort: kind}];
    for (const one of subjects) {
      const count = k < data.kinds.length ? at(one.kind_counts)[k] : null, total = one.counts.predictions || 1;
      cells.push({text: count === null ? "" : String(Math.round(count)), sort: count ?? -1}, {text: count === null ? "" : `${percent(count / total)} %`, sort: count ?? -1});
      for (const how of ["removed", "repaired"]) {
        const gain = one.gains[how][kind];
        cells.push(gain ? {text: signed(at(gain)), sort: at(gain)} : {text: "", sort: -1});
      }
    }
    return cells;
  }), over));
}

function bucketCharts(target, key, overall, yName) {
  byId(target).replaceChildren(...data.characteristics.map((group) => barChart(`${group.name} (${group.unit})`,
    group.labels.map((label, b) => ({label, below: `n = ${group.ground_truth[b]}`, values: subjects.map((one) => at(one.sensitivity[group.name][key])[b])})), seriesOf(),
    {lines: subjects.map((one, s) => ({value: at(one[overall]), colour: SUBJECT_COLOURS[s]})), yName, width: Math.max(360, 112 * group.labels.length)})));
}

const middle = () => data.tiou.reduce((best, t, i) => Math.abs(t - 0.5) < Math.abs(data.tiou[best] - 0.5) ? i : best, 0);

function perTiou() {
  errors();
  curves();
  bucketCharts("sensitivity-charts", "normalised_mAP", "normalised_mAP", "normalised mAP (%)");
  bucketCharts("miss-charts", "missed", "missed", "missed (%)");
}

header();
overview();
classTable();
options(byId("curve-class"), [[-1, "mean over classes"], ...data.classes.map((name, c) => [c, name])]);
byId("curve-class").addEventListener("change", curves);
perTiou();
const {timeline, list} = viewer({tiou: middle()});
byId("tiou").addEventListener("change", (event) => {
  chosen = Number(event.target.value);
  timeline.set({tiou: chosen === AVERAGE ? middle() : chosen});
  list();
  perTiou();
});
document.body.dataset.ready = "true";
