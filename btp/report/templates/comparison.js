// Lines between budgets mean nothing once the table is sorted otherwise.
document.querySelector("#results thead").addEventListener("click", () => {
  document.querySelectorAll("#results tr.first").forEach((row) => row.classList.remove("first"));
});

// Kept tokens side by side: one sample at a time, one budget or all.
for (const section of document.querySelectorAll(".kept")) {
  const samples = [...section.querySelectorAll(".same")];
  const pick = section.querySelector(".pick");
  const budgets = [...section.querySelectorAll("button[data-budget]")];
  section.classList.toggle("has-merged", section.querySelector("path.merged") !== null);

  const show = (at) => {
    const number = (at + samples.length) % samples.length;
    samples.forEach((sample, i) => { sample.hidden = i !== number; });
    pick.selectedIndex = number;
  };
  const choose = (button) => {
    budgets.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    const budget = button.dataset.budget;
    for (const method of section.querySelectorAll(".method")) {
      method.hidden = budget !== "" && method.dataset.budget !== budget;
    }
  };

  pick.addEventListener("change", () => show(pick.selectedIndex));
  section.querySelector(".previous").addEventListener("click", () => show(pick.selectedIndex - 1));
  section.querySelector(".next").addEventListener("click", () => show(pick.selectedIndex + 1));
  budgets.forEach((button) => button.addEventListener("click", () => choose(button)));
  const pressed = budgets.find((button) => button.getAttribute("aria-pressed") === "true");
  if (pressed) choose(pressed);
  show(Math.max(samples.findIndex((sample) => sample.dataset.split === "1"), 0));
}
