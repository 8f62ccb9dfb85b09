// Fills the page of detections without ground truth.
document.title = data.title;
byId("title").textContent = data.title;
byId("sources").textContent = subjects.map((one) => `${one.name}: ${one.file}`).join("  ·  ");
byId("known").textContent = `It knows ${data.classes.length} ${data.classes.length === 1 ? "class" : "classes"}, and finds nothing else: ${data.classes.join(", ")}.`;

// the predictions of the video that reach the least score, by start
function foundTable({state, video}) {
  const one = video.predictions[0], rows = one.start.map((_, i) => i).filter((i) => one.score[i] >= state.least).sort((a, b) => one.start[a] - one.start[b]);
  const table = sortableTable(["start s", "end s", "class", "score"], rows.map((i) => [{text: one.start[i].toFixed(2), sort: one.start[i]}, {text: one.end[i].toFixed(2), sort: one.end[i]},
    {text: data.classes[one.class[i]], sort: data.classes[one.class[i]]}, {text: one.score[i].toFixed(3), sort: one.score[i]}]));
  table.tBodies[0].addEventListener("click", (event) => {
    const cell = event.target.closest("td:first-child");
    if (cell) timeline.onSeek(Number(cell.textContent));
  });
  byId("found-table").replaceChildren(table);
}

const best = Math.max(0, ...data.timeline.videos.flatMap((v) => v.predictions[0].score));
const {timeline} = viewer({least: data.threshold ?? best / 4}, foundTable);
document.body.dataset.ready = "true";
