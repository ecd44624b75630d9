// The plots of a field: one large one of any score over any price, a small one per ability, one legend for both.

function plots(section) {
  const data = embedded(`plots-data-${section.dataset.field}`);
  const live = section.querySelector(".live");
  const board = {
    series: new Map(data.series.map((series) => [series.name, series])),
    lines: data.lines,
    hidden: new Set(),
    light(name) {
      for (const element of live.querySelectorAll("[data-series]")) {
        element.classList.toggle("faint", name !== null && element.dataset.series !== name);
      }
    },
  };
  const [price, score] = ["price", "score"].map((name) => live.querySelector(`select.${name}`));
  const fillSelect = (select, options) => select.append(...options.map((one) => html("option", { value: one.key }, one.title)));
  fillSelect(price, data.prices);
  fillSelect(score, data.scores);
  const pick = (options, select) => options.find((one) => one.key === select.value);

  section.classList.add("drawn");
  const large = new Chart(live.querySelector(".large"), board, { title: "Score over price; arrow keys go from point to point" });
  const panels = data.panels.map((panel) => {
    const host = html("div", { class: "host" });
    live.querySelector(".multiples").append(html("div", { class: "multiple card" }, html("h4", {}, panel.title), host));
    return [new Chart(host, board, { small: true, title: `${panel.title}: accuracy over price` }), panel];
  });
  live.querySelector(".abilities").hidden = !panels.length;

  const draw = () => {
    large.draw(data.rows, pick(data.prices, price), pick(data.scores, score));
    for (const [chart, panel] of panels) {
      chart.draw(data.rows, pick(data.prices, price), { ...panel, kind: "percent", title: `${panel.title}, %` }, [-3, 103]);
    }
  };

  const items = data.series.filter((series) => series.role !== "baseline").map((series) => {
    const key = svg("svg", { viewBox: "-2 -2 4 4", "aria-hidden": "true" }, mark(series, 0, 0, 1.2));
    const button = html("button", { type: "button", "aria-pressed": "true", "data-series": series.name, title: series.name }, key, html("span", {}, series.short));
    button.addEventListener("click", () => {
      board.hidden[board.hidden.has(series.name) ? "delete" : "add"](series.name);
      update();
    });
    button.addEventListener("pointerenter", () => board.light(series.name));
    button.addEventListener("pointerleave", () => board.light(null));
    return [series, button];
  });
  const update = () => {
    for (const [series, button] of items) button.setAttribute("aria-pressed", String(!board.hidden.has(series.name)));
    draw();
  };
  live.querySelector(".legend").append(...items.map(([, button]) => button));
  for (const button of live.querySelectorAll("button[data-show]")) {
    button.addEventListener("click", () => {
      const wanted = button.dataset.show;
      board.hidden = new Set(data.series.filter((series) => wanted !== "all" && series.role !== wanted && series.role !== "baseline").map((series) => series.name));
      update();
    });
  }
  [price, score].forEach((select) => select.addEventListener("change", draw));
  draw();
}

document.querySelectorAll("section.plotted").forEach(plots);
