// Plots that matplotlib drew: which one is shown, what a mark stands for, whose marks are faint or hidden.

function plots(section) {
  const { titles, rows } = embedded(`plots-data-${section.dataset.field}`);
  const [all, tip] = [(selector) => [...section.querySelectorAll(selector)], section.querySelector(".tip")];
  const picks = all("select.pick");
  const choose = () => all(".drawing").forEach((drawing) => {
    drawing.hidden = picks.some((pick) => (drawing.dataset[pick.name] ?? pick.value) !== pick.value);
  });
  const light = (series) => all("[data-series]").forEach((part) => part.classList.toggle("faint", series !== null && part.dataset.series !== series));
  const press = (button, on) => {
    button.setAttribute("aria-pressed", String(on));
    all(`.drawing [data-series="${button.dataset.series}"]`).forEach((part) => part.classList.toggle("gone", !on));
  };
  const leave = () => { tip.hidden = true; light(null); };
  const middle = ({ mark }) => { const box = mark.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
  const tell = ({ mark, key, row, series }, price) => {
    const lines = [[titles[key], row.texts[key]], [titles[price], row.texts[price]], ...row.said];
    tip.replaceChildren(
      html("b", {}, html("span", { class: "dot", style: `background: var(--arm-${series})` }), row.method),
      html("dl", {}, ...lines.flatMap(([title, text]) => [html("dt", {}, title), html("dd", {}, text)])),
      row.note ? html("p", {}, row.note) : "");
    tip.hidden = false;
    const [[x, y], room] = [middle({ mark }), document.documentElement.clientWidth - tip.offsetWidth];
    tip.style.left = `${Math.max(0, Math.min(x + 16 <= room ? x + 16 : x - 16 - tip.offsetWidth, room))}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight / 2)}px`;
    light(series);
  };
  for (const drawing of all(".drawing")) {
    const { price } = drawing.dataset;
    const marks = [...drawing.querySelectorAll(".marks")].flatMap((group) => [...group.querySelectorAll("use")].map((mark, i) => (
      { mark, key: group.dataset.key, row: rows[group.dataset.rows.split(",")[i]], series: group.dataset.series })));
    const shown = () => marks.filter(({ mark }) => !mark.closest(".gone"));
    const near = (event) => {
      const away = (mark) => Math.hypot(middle(mark)[0] - event.clientX, middle(mark)[1] - event.clientY);
      const best = shown().reduce((one, other) => (one && away(one) <= away(other) ? one : other), null);
      if (best && away(best) < (event.pointerType === "touch" ? 44 : 26)) tell(best, price); else leave();
    };
    let at = -1;
    drawing.addEventListener("pointermove", near);
    drawing.addEventListener("pointerdown", near);
    drawing.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") leave();
      const order = shown().sort((one, other) => middle(one)[0] - middle(other)[0]);
      if (!way || !order.length) return;
      event.preventDefault();
      at = (at + way + (at < 0 && way < 0 ? 1 : 0) + order.length) % order.length;
      tell(order[at], price);
    });
    ["pointerleave", "blur"].forEach((end) => drawing.addEventListener(end, leave));
  }
  for (const button of all(".legend button")) {
    button.addEventListener("click", () => press(button, button.getAttribute("aria-pressed") === "false"));
    button.addEventListener("pointerenter", () => light(button.dataset.series));
    button.addEventListener("pointerleave", () => light(null));
  }
  for (const choice of all("button[data-show]")) {
    choice.addEventListener("click", () => all(".legend button").forEach((button) => press(button, choice.dataset.show.split(" ").includes(button.dataset.role))));
  }
  picks.forEach((pick) => pick.addEventListener("change", choose));
  choose();
}

document.querySelectorAll("section.plotted").forEach(plots);
