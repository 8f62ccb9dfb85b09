// The timeline: one row per class, ground truth above a lane per predictions file, where height is score and colour the kind of error.
// What is drawn is told in data-* attributes of the canvas.
const GUTTER = 168, AXIS = 26, TRUTH = 16, LANE = 52, LOW_LANE = 28, GAP = 12, MOST_ROWS = 30; // LOW_LANE: of classes without ground truth

// round seconds, or parts of minutes and hours where the view is long
function timeTicks(start, end, about) {
  if (end - start <= 120) return ticks(start, end, about);
  const step = [15, 30, 60, 120, 300, 600, 900, 1800].find((s) => s >= (end - start) / about) ?? 3600 * Math.ceil((end - start) / about / 3600);
  return Array.from({length: Math.floor(end / step) - Math.ceil(start / step) + 1}, (_, i) => (Math.ceil(start / step) + i) * step);
}

class Timeline {
  constructor(canvas, tip, data) {
    Object.assign(this, {canvas, tip, data, context: canvas.getContext("2d")});
    this.state = {video: 0, group: -1, least: 0, tiou: 0, start: 0, end: 1, cursor: null};
    this.top = Math.max(1e-9, ...data.timeline.videos.flatMap((v) => v.predictions.map((p) => p.score.length ? p.score[0] : 0)));
    this.order = data.timeline.videos.map((_, i) => i);
    this.onSeek = this.onChange = () => {};
    this.pending = false;
    this.listen();
    new ResizeObserver(() => this.redraw()).observe(canvas.parentElement);
  }

  get video() { return this.data.timeline.videos[this.state.video]; }
  get length() { return Math.max(this.video.duration, 1e-3); }

  set(changes) {
    const before = this.state.video;
    Object.assign(this.state, changes);
    if (this.state.video !== before || changes.fit) Object.assign(this.state, {start: 0, end: this.length, cursor: null});
    this.redraw();
    this.onChange();
  }

  // a view of `span` seconds in which `anchor` stays at its share of the width
  zoom(factor, anchor = (this.state.start + this.state.end) / 2) {
    const {start, end} = this.state, span = Math.min(this.length, Math.max((end - start) / factor, Math.min(0.05, this.length)));
    this.look(anchor - (anchor - start) / (end - start) * span, span);
  }

  move(share) { this.look(this.state.start + share * (this.state.end - this.state.start), this.state.end - this.state.start); }

  look(start, span) {
    const first = Math.min(Math.max(start, 0), this.length - span);
    this.set({start: first, end: first + span});
  }

