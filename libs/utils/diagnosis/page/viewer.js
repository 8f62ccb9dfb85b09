// The timeline with its controls, and the video that plays in step.  Without ground truth (no data.kinds) predictions are not judged.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const subjects = data.predictions, judged = Boolean(data.kinds);
const options = (select, entries) => select.replaceChildren(...entries.map(([value, text]) => make("option", {value}, text)));

// `first`: what the timeline shows at first; `onChange`: called with every change of what it shows
function viewer(first, onChange = () => {}) {
  const timeline = new Timeline(byId("canvas"), byId("tip"), data), videos = data.timeline.videos, media = byId("media");
  const label = (v) => `${v.id} (${judged ? `${v.ground_truth.start.length} | ` : ""}${v.predictions.map((p) => p.total).join(", ")})`;
  const missed = (v) => v.ground_truth.found.reduce((sum, found) => sum + found.filter((f) => f[timeline.state.tiou] === "0").length, 0);
  const wrong = (v) => v.predictions.reduce((sum, one) => sum + one.kinds.reduce((s, kinds, i) => s + (kinds[timeline.state.tiou] === "0" ? 0 : one.score[i]), 0), 0);
  const orders = {name: null, missed, wrong};
  const list = () => {
    const part = byId("search").value.toLowerCase(), worst = orders[byId("order").value];
    timeline.order = videos.map((_, i) => i).filter((i) => videos[i].id.toLowerCase().includes(part));
    if (worst) {
      const amount = new Map(timeline.order.map((i) => [i, worst(videos[i])]));
      timeline.order.sort((a, b) => amount.get(b) - amount.get(a) || a - b);
    }
    options(byId("video"), timeline.order.map((i) => [i, label(videos[i])]));
    byId("video").value = timeline.state.video;
  };
  const toFirst = () => { list(); if (timeline.order.length) timeline.set({video: timeline.order[0]}); };
  const slider = byId("score");
  list();
  options(byId("class"), [[-1, "all classes"], ...data.classes.map((name, c) => [c, name])]);
  if (judged) byId("kinds").replaceChildren(...legendOf([["ground truth", "#1f3a5f"], ...data.kinds.map((name, k) => [name, KIND_COLOURS[k]])]).children, make("span", {}, "▭ ground truth that is missed"), make("span", {}, "height: score"));
  slider.max = timeline.top;
  slider.step = timeline.top / 200;
  byId("video").addEventListener("change", (event) => timeline.set({video: Number(event.target.value)}));
  byId("search").addEventListener("input", toFirst);
  byId("order").addEventListener("change", toFirst);
  byId("class").addEventListener("change", (event) => timeline.set({group: Number(event.target.value)}));
  slider.addEventListener("input", () => timeline.set({least: Number(slider.value)}));
  byId("ordering").hidden = !judged;
  byId("previous").addEventListener("click", () => timeline.step(-1));
  byId("next").addEventListener("click", () => timeline.step(1));
  byId("zoom-in").addEventListener("click", () => timeline.zoom(1.5));
  byId("zoom-out").addEventListener("click", () => timeline.zoom(1 / 1.5));
  byId("zoom-all").addEventListener("click", () => timeline.set({fit: true}));

  let shown = null, ofUser = null;
  const source = (url, note) => { media.src = url; byId("media-note").textContent = note; };
  byId("file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    if (!file) return;
    if (ofUser) URL.revokeObjectURL(ofUser);
    ofUser = URL.createObjectURL(file);
    source(ofUser, "");
  });
  const follow = () => {
    timeline.playAt(media.currentTime);
    byId("now").textContent = timeline.activeAt(media.currentTime).map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", ");
    if (!media.paused && !media.ended) requestAnimationFrame(follow);
  };
  for (const name of ["play", "seeked", "timeupdate"]) media.addEventListener(name, follow);
  media.addEventListener("error", () => { if (media.hasAttribute("src")) byId("media-note").textContent = "This browser cannot play that file; an MP4 (H.264) of it plays, chosen above."; });
  timeline.onSeek = (seconds) => { if (media.readyState > 0) media.currentTime = Math.max(0, seconds); else timeline.playAt(seconds); };
  timeline.onChange = () => {
    const {state, video} = timeline;
    byId("video").value = state.video;
    slider.value = state.least;
    byId("score-text").textContent = state.least.toFixed(3);
    const hidden = video.predictions.map((p, s) => p.total > p.score.length ? `${subjects[s].name}: the best ${p.score.length} of ${p.total}` : `${subjects[s].name}: all ${p.total}`);
    byId("drawn").textContent = `Predictions of this video on the page: ${hidden.join(", ")} (at most ${data.timeline.most} per video and file). In the list of videos: ${judged ? "ground truths | " : ""}predictions.${timeline.hiddenRows ? ` ${timeline.hiddenRows} more classes with lower scores are not drawn; choose one above.` : ""}`;
    onChange(timeline);
    if (shown === state.video) return;
    shown = state.video;
    if (ofUser) { URL.revokeObjectURL(ofUser); ofUser = null; byId("file").value = ""; }
    media.removeAttribute("src");
    media.load();
    byId("media-note").textContent = "";
    if (video.media) { source(video.media, ""); byId("player").open = true; }
  };
  timeline.set({video: 0, fit: true, ...first});
  return {timeline, list};
}
