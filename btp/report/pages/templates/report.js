// The sample browser: which samples are shown, and whose kept tokens.
const samples = [...document.querySelectorAll(".sample")];
const state = { ability: "", differs: false };

function show() {
  for (const sample of samples) {
    const fits = !state.ability || sample.dataset.ability === state.ability;
    sample.hidden = !(fits && (!state.differs || sample.dataset.differs === "1"));
  }
  const left = samples.filter((sample) => !sample.hidden).length;
  document.getElementById("count").textContent = `${left} of ${samples.length}`;
}

const choose = (attribute, then) => pressed([...document.querySelectorAll(`.choice button[data-${attribute}]`)], (button) => then(button.dataset[attribute]));

for (const button of navigator.clipboard ? document.querySelectorAll("button.copy") : []) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}

if (samples.length) {
  choose("ability", (ability) => { state.ability = ability; show(); });
  choose("strip", (arm) => {
    for (const view of document.querySelectorAll(".view.stage")) view.hidden = view.dataset.strip !== arm;
  });
  document.getElementById("differs").addEventListener("change", (event) => {
    state.differs = event.target.checked;
    show();
  });
  document.getElementById("boxes").addEventListener("change", (event) => {
    document.getElementById("samples").classList.toggle("labelled", event.target.checked);
  });
}