  playAt(seconds) {
    const {start, end} = this.state, span = end - start;
    this.state.cursor = seconds;
    if (seconds !== null && (seconds < start || seconds > end)) this.look(seconds - span * 0.1, span);
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.paint(); });
  }

  // classes to draw: those of the ground truth first, then by their best score
  rows() {
    const {video, state} = this, best = new Map(), has = new Set(video.ground_truth.class);
    for (const one of video.predictions) one.class.forEach((c, i) => { if (one.score[i] >= state.least) best.set(c, Math.max(best.get(c) ?? 0, one.score[i])); });
    for (const c of has) if (!best.has(c)) best.set(c, 0);
    const all = [...best.keys()].sort((a, b) => has.has(b) - has.has(a) || best.get(b) - best.get(a) || a - b);
    return state.group >= 0 ? [state.group] : all;
  }

  // [class name, score] of the first file's predictions at a time that reach the least score, the best of each class first
  activeAt(seconds) {
    const one = this.video.predictions[0], best = new Map();
    one.start.forEach((start, i) => {
      if (start <= seconds && seconds < one.end[i] && one.score[i] >= this.state.least && !(best.get(one.class[i]) >= one.score[i])) best.set(one.class[i], one.score[i]);
    });
    return [...best].sort((a, b) => b[1] - a[1]).map(([c, score]) => [this.data.classes[c], score]);
  }

  get hiddenRows() { return Math.max(0, this.rows().length - MOST_ROWS); }

  paint() {
    const {canvas, context: g, state, video, data} = this, subjects = data.predictions.length, tiou = data.tiou ? data.tiou[state.tiou] : "";
    const all = this.rows(), rows = all.slice(0, MOST_ROWS), has = new Set(video.ground_truth.class);
    const laneOf = (c) => has.has(c) || state.group >= 0 ? LANE : LOW_LANE, strip = data.kinds ? TRUTH + 6 : 4, heightOf = (c) => strip - 2 + subjects * (laneOf(c) + 4) + GAP;
    const width = canvas.parentElement.clientWidth, height = AXIS + (rows.reduce((sum, c) => sum + heightOf(c), 0) || 60), ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.fillStyle = "#ffffff";
    g.fillRect(0, 0, width, height);
    g.font = '12px "Segoe UI", "Helvetica Neue", Helvetica, Arial, "DejaVu Sans", sans-serif';
    g.textBaseline = "middle";
    this.shapes = [];
    this.scale = (width - GUTTER - 8) / (state.end - state.start);
    this.axis(width, height);
    let truths = 0, drawn = 0, top = AXIS;
    rows.forEach((c, i) => {
      if (i) { g.fillStyle = "#d9dee5"; g.fillRect(0, top - GAP / 2, width, 1); }
      g.fillStyle = "#1c2430";
      g.textAlign = "left";
      g.font = g.font.replace(/^(bold )?/, "bold ");
      g.fillText(this.fitted(data.classes[c], GUTTER - 16), 8, top + TRUTH / 2 + 2);
      g.font = g.font.replace(/^bold /, "");
      if (data.kinds) truths += this.truth(c, top + 2, subjects);
      for (let s = 0; s < subjects; s++) drawn += this.lane(c, s, top + strip + s * (laneOf(c) + 4), laneOf(c), subjects);
      top += heightOf(c);
    });
    if (!rows.length) { g.fillStyle = "#5a6472"; g.textAlign = "left"; g.fillText("nothing to draw at this score", GUTTER + 8, AXIS + 24); }
    if (state.cursor !== null) { g.fillStyle = "#c00000"; g.fillRect(this.x(state.cursor) - 1, 0, 2, height); }
    Object.assign(canvas.dataset, {video: video.id, start: state.start.toFixed(4), end: state.end.toFixed(4), least: state.least.toFixed(4), tiou,
      drawn, truths, rows: rows.length, hiddenRows: all.length - rows.length, cursor: state.cursor === null ? "" : state.cursor.toFixed(3)});
    canvas.setAttribute("aria-label", `Timeline of ${video.id}, ${state.start.toFixed(1)} to ${state.end.toFixed(1)} seconds: ${data.kinds ? `${truths} ground truths and ` : ""}${drawn} predictions`);
  }

  x(seconds) { return GUTTER + (seconds - this.state.start) * this.scale; }
  at(x) { return this.state.start + (x - GUTTER) / this.scale; }

  axis(width, height) {
    const {context: g, state} = this, span = state.end - state.start;
    g.textAlign = "center";
    const marks = timeTicks(state.start, state.end, Math.max(3, (width - GUTTER) / 110)).filter((t) => t >= state.start - 1e-9 && t <= state.end + 1e-9);
    for (const mark of marks) {
      g.fillStyle = "#eceff3";
      g.fillRect(this.x(mark), AXIS - 4, 1, height);
      g.fillStyle = "#5a6472";
      g.fillText(span > 120 ? `${Math.floor(mark / 60)}:${String(Math.round(mark % 60)).padStart(2, "0")}` : `${mark} s`, Math.min(this.x(mark), width - 18), AXIS / 2);
    }
  }

  truth(c, top, subjects) {
    const {context: g, video, state} = this, gt = video.ground_truth;
    g.fillStyle = "#f5f7fa";
    this.clip(top - 1, TRUTH, () => {
      g.fillRect(GUTTER, top - 1, 1e4, TRUTH);
    });
    let count = 0;
    gt.class.forEach((label, i) => {
      if (label !== c || gt.end[i] < state.start || gt.start[i] > state.end) return;
      const x = this.x(gt.start[i]), w = Math.max(this.x(gt.end[i]) - x, 1.5);
      const found = gt.found.map((f) => f[i][state.tiou] === "1");
      this.clip(top, TRUTH, () => {
        g.fillStyle = g.strokeStyle = "#1f3a5f";
        if (found.some(Boolean)) g.fillRect(x, top, w, TRUTH - 2);
        else { g.fillStyle = "#ffffff"; g.fillRect(x, top, w, TRUTH - 2); g.lineWidth = 1.5; g.strokeRect(x + 0.75, top + 0.75, Math.max(w - 1.5, 0.5), TRUTH - 3.5); }
        if (w > 6) { g.fillStyle = "#ffffff"; g.fillRect(x + w - 1, top, 1, TRUTH - 2); }
      });
      this.shapes.push({x, w: Math.max(w, 4), y: top, h: TRUTH, rank: 2, text: () => [`ground truth: ${this.data.classes[c]}`, this.range(gt.start[i], gt.end[i]),
        ...found.map((f, s) => `${f ? "found" : "missed"}${subjects > 1 ? ` by ${this.data.predictions[s].name}` : ""} at tIoU ${this.data.tiou[state.tiou]}`)]});
      count++;
    });
    return count;
  }

  lane(c, s, top, height, subjects) {
    const {context: g, video, state} = this, one = video.predictions[s];
    g.fillStyle = "#fafbfc";
    g.fillRect(GUTTER, top, 1e4, height);
    g.fillStyle = "#5a6472";
    g.textAlign = "right";
    if (subjects > 1) g.fillText(this.fitted(this.data.predictions[s].name, GUTTER - 52), GUTTER - 36, top + height / 2);
    if (height === LANE) {
      g.fillText(this.top.toFixed(2), GUTTER - 5, top + 7);
      g.fillText("0", GUTTER - 5, top + height - 6);
    }
    g.strokeStyle = "#d9dee5";
    g.lineWidth = 1;
    g.strokeRect(GUTTER + 0.5, top + 0.5, 1e4, height - 1);
    const level = (score) => top + 2 + (height - 8) * (1 - score / this.top);
    if (state.least > 0) { g.fillStyle = "#aab3bf"; g.fillRect(GUTTER, level(Math.min(state.least, this.top)) + 2, 1e4, 1); }
    let count = 0;
    for (let i = one.score.length - 1; i >= 0; i--) { // the best are drawn last, on top
      if (one.class[i] !== c || one.score[i] < state.least || one.end[i] < state.start || one.start[i] > state.end) continue;
      const kind = one.kinds ? Number(one.kinds[i][state.tiou]) : null, x = this.x(one.start[i]), w = Math.max(this.x(one.end[i]) - x, 1.5), y = level(one.score[i]);
      this.clip(top, height, () => {
        g.globalAlpha = kind ? 0.8 : 1;
        g.fillStyle = kind === null ? SUBJECT_COLOURS[s] : KIND_COLOURS[kind];
        g.fillRect(x, y, w, 5);
        g.globalAlpha = 1;
      });
      this.shapes.push({x, w: Math.max(w, 4), y: y - 1, h: 7, rank: 1, text: () => [`${this.data.classes[c]}, score ${one.score[i].toFixed(3)}`, this.range(one.start[i], one.end[i]),
        ...(kind === null ? [] : [`${this.data.kinds[kind]} at tIoU ${this.data.tiou[state.tiou]}`])]});
      count++;
    }
    return count;
  }

  clip(top, height, paint) {
    const g = this.context;
    g.save();
    g.beginPath();
    g.rect(GUTTER, top - 1, this.canvas.clientWidth - GUTTER, height + 2);
    g.clip();
    paint();
    g.restore();
  }

  range(start, end) { return `${start.toFixed(2)} – ${end.toFixed(2)} s (${(end - start).toFixed(2)} s)`; }

  fitted(text, width) {
    let shown = text;
    while (shown.length > 1 && this.context.measureText(shown).width > width) shown = `${shown.slice(0, shown.endsWith("…") ? -2 : -1)}…`;
    return shown;
  }

  hover(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const found = x < GUTTER ? undefined : [...(this.shapes || [])].reverse().find((s) => x >= s.x - 1 && x <= s.x + s.w + 1 && y >= s.y && y <= s.y + s.h);
    this.tip.hidden = !found;
    if (!found) return;
    this.tip.textContent = found.text().join("\n");
    this.tip.style.left = `${Math.min(x + 14, box.width - this.tip.offsetWidth - 4)}px`;
    this.tip.style.top = `${y + 16}px`;
  }

  listen() {
    const {canvas} = this;
    let held = null;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const x = Math.max(event.clientX - canvas.getBoundingClientRect().left, GUTTER);
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.move(Math.sign(event.deltaX) * 0.05);
      else this.zoom(event.deltaY < 0 ? 1.25 : 0.8, this.at(x));
    }, {passive: false});
    canvas.addEventListener("pointerdown", (event) => { held = {x: event.clientX, start: this.state.start, moved: false}; canvas.setPointerCapture(event.pointerId); canvas.focus(); });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return this.hover(event);
      if (Math.abs(event.clientX - held.x) > 3) held.moved = true;
      if (held.moved) { this.tip.hidden = true; this.look(held.start - (event.clientX - held.x) / this.scale, this.state.end - this.state.start); }
    });
    canvas.addEventListener("pointerup", (event) => {
      const x = event.clientX - canvas.getBoundingClientRect().left;
      if (held && !held.moved && x >= GUTTER) this.onSeek(this.at(x));
      held = null;
    });
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const act = {ArrowLeft: () => this.move(-0.1), ArrowRight: () => this.move(0.1), "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), 0: () => this.set({fit: true}),
        "[": () => this.set({least: Math.max(0, this.state.least - this.top / 20)}), "]": () => this.set({least: Math.min(this.top, this.state.least + this.top / 20)}),
        n: () => this.step(1), p: () => this.step(-1)}[event.key];
      if (act) { event.preventDefault(); act(); }
    });
  }

  // to the next or previous video of the list as it is shown
  step(by) {
    if (!this.order.length) return;
    const place = this.order.indexOf(this.state.video);
    this.set({video: this.order[place < 0 ? 0 : (place + by + this.order.length) % this.order.length]});
  }
}
