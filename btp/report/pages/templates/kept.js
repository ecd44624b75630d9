// Kept tokens: one picture, under every method or one, behind every stage or one.

// Base64 of one bit per patch, row by row, as an SVG path with a rectangle per run of patches.
function cells(text, rows, columns) {
  if (!text) return "";
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const on = (i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  let path = "";
  for (let y = 0; y < rows; y += 1) {
    for (let x = 0; x < columns; x += 1) {
      const start = x;
      while (x < columns && on(y * columns + x)) x += 1;
      if (x > start) path += `M${start} ${y}h${x - start}v1h${start - x}z`;
    }
  }
  return path;
}

function verdict(answer) {
  const said = { right: "✓", wrong: "✗" }[answer.mark] ?? answer.score.toFixed(2);
  return html("span", { class: `verdict ${answer.mark}`, title: `score ${answer.score.toFixed(2)}`, "aria-label": answer.mark }, said);
}

function stageFigure(arm, stage, sample, id, field) {
  const { rows, columns } = sample.picture.views[stage.view];
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", role: "img", "aria-label": `${arm.method} at ${stage.site}: ${stage.after} of ${stage.before} visual tokens stay` },
    svg("use", { href: `#picture-${field}-${stage.view}`, filter: `url(#dim-${field})` }),
  );
  if (stage.kept) {
    drawn.append(
      svg("clipPath", { id }, svg("path", { class: "stays", d: cells(stage.kept, rows, columns) })),
      svg("use", { href: `#picture-${field}-${stage.view}`, "clip-path": `url(#${id})` }),
    );
  }
  if (stage.merged) drawn.append(svg("path", { class: "merged", d: cells(stage.merged, rows, columns) }));
  drawn.append(svg("use", { href: `#grid-${field}-${stage.view}` }));
  const more = [stage.gathered ? `${stage.gathered} merged` : "", stage.outside ? `${stage.outside} not patches` : ""].filter(Boolean);
  const count = `${stage.before} → ${stage.after}${stage.name ? `, ${stage.name}` : ""}`;
  return html("figure", {}, html("div", { class: "frame" }, drawn),
    html("figcaption", {}, html("code", {}, stage.site), html("br"), [count, ...more].join(", ")));
}

function methodCard(arm, stages, sample, number, field) {
  const card = html("div", { class: `method ${arm.role}`, "data-series": arm.series },
    html("p", { class: "who" }, html("span", { class: "dot", style: `background: var(--arm-${arm.look})` }), html("b", {}, arm.method), html("span", {}, `${arm.tokens.toFixed(1)} tokens`)),
    html("p", { class: "said" }, verdict(arm), " ", arm.text || "(nothing)"));
  if (stages.length) {
    card.append(html("div", { class: "frames" }, ...stages.map((stage, i) => stageFigure(arm, stage, sample, `kept-${field}-${number}-${i}`, field))));
    if (arm.skipped && stages.length > 1) card.append(html("p", { class: "about" }, `${arm.skipped} more stages between these.`));
  } else {
    card.append(html("p", { class: "about" }, arm.drawable ? "No stage." : "Nothing says where its visual tokens lie on this picture, so they cannot be drawn on it."));
  }
  return card;
}

function keptBrowser(section) {
  const field = section.dataset.field;
  const { samples } = embedded(`kept-data-${field}`);
  const [pick, method, stage] = ["pick", "by-method", "by-stage"].map((name) => section.querySelector(`select.${name}`));
  const [stageBox, article] = [section.querySelector(".defs"), section.querySelector(".same")];
  const budgets = [...section.querySelectorAll("button[data-budget]")];
  let budget = budgets.find((button) => button.getAttribute("aria-pressed") === "true")?.dataset.budget ?? "";

  const choices = (select, options) => {
    const was = select.value;
    select.replaceChildren(...options.map(([value, text]) => html("option", { value }, text)));
    select.value = options.some(([value]) => value === was) ? was : options[0][0];
  };
  const chosen = (arm) => (budget === "" || String(arm.budget) === budget) && (!method.value || arm.series === method.value);
  const ofStage = (arm) => {
    if (stage.value === "last") return arm.stages.filter((one) => one.site === arm.stages[arm.stages.length - 1].site);
    return stage.value ? arm.stages.filter((one) => one.site === stage.value.slice(1)) : arm.stages;
  };

  const show = () => {
    const sample = samples[pick.selectedIndex];
    const { picture } = sample;
    choices(method, [["", "every method"], ...[...new Set(sample.arms.map((arm) => arm.series))].map((name) => [name, short(name, 48)])]);
    if (method.value && !sample.arms.some(chosen)) press("");
    const arms = sample.arms.filter(chosen);
    const sites = [...new Set(arms.flatMap((arm) => arm.stages.map((one) => one.site)))];
    choices(stage, [["", "every stage"], ["last", "last stage"], ...sites.map((site) => [`=${site}`, site])]);
    const shown = arms.map((arm) => [arm, ofStage(arm)]).filter(([, stages]) => stages.length || !stage.value);

    section.style.setProperty("--aspect", picture.aspect);
    section.classList.toggle("sharp", picture.sharp);
    section.classList.toggle("has-merged", samples.some((one) => one.arms.some((arm) => arm.stages.some((each) => each.merged))));
    stageBox.replaceChildren(...picture.views.flatMap(({ rows, columns }, i) => [
      svg("image", { id: `picture-${field}-${i}`, href: picture.uri, width: columns, height: rows, preserveAspectRatio: "none" }),
      svg("path", { id: `grid-${field}-${i}`, class: "grid", d: [...Array(columns - 1)].map((_, x) => `M${x + 1} 0V${rows}`).join("") + [...Array(rows - 1)].map((_, y) => `M0 ${y + 1}H${columns}`).join("") }),
    ]));
    const answer = (title, ...said) => html("p", { class: "reference" }, html("span", {}, title), " ", ...said);
    const frames = shown.reduce((sum, [, stages]) => sum + stages.length, 0);
    article.replaceChildren(
      html("div", { class: "asked" },
        html("div", { class: "frame" }, html("img", { src: picture.uri, alt: `picture of sample ${sample.id}` })),
        html("div", {},
          html("p", { class: "tags" }, html("span", { class: "tag" }, sample.ability), html("span", { class: "id" }, sample.id)),
          html("p", { class: "question" }, sample.question),
          answer("right answer", sample.reference),
          sample.unpruned ? answer("unpruned", verdict(sample.unpruned), " ", sample.unpruned.text || "(nothing)") : "")),
      html("div", { class: `methods ${frames <= 6 ? "large" : ""}` }, ...shown.map(([arm, stages], i) => methodCard(arm, stages, sample, i, field))),
    );
  };
  const press = (value) => {
    budget = value;
    budgets.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.budget === value)));
  };
  const go = (by) => {
    pick.selectedIndex = (pick.selectedIndex + by + samples.length) % samples.length;
    show();
  };

  [pick, method, stage].forEach((select) => select.addEventListener("change", show));
  section.querySelector(".previous").addEventListener("click", () => go(-1));
  section.querySelector(".next").addEventListener("click", () => go(1));
  pressed(budgets, (button) => { press(button.dataset.budget); show(); });
  pick.selectedIndex = Math.max(samples.findIndex((sample) => sample.split), 0);
  show();
}

document.querySelectorAll("section.kept").forEach(keptBrowser);
