// The table of results: groups of columns, shown or not; where there is no room, what the plots show too goes first.
const results = document.getElementById("results");

function showGroup(button, shown) {
  button.setAttribute("aria-pressed", String(shown));
  results.querySelectorAll(`[data-group="${button.dataset.group}"]`).forEach((cell) => { cell.hidden = !shown; });
}

const groups = [...document.querySelectorAll("#groups button")];
groups.forEach((button) => button.addEventListener("click", () => showGroup(button, button.getAttribute("aria-pressed") !== "true")));
for (const button of groups.filter((one) => one.dataset.folds)) {
  if (results.scrollWidth > results.parentElement.clientWidth + 1) showGroup(button, false);
}
