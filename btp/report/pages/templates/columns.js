// The table of results: groups of columns, shown or not; where there is no room, what the plots show too goes first.
const results = document.getElementById("results");
const CELL = 98, BESIDE = 520;  // pixels: of a column of a row of several lines, and from which on a name stands beside it

function showGroup(button, shown) {
  button.setAttribute("aria-pressed", String(shown));
  results.querySelectorAll(`[data-group="${button.dataset.group}"]`).forEach((cell) => { cell.hidden = !shown; });
}

// What still has no room goes into further lines of its row, groups of columns whole where a line holds them.
function stackRows() {
  const box = results.parentElement, rows = [...results.rows].slice(1);
  results.classList.remove("stacked", "beside");
  rows.forEach((row) => [...row.cells].forEach((cell) => { cell.style.gridColumnStart = ""; cell.classList.remove("opens"); }));
  if (results.scrollWidth <= box.clientWidth + 1) return;
  const width = box.clientWidth, beside = width > BESIDE, name = beside ? Math.min(190, 0.2 * width) : 0;
  const most = Math.max(1, Math.floor((width - name) / CELL)), first = beside ? 2 : 1;
  const shown = [...rows[0].cells].slice(1).filter((cell) => !cell.hidden), sizes = [];
  shown.forEach((cell, i) => {
    if (!i || cell.dataset.group !== shown[i - 1].dataset.group) sizes.push(0);
    sizes[sizes.length - 1] += 1;
  });
  const starts = new Set(), opens = new Set();
  let at = 0, used = 0, lines = 1, widest = 1;
  for (const size of sizes) {
    opens.add(shown[at].cellIndex);
    if (used && used + size > most) { starts.add(shown[at].cellIndex); used = 0; lines += 1; }
    used += size;
    widest = Math.max(widest, Math.min(used, most));
    while (used > most) { used -= most; lines += 1; }
    at += size;
  }
  for (const row of rows) {
    for (const column of starts) row.cells[column].style.gridColumnStart = first;
    for (const column of opens) row.cells[column].classList.add("opens");
  }
  results.style.setProperty("--most", widest);
  results.style.setProperty("--name", `${name}px`);
  results.style.setProperty("--lines", lines);
  results.classList.add("stacked");
  results.classList.toggle("beside", beside);
}

const groups = [...document.querySelectorAll("#groups button")];
groups.forEach((button) => button.addEventListener("click", () => {
  showGroup(button, button.getAttribute("aria-pressed") !== "true");
  stackRows();
}));
for (const button of groups.filter((one) => one.dataset.folds)) {
  if (results.scrollWidth > results.parentElement.clientWidth + 1) showGroup(button, false);
}
let before = 0;
new ResizeObserver(([box]) => {
  if (box.contentRect.width !== before) { before = box.contentRect.width; stackRows(); }
}).observe(results.parentElement);
stackRows();
