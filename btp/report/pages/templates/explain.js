// Points at one visual token in every panel at once, and says what became of it at every stage.
const life = JSON.parse(document.getElementById("life").textContent);
const frames = [...document.querySelectorAll(".panels .frame")];
const alive = life.stages.map((stage) => new Set(stage.alive));
const merged = life.stages.map((stage) => new Set(stage.merged));

function story(number, token, row, column) {
  if (token < 0) return "no visual token here";
  const stage = life.stages[number];
  const name = `token ${token} (row ${row}, column ${column})`;
  if (!alive[number].has(token)) return `${name} was gone before`;
  const scores = Object.entries(stage.scores).filter(([, values]) => token in values).map(
    ([part, values]) => `${part} ${values[token][0]} (${values[token][1]} of ${Object.keys(values).length})`);
  const rule = stage.rule[token];
  const into = token in stage.flowed ? `, into token ${stage.flowed[token]}` : "";
  const holds = merged[number].has(token) ? ", holds others that flowed in" : "";
  return [rule ? `${name} stays: ${rule}${holds}` : `${name} goes${into}`, ...scores].join(" · ");
}

function point(view, row, column) {
  const grid = life.views[view];
  const token = grid.tokens[row * grid.columns + column];
  for (const frame of frames) {
    const here = Number(frame.dataset.view) === view;
    frame.classList.toggle("pointed", here);
    if (!here) continue;
    const spot = frame.querySelector(".spot");
    spot.setAttribute("x", column);
    spot.setAttribute("y", row);
  }
  for (const output of document.querySelectorAll(".token")) {
    output.textContent = story(Number(output.dataset.stage), token, row, column);
  }
}

for (const frame of frames) {
  const follow = (event) => {
    const box = frame.getBoundingClientRect();
    const view = Number(frame.dataset.view);
    const cell = (share, cells) => Math.min(cells - 1, Math.max(0, Math.floor(share * cells)));
    point(view, cell((event.clientY - box.top) / box.height, life.views[view].rows),
      cell((event.clientX - box.left) / box.width, life.views[view].columns));
  };
  frame.addEventListener("pointermove", follow);
  frame.addEventListener("pointerdown", follow);
}
