// One plot of a score over a price, in SVG: intervals, lines through budgets, the Pareto front, a hint for every point.

const FAR = 1.6; // an unpruned model this much dearer than all others is named at the edge, not drawn to scale

class Chart {
  // board: {series: Map, lines: places of rows, light(series), hidden: Set}; options: {small, title}
  constructor(host, board, options = {}) {
    Object.assign(this, { host, board, options, points: [], at: -1 });
    this.tip = html("div", { class: "tip", role: "status", hidden: "" });
    this.picture = svg("svg", { class: "chart", tabindex: 0, role: "img", "aria-label": options.title });
    host.append(this.picture, this.tip);
    this.picture.addEventListener("pointermove", (event) => this.#near(event));
    this.picture.addEventListener("pointerdown", (event) => this.#near(event));
    this.picture.addEventListener("pointerleave", () => this.#leave());
    this.picture.addEventListener("blur", () => this.#leave());
    this.picture.addEventListener("keydown", (event) => this.#step(event));
    this.width = 0;
    new ResizeObserver(() => {
      if (this.drawn && Math.abs(host.clientWidth - this.width) > 1) this.draw(...this.drawn);
    }).observe(host);
  }

  // rows: all of the field; price, score: {key, title, kind}; limits: [low, high] of the score, or null.
  draw(rows, price, score, limits = null) {
    this.drawn = [rows, price, score, limits];
    this.#leave();
    const { small } = this.options;
    const times = score.kind === "percent" ? 100 : 1;
    const known = rows.filter((row) => row.values[price.key]?.[0] != null && row.values[score.key]?.[0] != null);
    const base = known.filter((row) => row.role === "baseline");
    let shown = known.filter((row) => !this.board.hidden.has(row.series));
    const others = shown.filter((row) => row.role !== "baseline");
    const x = (row) => row.values[price.key][0];
    const far = others.length && base.some((row) => x(row) > FAR * Math.max(...others.map(x)));
    if (far) shown = others;
    this.width = Math.max(this.host.clientWidth, 120);
    const height = small ? 150 : Math.round(Math.min(Math.max(0.5 * this.width, 300), 480));
    const room = small ? { left: 30, right: 8, top: 8, bottom: 20 } : { left: 46, right: 16, top: 22, bottom: 42 };
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.picture.style.height = `${height}px`;
    this.picture.replaceChildren();
    this.points = [];
    if (!shown.length) return;

    const prices = shown.map(x);
    const pad = 0.06 * (Math.max(...prices) - Math.min(...prices) || Math.max(...prices) || 1);
    const across = [Math.min(...prices) - pad, Math.max(...prices) + pad];
    const up = limits ?? this.#limits(others.length ? others : shown, base, score.key, times);
    const left = (value) => room.left + ((value - across[0]) / (across[1] - across[0])) * (this.width - room.left - room.right);
    const top = (value) => height - room.bottom - ((value - up[0]) / (up[1] - up[0])) * (height - room.top - room.bottom);
    this.points = shown.map((row) => ({
      row, price, score, x: left(x(row)), y: top(times * row.values[score.key][0]),
    })).filter(({ row }) => times * row.values[score.key][0] >= up[0] && times * row.values[score.key][0] <= up[1]);

    this.#axes(price, score, across, up, left, top, room, height);
    if (!small) this.#front(known, price, score, left, top, times, room);
    this.#baseline(base, price, score, top, times, room, far, up);
    this.#series(rows, price, score, left, top, times);
    if (!small) this.#names(room);
    this.ring = svg("circle", { class: "ring", r: small ? 7 : 9, visibility: "hidden" });
    this.picture.append(this.ring);
  }

  // Of the points with their intervals, and of the unpruned model where that leaves the others more than half.
  #limits(rows, base, key, times) {
    const all = rows.flatMap((row) => row.values[key].filter((value) => value !== null).map((value) => times * value));
    const own = [Math.min(...all), Math.max(...all)];
    const pad = 0.05 * (own[1] - own[0] || 1);
    const lines = base.map((row) => times * row.values[key][0]);
    const wide = [Math.min(own[0], ...lines), Math.max(own[1], ...lines)];
    const [low, high] = wide[1] - wide[0] <= FAR * (own[1] - own[0] || 1) ? wide : own;
    return [low - pad, high + 1.6 * pad];
  }

  #axes(price, score, across, up, left, top, room, height) {
    const { small } = this.options;
    const lines = svg("g", { class: "axes" });
    for (const tick of roundTicks(up[0], up[1], small ? 3 : 7)) {
      if (score.kind === "percent" && (tick < 0 || tick > 100)) continue; // the axis goes beyond, for room
      lines.append(
        svg("line", { x1: room.left, x2: this.width - room.right, y1: top(tick), y2: top(tick) }),
        svg("text", { x: room.left - 6, y: top(tick) + 4, "text-anchor": "end" }, tickText(tick, score.kind)),
      );
    }
    const widest = Math.max(2, Math.floor((this.width - room.left) / (price.kind === "flops" ? 90 : 70)));
    for (const tick of roundTicks(across[0], across[1], small ? 3 : Math.min(widest, 9))) {
      if (tick < 0) continue;
      lines.append(
        svg("line", { x1: left(tick), x2: left(tick), y1: room.top, y2: height - room.bottom }),
        svg("text", { x: left(tick), y: height - room.bottom + 15, "text-anchor": "middle" }, tickText(tick, price.kind)),
      );
    }
    if (!small) {
      lines.append(
        svg("text", { class: "name", x: (room.left + this.width - room.right) / 2, y: height - 6, "text-anchor": "middle" }, short(price.title, Math.floor(this.width / 6.5))),
        svg("text", { class: "name", x: 4, y: 12 }, score.title),
      );
    }
    this.picture.append(lines);
  }

  // Steps through the points on the front, where they are drawn, and on to the edge.
  #front(known, price, score, left, top, times, room) {
    const seen = known.filter((row) => !this.board.hidden.has(row.series));
    const all = seen.map((row) => ({ row, cost: row.values[price.key][0], score: row.values[score.key][0] }));
    const on = new Set(paretoFront(all).map((point) => point.row));
    for (const point of this.points) point.front = on.has(point.row);
    const steps = this.points.filter((point) => point.front).sort((a, b) => a.x - b.x || b.y - a.y);
    if (!steps.length) return;
    const path = steps.map((point, i) => (i ? `H${point.x.toFixed(1)}V${point.y.toFixed(1)}` : `M${point.x.toFixed(1)} ${point.y.toFixed(1)}`));
    this.picture.append(svg("path", { class: "front-line", d: `${path.join("")}H${this.width - room.right}` }));
  }

  #baseline(base, price, score, top, times, room, far, up) {
    for (const row of base) {
      const value = times * row.values[score.key][0];
      const within = value >= up[0] && value <= up[1];
      const y = within ? top(value) : value > up[1] ? room.top : top(up[0]);
      if (within) this.picture.append(svg("line", { class: "base", x1: room.left, x2: this.width - room.right, y1: y, y2: y }));
      if (this.options.small) continue;
      const where = `${far ? `, at ${row.texts[price.key]} →` : ""}${within ? "" : value > up[1] ? " ↑" : " ↓"}`;
      const text = `${row.series} ${row.texts[score.key].split(" ")[0]}${where}`;
      this.picture.append(svg("text", { class: "base-name", x: room.left + 4, y: within || y > room.top ? y - 5 : y + 11 }, text));
    }
  }

  #series(rows, price, score, left, top, times) {
    const at = new Map(this.points.map((point) => [point.row, point]));
    const lines = this.board.lines.map((line) => line.map((i) => at.get(rows[i])).filter(Boolean).sort((a, b) => a.x - b.x));
    for (const series of this.board.series.values()) {
      const mine = this.points.filter((point) => point.row.series === series.name);
      if (!mine.length) continue;
      const group = svg("g", { "data-series": series.name, style: `--hue: var(--arm-${series.look})` });
      for (const { row, x, y } of mine) {
        const [, low, high] = row.values[score.key];
        if (low !== null && high !== null) group.append(svg("line", { class: "range", x1: x, x2: x, y1: top(times * low), y2: top(times * high) }));
        const [, cheap, dear] = row.values[price.key];
        if (cheap !== null && dear !== null) group.append(svg("line", { class: "range", x1: left(cheap), x2: left(dear), y1: y, y2: y }));
      }
      for (const line of lines.filter((points) => points.length > 1 && points[0].row.series === series.name)) {
        group.append(svg("polyline", { class: `line ${series.role}`, points: line.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") }));
      }
      for (const point of mine) group.append(mark(series, point.x, point.y, this.options.small ? 3.2 : 4.6));
      this.picture.append(group);
    }
  }

  // A name at the dearest point of each series, methods first, the better first, where there is room.
  #names(room) {
    const last = new Map();
    for (const point of this.points) {
      const other = last.get(point.row.series);
      if (point.row.role !== "baseline" && (!other || point.x > other.x)) last.set(point.row.series, point);
    }
    const rank = (point) => (point.row.role === "method" ? 0 : 1);
    const taken = this.points.map(({ x, y }) => [x - 6, y - 6, x + 6, y + 6]);
    for (const text of this.picture.querySelectorAll(".base-name")) {
      const { x, y, width, height } = text.getBBox();
      taken.push([x, y, x + width, y + height]);
    }
    for (const point of [...last.values()].sort((a, b) => rank(a) - rank(b) || a.y - b.y)) {
      const text = svg("text", { class: "label", "data-series": point.row.series, style: `--hue: var(--arm-${this.board.series.get(point.row.series).look})` }, short(this.board.series.get(point.row.series).short, 24));
      this.picture.append(text);
      const { width } = text.getBBox();
      const spot = [[9, 4], [-width - 9, 4], [-width / 2, -10], [-width / 2, 18], [7, -7], [7, 15], [-width - 7, -7], [-width - 7, 15]]
        .map(([dx, dy]) => [point.x + dx, point.y + dy])
        .find(([x, y]) => x >= room.left && x + width <= this.width && y > 12 && !taken.some((box) => x < box[2] && box[0] < x + width && y - 10 < box[3] && box[1] < y + 3));
      if (!spot) { text.remove(); continue; }
      text.setAttribute("x", spot[0]);
      text.setAttribute("y", spot[1]);
      taken.push([spot[0], spot[1] - 10, spot[0] + width, spot[1] + 3]);
    }
  }

  #near(event) {
    const box = this.picture.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, reach] = [-1, event.pointerType === "touch" ? 44 : 26];
    this.points.forEach((point, i) => {
      const away = Math.hypot(point.x - x, point.y - y);
      if (away < reach) [best, reach] = [i, away];
    });
    if (best < 0) this.#leave();
    else this.#show(best);
  }

