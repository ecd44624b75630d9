// The table: rows by their names. Lines between budgets mean nothing once the table is sorted otherwise.
results.tHead.addEventListener("click", () => {
  results.querySelectorAll("tr.first").forEach((row) => row.classList.remove("first"));
});

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of results.tBodies[0].rows) {
    const text = row.cells[0].textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});

// Settings: all cells, or two side by side with nothing but what differs between these.
const settings = document.getElementById("differing");
if (settings) {
  const sides = ["one", "other"].map((name) => document.querySelector(`#settings select.${name}`));
  const compareCells = () => {
    const [one, other] = sides.map((side) => Number(side.value));
    sides[1].disabled = !one;
    for (const row of settings.rows) {
      const values = [...row.cells].slice(1);
      values.forEach((cell, i) => { cell.hidden = one > 0 && i + 1 !== one && i + 1 !== other; });
      if (row.parentElement.tagName === "TBODY") {
        row.hidden = one > 0 && values[one - 1].dataset.value === values[other - 1].dataset.value;
      }
    }
    document.getElementById("alike").hidden = [...settings.tBodies[0].rows].some((row) => !row.hidden);
  };
  sides.forEach((side) => side.addEventListener("change", compareCells));
  compareCells();
}
