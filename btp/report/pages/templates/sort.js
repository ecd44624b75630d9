"use strict";

// Sorts a table's rows by the column whose heading was clicked; cells without a number stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const was = heading.getAttribute("aria-sort");
    const text = heading.classList.contains("text");
    const down = was === "none" ? !text : was === "ascending";
    headings.forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return (text ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
    });
    table.tBodies[0].append(...rows);
  }));
}