  #step(event) {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.#leave();
    if (!way || !this.points.length) return;
    event.preventDefault();
    const order = this.points.map((_, i) => i).sort((a, b) => this.points[a].x - this.points[b].x);
    const at = order.indexOf(this.at);
    this.#show(order[at < 0 ? (way > 0 ? 0 : order.length - 1) : (at + way + order.length) % order.length]);
  }

  #show(at) {
    if (at === this.at) return;
    this.at = at;
    const { row, price, score, x, y, front } = this.points[at];
    const here = this.points.filter((point, i) => i !== at && Math.hypot(point.x - x, point.y - y) < 2).map((point) => point.row.method);
    this.ring.setAttribute("cx", x);
    this.ring.setAttribute("cy", y);
    this.ring.setAttribute("visibility", "visible");
    const lines = [[score.title, row.texts[score.key]], [price.title.split(/,| \(/)[0], row.texts[price.key]]];
    if (!this.options.small) lines.push(...row.said.filter(([title]) => title !== score.title), ["run", String(row.run)]);
    this.tip.replaceChildren(
      html("b", {}, html("span", { class: "dot", style: `background: var(--arm-${this.board.series.get(row.series).look})` }), row.method),
      html("dl", {}, ...lines.flatMap(([title, text]) => [html("dt", {}, title), html("dd", {}, text)])),
      front ? html("p", {}, "◆ on the Pareto front") : "",
      row.note ? html("p", {}, row.note) : "",
      here.length ? html("p", {}, `at the same place: ${here.join(", ")}`) : "",
    );
    this.tip.hidden = false;
    const width = this.tip.offsetWidth;
    const beside = x + 16 + width <= this.width ? x + 16 : x - 16 - width;
    this.tip.style.left = `${Math.max(0, Math.min(beside, this.width - width))}px`;
    this.tip.style.top = beside >= 0 ? `${Math.max(0, y - this.tip.offsetHeight / 2)}px` : `${y + 16}px`;
    this.board.light(row.series);
  }

  #leave() {
    if (this.at < 0) return;
    this.at = -1;
    this.tip.hidden = true;
    this.ring?.setAttribute("visibility", "hidden");
    this.board.light(null);
  }
}
