// Small words for building what the page draws.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const embedded = (id) => JSON.parse(document.getElementById(id).textContent);
const short = (text, most) => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);

// A row of buttons of which one is pressed.
function pressed(buttons, then) {
  for (const button of buttons) {
    button.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      then(button);
    });
  }
}
